#!/usr/bin/python3
"""The parts of compare_ort.sh that count: which pairs, the runs in turn, and
what is printed of them. That script says what it is and calls this."""
import argparse
import collections
import gzip
import json
import os
import re
import signal
import statistics
import subprocess
import sys

import numpy as np

SHAPES = {"minilm": ("MiniLM-6L-384", 6, 384),
          "bert-base": ("BERT-base-768", 12, 768)}
SINGLE_TOKENS = 32


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- pairs

def read_rows(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    if "title" not in rows[0]:  # ids of the items beside it: the sample shop's
        folder = os.path.dirname(path)
        titles = {item["id"]: item["title"]
                  for item in read_rows(os.path.join(folder, "items.jsonl"))}
        for row in rows:
            row["title"] = titles[row["item_id"]]
    return rows


def make_pairs(options):
    """Writes ids.pairs.jsonl, singles.pairs.jsonl and vocab.txt."""
    rows = read_rows(options.data)

    def write(name, lines):
        with open(os.path.join(options.work, name), "w",
                  encoding="utf-8") as out:
            out.writelines(line + "\n" for line in lines)

    def spread(count):
        if len(rows) < count:
            sys.exit("%s: %d rows, fewer than %d" % (options.data, len(rows),
                                                     count))
        return [n * len(rows) // count for n in range(count)]

    write("ids.pairs.jsonl",
          (json.dumps({"a": rows[n]["query"], "b": rows[n]["title"]})
           for n in spread(options.sequences)))
    # Long enough for the tokenizer to cut them to one length.
    write("singles.pairs.jsonl",
          (json.dumps({"a": rows[n]["query"], "b": " ".join(
              rows[(n + k) % len(rows)]["title"]
              for k in range(SINGLE_TOKENS))})
           for n in spread(options.singles)))
    # As a real vocabulary: the words that occur more than once, and letters;
    # then filled up to the size of BERT's.
    count = collections.Counter(
        word for row in rows
        for word in re.findall(r"[^\W_]+|[^\w\s]|_",
                               (row["query"] + " " + row["title"]).lower()))
    letters = sorted({c for word in count for c in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [word for word, n in count.most_common(20000) if n > 1]
    pieces += letters + ["##" + c for c in letters]
    pieces = list(dict.fromkeys(pieces))
    pieces += ["[unused%d]" % n for n in range(30522 - len(pieces))]
    write("vocab.txt", pieces)


# ---- runs

class Skipped(Exception):
    """What an engine says that it does not have."""


def call(command, env=None):
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True,
                          env=dict(os.environ, **(env or {})))
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    error = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if re.search("FAILED_PRECONDITION|UNIMPLEMENTED|could not create a "
                 "primitive descriptor", error):
        raise Skipped(error)
    sys.exit("%s: status %d\n%s" % (" ".join(command), done.returncode,
                                    done.stderr))


class Row:
    """An engine in one dtype: how it is run, and what came of it."""

    def __init__(self, engine, dtype, batches):
        self.engine, self.dtype = engine, dtype
        self.batches = batches  # to try: arguments
        self.batch = None  # the best of them
        self.runs, self.singles = [], []
        self.skipped = None

    def name(self):
        return "%s %s" % (self.engine, self.dtype)


class Bench:

    def __init__(self, options, model):
        self.options = options
        self.folder = os.path.join(options.work, model)
        self.title, self.layers, self.hidden = SHAPES[model]
        self.isa = ({"ONEDNN_MAX_CPU_ISA": options.isa} if options.isa
                    else {})
        counts = [["--batch", str(n)] for n in (1, 8, 32, 64)]
        ours = [["--batch-tokens", str(options.batch_tokens)]]
        self.rows = [Row("onnxruntime", "fp32", counts),
                     Row("onnxruntime", "int8", counts),
                     Row("torch", "fp32", counts + ours),
                     Row("torch", "bf16", counts + ours)]
        self.rows += [Row("onednn", dtype, ours)
                      for dtype in ("fp32", "bf16", "int8")]
        self.floors = [Row("products", dtype, None)
                       for dtype in ("fp32", "bf16", "int8")]

    def path(self, *parts):
        return os.path.join(self.options.work, *parts)

    def engine(self, row, ids, arguments):
        env = {}
        if row.engine == "onnxruntime":
            command = ["node", os.path.join(os.path.dirname(__file__),
                                            "ort_bench.mjs"), "--model",
                       os.path.join(self.folder, row.dtype + ".onnx")]
            env = {"NODE_PATH": self.path("peer", "node_modules")}
        else:
            command = [os.path.join(self.options.bin, "engine_bench"),
                       "--model", self.folder, "--engine", row.engine,
                       "--dtype", row.dtype]
            if row.engine == "onednn":
                env = self.isa
        return call(command + ["--ids", self.path(ids), "--threads",
                               str(self.options.threads), "--rounds", "1",
                               "--warmup-rounds", "1"] + arguments, env)

    def products(self, row, tokens, plan=()):
        return call([os.path.join(self.options.bin, "products_bench"),
                     "--layers", str(self.layers), "--hidden",
                     str(self.hidden), "--dtype", row.dtype, "--tokens",
                     str(tokens), "--threads", str(self.options.threads),
                     "--seconds", "0.3" if self.options.fast else "2",
                     *plan], self.isa)

    def logits_path(self, row):
        return self.path("%s.%s.%s.logits" % (os.path.basename(self.folder),
                                              row.engine, row.dtype))

    def find_best(self):
        for row in self.rows:
            best = 0
            try:
                for batch in row.batches:
                    run = self.engine(row, "ids.jsonl", batch)
                    say("  %s %s: %d tokens/s" % (row.name(), " ".join(batch),
                                                  run["tokens_per_s"]))
                    if run["tokens_per_s"] > best:
                        best, row.batch = run["tokens_per_s"], batch
            except Skipped as skipped:
                self.skip(row, skipped)
        for row in self.floors:
            try:
                row.batch = [self.plan(self.products(row, tokens))
                             for tokens in (8192, SINGLE_TOKENS)]
                say("  %s: %s; single: %s" % (row.name(), *(
                    " ".join(plan) for plan in row.batch)))
            except Skipped as skipped:
                self.skip(row, skipped)

    @staticmethod
    def plan(found):
        return ["--split", found["split"], "--order", found["order"],
                "--block", str(found["block"])]

    @staticmethod
    def skip(row, skipped):
        row.skipped = str(skipped)
        say("  %s: skipped: %s" % (row.name(), skipped))

    def round(self, number):
        for row in self.rows:
            if row.skipped:
                continue
            row.runs.append(self.engine(
                row, "ids.jsonl",
                row.batch + ["--logits", self.logits_path(row)]))
            row.singles.append(self.engine(row, "singles.jsonl", ["--single"]))
            self.progress(number, row)
        for row in self.floors:
            if row.skipped:
                continue
            row.runs.append(self.products(row, 8192, row.batch[0]))
            row.singles.append(
                self.products(row, SINGLE_TOKENS, row.batch[1]))
            self.progress(number, row)

    @staticmethod
    def progress(number, row):
        say("  round %d: %s: %d tokens/s; single %.3f ms" % (
            number, row.name(), row.runs[-1]["tokens_per_s"],
            row.singles[-1]["p50_ms"]))

    # ---- results

    def logits(self, row):
        with open(self.logits_path(row)) as lines:
            return np.array([json.loads(line)["logits"][0] for line in lines])

    def results(self):
        """A dict a row; ratios are to rows of the same run."""
        reference = self.logits(self.rows[0])
        floors = {row.dtype: row for row in self.floors if not row.skipped}
        results = []
        for row in self.rows + self.floors:
            out = {"model": self.title, "engine": row.engine,
                   "dtype": row.dtype}
            results.append(out)
            if row.skipped:
                out["skipped"] = row.skipped
                continue
            rate = round(median(row.runs, "tokens_per_s"))
            out.update(
                threads=self.options.threads, rounds=len(row.runs),
                isa=self.options.isa if row.engine in ("onednn", "products")
                else "", batch=self.batch_text(row), tokens_per_s=rate,
                tokens_per_s_rounds=[run["tokens_per_s"] for run in row.runs],
                single_p50_ms=median(row.singles, "p50_ms"))
            if row.engine != "products":
                own = self.logits(row)
                out.update(
                    single_p99_ms=median(row.singles, "p99_ms"),
                    sequences=row.runs[0]["sequences"],
                    tokens=row.runs[0]["tokens"],
                    max_difference=float(np.abs(own - reference).max()),
                    rank_correlation=spearman(own, reference),
                    **{field: median(row.runs, field) for field in (
                        "start_mib", "loaded_mib", "peak_mib")})
            for dtype, peer in (("fp32", self.rows[0]),
                                ("int8", self.rows[1])):
                out["times_ort_" + dtype] = rate / median(peer.runs,
                                                          "tokens_per_s")
                out["single_of_ort_" + dtype] = (
                    out["single_p50_ms"] / median(peer.singles, "p50_ms"))
            if row.dtype in floors:
                floor = floors[row.dtype]
                out["of_floor"] = rate / median(floor.runs, "tokens_per_s")
                out["single_of_floor"] = (median(floor.singles, "p50_ms") /
                                          out["single_p50_ms"])
        return [{k: float("%.4g" % v) if isinstance(v, float) and
                 k != "rank_correlation" else v for k, v in out.items()}
                for out in results]

    @staticmethod
    def batch_text(row):
        if row.engine == "products":
            return "%d tok." % row.runs[0]["tokens"]
        return row.batch[1] + (" tok." if "tokens" in row.batch[0] else "")


def median(runs, field):
    return statistics.median(run[field] for run in runs)


def spearman(a, b):
    def ranks(values):
        _, group, count = np.unique(values, return_inverse=True,
                                    return_counts=True)
        last = np.cumsum(count)
        return (last - (count - 1) / 2)[group]  # ties share their mean
    return round(float(np.corrcoef(ranks(a), ranks(b))[0, 1]), 6)


# ---- what is printed

def machine(options, floors):
    """Lines that say what ran the bench."""
    info = {}
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    flags = [flag for flag in info.get("flags", "").split()
             if re.match("fma$|avx2|avx_vnni|avx512|amx", flag)]
    with open(os.path.join(options.work, "peer/node_modules/onnxruntime-node",
                           "package.json")) as f:
        ort = json.load(f)
    found = [row.runs[0] for row in floors if row.runs]
    onednn = ("%s, instructions up to %s" % (found[0]["onednn"],
                                             found[0]["isa"])
              if found else "unknown")
    settings = ["%s=%s" % item for item in sorted(os.environ.items())
                if re.match("OPENBLAS_|ONEDNN_|DNNL_|OMP_|GOMP_|KMP_",
                            item[0])]
    lines = [
        "processor: %s, %d cores" % (info.get("model name", "unknown"),
                                     os.cpu_count()),
        "its flags: " + " ".join(flags),
        "threads: %d for every engine; rounds: %d" % (options.threads,
                                                      options.rounds),
        "ONNX Runtime %s (Node.js), LibTorch %s, oneDNN %s" % (
            ort["version"], libtorch_version(options.bin), onednn)]
    if settings:
        lines.append("set by the user: " + " ".join(settings))
    if options.isa:
        lines.append("ONEDNN_MAX_CPU_ISA=%s for onednn and products only: the "
                     "others use what the processor has" % options.isa)
    return lines


def libtorch_version(folder):
    libraries = subprocess.run(
        ["ldd", os.path.join(folder, "engine_bench")], text=True,
        stdout=subprocess.PIPE).stdout
    path = re.search(r"libtorch_cpu\S* => (\S+)", libraries)
    if not path:
        return "unknown"

    def query(*arguments):
        return subprocess.run(["dpkg-query", *arguments], text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout
    path = os.path.realpath(path[1])
    for candidate in (path, re.sub("^/usr/lib", "/lib", path)):
        package = query("-S", candidate).split(": ")[0]
        if package:
            return query("-W", "-f", "${Version}", package)
    return path


COLUMNS = [
    # title, field, format
    ("engine", "engine", "%s"), ("dtype", "dtype", "%s"),
    ("batch", "batch", "%s"), ("tokens/s", "tokens_per_s", "%d"),
    ("x ORT int8", "times_ort_int8", "%.2f"),
    ("x ORT fp32", "times_ort_fp32", "%.2f"), ("of floor", "of_floor", "%.2f"),
    ("p50 ms", "single_p50_ms", "%.3f"), ("p99 ms", "single_p99_ms", "%.3f"),
    ("of ORT int8", "single_of_ort_int8", "%.2f"),
    ("of ORT fp32", "single_of_ort_fp32", "%.2f"),
    ("max diff.", "max_difference", "%.1e"),
    ("rank corr.", "rank_correlation", "%.5f"),
    ("MiB", "loaded_mib", "%.0f"), ("peak MiB", "peak_mib", "%.0f")]


def print_table(results):
    rows = [[title for title, _, _ in COLUMNS]]
    for out in results:
        if "skipped" not in out:
            # Memory is what the model added to the program.
            shown = dict(out)
            for field in ("loaded_mib", "peak_mib"):
                if field in out:
                    shown[field] -= out["start_mib"]
            rows.append([form % shown[field] if field in shown else ""
                         for _, field, form in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))).rstrip())
    for out in results:
        if "skipped" in out:
            print("%s %s: skipped: %s" % (out["engine"], out["dtype"],
                                          out["skipped"]))


def lengths_of(path):
    with open(path) as lines:
        return sorted(len(json.loads(line)["ids"]) for line in lines)


def run(options):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Cut at 32 tokens; the few that are shorter have no place.
    singles = os.path.join(options.work, "singles.jsonl")
    with open(singles) as lines:
        kept = [line for line in lines
                if len(json.loads(line)["ids"]) == SINGLE_TOKENS]
    if not kept:
        sys.exit("no sequence of %d tokens" % SINGLE_TOKENS)
    with open(singles, "w") as out:
        out.writelines(kept)
    load = os.getloadavg()[0]
    if load > 0.25 * os.cpu_count():
        say("load average %.1f: something else runs here, and the figures "
            "will show it" % load)

    benches = [Bench(options, model) for model in options.models]
    for bench in benches:
        say("%s: the best batch of each" % bench.title)
        bench.find_best()
        for number in range(1, options.rounds + 1):
            bench.round(number)

    lengths = lengths_of(os.path.join(options.work, "ids.jsonl"))
    print("\n".join(machine(options, benches[0].floors)))
    print("load average at the start: %.1f" % load)
    print("%d pairs, %d tokens: %d to %d, median %d; single: %d sequences of "
          "%d tokens" % (len(lengths), sum(lengths), lengths[0], lengths[-1],
                         statistics.median(lengths), len(kept), SINGLE_TOKENS))
    everything = []
    for bench in benches:
        results = bench.results()
        everything += results
        print("\n%s\n" % bench.title)
        print_table(results)
    print()
    lines = [json.dumps(out) for out in everything]
    print("\n".join(lines))
    with open(os.path.join(options.work, "rows.jsonl"), "w") as out:
        out.writelines(line + "\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pairs")
    command.add_argument("--data", required=True)
    command.add_argument("--work", required=True)
    command.add_argument("--sequences", type=int, required=True)
    command.add_argument("--singles", type=int, required=True)
    command = commands.add_parser("run")
    command.add_argument("--bin", required=True)
    command.add_argument("--work", required=True)
    command.add_argument("--models", nargs="+", choices=SHAPES, required=True)
    command.add_argument("--rounds", type=int, required=True)
    command.add_argument("--threads", type=int, required=True)
    command.add_argument("--batch-tokens", type=int, required=True)
    command.add_argument("--isa", default="")
    command.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    {"pairs": make_pairs, "run": run}[options.command](options)


if __name__ == "__main__":
    main()
