"""The tables of docs/quality.md."""

NAMES = {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "rmse": "RMSE",
         "auroc": "AUROC", "f1": "F1", "macro_f1": "macro-F1",
         "false_alarms@95": "false alarms at 95% recall", "ece": "ECE"}
LOWER_IS_BETTER = ("rmse", "false_alarms@95", "ece")
COMPARED = ("classical", "scratch", "starter", "domain")
# "alone": the encoder without the linear model beside it.
CURVES = ("classical", "scratch", "starter", "scratch alone", "starter alone")


def tasks_table(rows):
    """Of the JSON lines that a run prints, one a task."""
    lines = ["| task (rows learnt from / scored) | metric | classical | scratch "
             "| starter | starter+domain | besides |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        columns = row["columns"]
        title = "%s (%s / %s)" % (row["task"], format(row["train"], ","),
                                  format(row["test"], ","))
        for metric in columns["classical"] | columns["domain"]:
            cells = {c: columns[c][metric] for c in COMPARED
                     if metric in columns.get(c, {})}
            pick = min if metric in LOWER_IS_BETTER else max
            best = pick(round(value, 4) for value in cells.values())
            text = ["-" if c not in cells else
                    ("**%.4f**" if round(cells[c], 4) == best else "%.4f")
                    % cells[c] for c in COMPARED]
            besides = "; ".join(
                "%s: %.4f" % (c, values[metric])
                for c, values in columns.items()
                if c not in COMPARED and metric in values)
            lines.append("| %s | %s | %s | %s |" % (
                title, NAMES.get(metric, metric), " | ".join(text), besides))
            title = ""
    return "\n".join(lines) + "\n"


def mean_and_range(values):
    mean = "%.4f" % (sum(values) / len(values))
    if len(values) == 1:
        return mean
    return "%s (%.4f to %.4f)" % (mean, min(values), max(values))


def curves_table(curves, parts):
    """Of the few labels: means, and the range where there are several runs."""
    lines = ["| task | labels | %s |" % " | ".join(CURVES),
             "|---|---|" + "---|" * len(CURVES)]
    for name, curve in curves.items():
        title = "%s, %s" % (name, NAMES.get(curve["metric"], curve["metric"]))
        for i, part in enumerate(parts):
            cells = [mean_and_range(curve[column][i]) if column in curve
                     else "-" for column in CURVES]
            lines.append("| %s | %g%% | %s |" % (title, 100 * part,
                                                 " | ".join(cells)))
            title = ""
    return "\n".join(lines) + "\n"
