"""The curves of few labels as an SVG."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

import markdown  # noqa: E402

COLOURS = {"classical": "#888888", "scratch": "#d08020", "starter": "#2060c0"}
STYLES = {"alone": ":"}  # without the linear model beside it; else solid


def few_labels(curves, parts, path):
    # Text stays text, and no date: the same figures give the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vitrine",
                         "font.size": 10, "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.3))
    for axis, (name, curve) in zip(axes, curves.items()):
        for column in (c for c in markdown.CURVES if c in curve):
            arm, _, how = column.partition(" ")
            values = curve[column]
            mean = [sum(v) / len(v) for v in values]
            axis.plot(parts, mean, "o" + STYLES.get(how, "-"),
                      color=COLOURS[arm], label=column)
            if not how:
                axis.fill_between(parts, [min(v) for v in values],
                                  [max(v) for v in values],
                                  color=COLOURS[arm], alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        axis.set_xticks(parts, ["%g%%" % (100 * part) for part in parts])
        axis.minorticks_off()
        axis.set_title("%s, %s" % (
            name, markdown.NAMES.get(curve["metric"], curve["metric"])),
                       fontsize=10)
        axis.set_xlabel("labels used")
        axis.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center",
                  ncol=len(markdown.CURVES), frameon=False)
    figure.savefig(path, metadata={"Date": None})
