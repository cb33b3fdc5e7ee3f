"""Runs what quality.sh says: see there."""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import data
import markdown
import tasks

ROOT = pathlib.Path(__file__).resolve().parents[3]
RECIPES = ROOT / "deploy" / "recipes"
STARTER = ROOT / "deploy" / "starter" / "model"
ARMS = ("scratch", "starter", "domain")
PARTS = (0.01, 0.1, 1.0)
ALONE = ("--ngrams", "off")  # the encoder
# That an encoder reads of a task's texts, at most.
TOKENS, FAST_TOKENS = 1000000, 200000
EPOCHS = {0.01: 10, 0.1: 3}  # of a part; all of the rows have the recipe's
# Tasks whose versions others start from or are scored by.
KEPT = ("home_depot", "crowdflower", "instacart")
# A version's file that says what it was trained by; loads pass over its name.
STAMP = ".quality.key"


class Failed(Exception):
    pass


def digest(*parts):
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, pathlib.Path):
            part = part.read_bytes()
        sha.update(part if isinstance(part, bytes) else str(part).encode())
    return sha.hexdigest()[:16]


class Bench:
    """Measures columns of tasks, several at a time, each on one thread: the
    figures are the same whatever the number of cores, and two runs share two
    cores better than one run does."""

    def __init__(self, options):
        self.options = options
        self.work = options.out
        self.trainer = ROOT / "build" / "release" / "bin" / "vitrine-trainer"
        self.folders = (options.data, options.test)
        self.results = self.work / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
        self.lock = threading.Lock()  # of the log, texts and folder_locks
        self.folder_locks = {}

    def say(self, text):
        print("%s %s" % (time.strftime("%H:%M:%S"), text), file=sys.stderr,
              flush=True)

    def run(self, *arguments):
        """vitrine-trainer's, or its last lines if it fails."""
        command = [str(self.trainer)] + [str(a) for a in arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL)
        log = self.work / "log.txt"
        with self.lock, open(log, "ab") as file:
            file.write(("\n$ " + " ".join(command) + "\n").encode())
            file.write(done.stdout)
        if done.returncode != 0:
            tail = done.stdout.decode(errors="replace").splitlines()[-5:]
            raise Failed("%s: exit status %d; the end of what %s has:\n  %s"
                         % (command[1], done.returncode, log,
                            "\n  ".join(tail)))

    def once(self, name, key, make):
        """make(), or what it gave when it was run before with this key."""
        path = self.results / (name + ".json")
        if path.exists():
            old = json.loads(path.read_text())
            if old["key"] == key:
                return old["value"]
        begin = time.monotonic()
        value = make()
        path.with_suffix(".new").write_text(json.dumps(
            {"key": key, "value": value,
             "seconds": round(time.monotonic() - begin, 1)}))
        path.with_suffix(".new").rename(path)
        return value

    # ---- Encoders ----

    def folder(self, name, key, make):
        """A folder that make(folder) fills, kept while the key stays."""
        path = self.work / "encoders" / name
        stamp = path / "quality.key"
        with self.lock:
            lock = self.folder_locks.setdefault(name, threading.Lock())
        with lock:
            if stamp.exists() and stamp.read_text() == key:
                return path
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
            stamp.write_text(key)
            return path

    def shape(self):
        config = json.loads((STARTER / "config.json").read_text())
        return ["--layers", config["num_hidden_layers"],
                "--hidden", config["hidden_size"],
                "--heads", config["num_attention_heads"]]

    def scratch(self, pieces):
        """Random weights in the starter's shape, over a folder's pieces."""
        def make(path):
            self.run("init", "--spm", pieces / "spiece.model", "--spm-layout",
                     "albert", *self.shape(), "--max-positions", 512,
                     "--segments", 4, "--out", path)
        key = digest(pieces / "spiece.model", *self.shape())
        return self.folder("scratch-" + key, key, make)

    def domain(self, task, texts):
        """Continued pre-training on the task's own texts, without labels; for
        another language, all of it."""
        path = self.work / "texts" / (task.name + ".jsonl")
        path.parent.mkdir(exist_ok=True)
        with self.lock:
            data.write(path, texts)
        recipe = RECIPES / ("pretrain-chinese.toml" if task.own_pieces
                            else "pretrain-domain.toml")
        key = digest(path, recipe, "" if task.own_pieces
                     else STARTER / "model.safetensors", self.options.fast)

        def make(folder):
            source = self.shape() if task.own_pieces else ["--from", STARTER]
            limit = ["--tokens", FAST_TOKENS if self.options.fast else TOKENS]
            size = sum(len(json.dumps(t, ensure_ascii=False)) for t in texts)
            # Twice through a few texts is enough; more would be learnt by
            # heart.
            if not task.own_pieces and size < 4 * limit[1]:
                limit = ["--epochs", 2]
            self.run("pretrain", "--recipe", recipe, *source, *limit,
                     "--threads", 1, "--text", path, "--fields", task.fields,
                     "--out", folder)
        # Tasks over the same texts share them.
        return self.folder("domain-" + key, key, make)

    def encoder(self, task, arm):
        if arm == "domain":
            return self.domain(task, task.texts)
        if arm.startswith("starter"):
            return STARTER
        return self.scratch(self.encoder(task, "domain") if task.own_pieces
                            else STARTER)

    # ---- Runs ----

    def labels(self, task, part=1.0, seed=1):
        """The rows to learn from: that part of them, each seed's own; with
        --fast a tenth of a large set."""
        rows = task.train
        if self.options.fast and len(rows) >= 3000:
            rows = data.share(rows, task.key, 0.1)
        return data.share(rows, task.key, part, seed)

    def fit(self, task, source, train, seed, name, extra=(), trained=None):
        """The version's folder, and the rows of `evaluate --scores`; of the
        version `trained` where there is one."""
        place = self.work / "runs" / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        data.write(place / "test.jsonl", task.test + (task.strangers or []))
        rows = ["--task", task.kind, *task.flags]
        if task.items:
            data.write(place / "items.jsonl", task.items)
            rows = ["--items", place / "items.jsonl", *rows]
        version = trained
        if version is None:
            data.write(place / "train.jsonl", train)
            registry = place / "registry"
            self.run("fit", "--recipe", RECIPES / (task.recipe + ".toml"),
                     "--from", source, "--out", registry, "--model", "quality",
                     *rows, "--data", place / "train.jsonl", "--seed", seed,
                     "--threads", 1, *extra)
            version = registry / "quality" / "1"
        self.run("evaluate", "--from", version, *rows, "--threads", 1,
                 "--data", place / "test.jsonl", "--scores",
                 place / "scores.jsonl")
        with open(place / "scores.jsonl", encoding="utf-8") as file:
            scores = [json.loads(line) for line in file]
        return version, scores

    def measure(self, task, arm, part=1.0, seed=1, source=None, extra=()):
        train = self.labels(task, part, seed)
        name = "%s-%s-%g-%d" % (task.name, arm.replace(" ", "-"), part, seed)
        recipe = RECIPES / (task.recipe + ".toml")
        source = source or self.encoder(task, arm)
        trained_by = digest(recipe, source / "model.safetensors",
                            len(train), extra, seed)
        key = digest(trained_by, self.options.fast, len(task.test),
                     self.options.test)

        def make():
            keep = self.work / "versions" / name
            trained = self.work / "versions" / (
                "%s-%s-1-1" % (task.trained_as, arm))
            stamp = trained / STAMP
            if not stamp.exists() or stamp.read_text() != trained_by:
                trained = None
            version, scores = self.fit(task, source, train, seed, name, extra,
                                       trained)
            if part == 1.0 and task.name in KEPT:
                shutil.rmtree(keep, ignore_errors=True)
                keep.parent.mkdir(exist_ok=True)
                shutil.move(version, keep)
                (keep / STAMP).write_text(trained_by)
            shutil.rmtree(self.work / "runs" / name)
            return task.judge(scores)

        value = self.once(name, key, make)
        self.say("%s: %s" % (name, "  ".join(
            "%s %.4f" % (m, v) for m, v in value.items())))
        return value

    def baseline(self, task, part=1.0, seed=1):
        train = self.labels(task, part, seed)
        return self.once("%s-baseline-%g-%d" % (task.name, part, seed),
                         digest(len(train), len(task.test), self.options.fast,
                                self.options.test),
                         lambda: task.baseline(train))

    def columns(self, task):
        """{title: what measures it}, but for what needs another task's."""
        out = {"classical": lambda: self.baseline(task)}
        for arm in ARMS:
            if not (task.own_pieces and arm == "starter"):
                out[arm] = lambda arm=arm: self.measure(task, arm)
        if task.kind == "recommendation":
            out["text alone"] = lambda: self.measure(
                task, "text", source=self.encoder(task, "domain"),
                extra=("--co-occurrence", "off"))
        return out

    def after(self, task):
        """Begun from another task's version, if there is one."""
        first = self.work / "versions" / ("%s-domain-1-1" % task.after)
        if first.exists():
            return self.measure(task, "after", source=first)

    def table(self, names):
        print("task\tmetric\tclassical\tscratch\tstarter\tstarter+domain")
        chosen = [tasks.TASKS[name](self.folders) for name in names]
        running = {}

        def begin(task, title, measure, needs=()):
            # What it waits for was begun before it, and so is running or done.
            def wait_and_measure():
                concurrent.futures.wait(needs)
                return measure()
            running[task.name, title] = self.pool.submit(wait_and_measure)

        for task in chosen:
            needs = [future for (name, _), future in running.items()
                     if name == task.trained_as]
            for title, measure in self.columns(task).items():
                begin(task, title, measure, needs)
        for task in chosen:
            if task.after:
                begin(task, "after " + task.after,
                      lambda task=task: self.after(task),
                      [future for key, future in running.items()
                       if key == (task.after, "domain")])
        rows = []
        for task in chosen:
            columns = {title: future.result()
                       for (name, title), future in running.items()
                       if name == task.name}
            rows.append({"task": task.name, "train": len(task.train),
                         "test": len(task.test),
                         "classical_method": task.baseline_name,
                         "fast": self.options.fast,
                         "columns": {title: value for title, value
                                     in columns.items() if value}})
            self.print_lines(rows[-1])
        if self.options.markdown:
            self.options.markdown.write_text(markdown.tasks_table(rows))

    def print_lines(self, row):
        columns = row["columns"]
        for metric in columns["classical"] | columns["domain"]:
            def cell(column):
                value = columns.get(column, {}).get(metric)
                return "-" if value is None else "%.4f" % value
            line = [row["task"], metric] + [
                cell(c) for c in ("classical",) + ARMS]
            line += ["%s: %s" % (c, cell(c)) for c in columns
                     if c not in ARMS + ("classical",)]
            print("\t".join(line))
        print(json.dumps(row), flush=True)

    # ---- Few labels ----

    def few_labels(self):
        running = {}
        for name in tasks.FEW_LABELS:
            task = tasks.TASKS[name](self.folders)
            columns = {"classical": None, "scratch": (), "starter": (),
                       "scratch alone": ALONE, "starter alone": ALONE}
            for part, column in itertools.product(PARTS, columns):
                # Fewer rows, more times through them.
                more = ("--epochs", EPOCHS[part]) if part < 1 else ()
                running[name, column, part] = [
                    self.pool.submit(self.baseline, task, part, seed)
                    if column == "classical" else
                    self.pool.submit(self.measure, task, column, part, seed,
                                     extra=more + columns[column])
                    for seed in (range(1, 6) if part < 1 else (1,))]
        # {task: {"metric", column: [its values for each of PARTS]}}
        curves = {}
        for (name, column, _), futures in running.items():
            metric = tasks.FEW_LABELS[name]
            curve = curves.setdefault(name, {"metric": metric})
            curve.setdefault(column, []).append(
                [future.result()[metric] for future in futures])
        self.print_curves(curves)
        if self.options.markdown:
            self.options.markdown.write_text(
                markdown.curves_table(curves, PARTS))
        if self.options.plot:
            import plot
            plot.few_labels(curves, PARTS, self.options.plot)

    def print_curves(self, curves):
        print("task\tmetric\tlabels\t" + "\t".join(markdown.CURVES))
        for name, curve in curves.items():
            for i, part in enumerate(PARTS):
                cells = [markdown.mean_and_range(curve[column][i])
                         if column in curve else "-"
                         for column in markdown.CURVES]
                print("\t".join([name, curve["metric"], "%g%%" % (100 * part)]
                                + cells))
        print(json.dumps({"few_labels": curves}), flush=True)


def main():
    parser = argparse.ArgumentParser(prog="quality.sh")
    parser.add_argument("data")
    parser.add_argument("test", nargs="?", default="")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", action="append", choices=list(tasks.TASKS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--few-labels", action="store_true")
    parser.add_argument("--plot", default="")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path,
                        default=ROOT / "build" / "quality")
    bench = Bench(parser.parse_args())
    if not bench.trainer.exists():
        sys.exit("no %s: cmake --preset release && cmake --build build/release"
                 % bench.trainer)
    begin = time.monotonic()
    try:
        if bench.options.few_labels:
            bench.few_labels()
        else:
            bench.table(bench.options.only or tasks.TASKS)
    except (data.DataError, Failed) as error:
        bench.pool.shutdown(cancel_futures=True)
        sys.exit("quality.sh: %s" % error)
    except KeyboardInterrupt:
        bench.pool.shutdown(cancel_futures=True)
        sys.exit("\ninterrupted; the same command goes on")
    bench.say("done in %.0f s" % (time.monotonic() - begin))


if __name__ == "__main__":
    main()
