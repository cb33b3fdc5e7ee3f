#!/usr/bin/env python3
"""Learning from labels as they come in, on real data, from end to end.

Home Depot's search relevance data: a fifth of the queries, by a hash, is never
labelled and stays for measuring. The others are split in two (--first-share:
halves). The first part is imported as labels and trains the first version; the
second arrives by RecordFeedback, until the policy of the worker starts a job by itself; what
it trains passes the gate and is activated by the server. After each step the
server ranks the products of the queries kept for measuring.

    python3 tests/bench/learning.py --data home_depot.jsonl.gz

Prints a table, and one JSON line with the same numbers. Some minutes on two
cores; everything is in a temporary folder (--keep to have another, and keep it).
"""

import argparse
import collections
import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
os.chdir(ROOT)

import harness  # noqa: E402
from harness import BIN_DIR, pb  # noqa: E402
from vitrine.v1 import admin_pb2, feedback_pb2, feedback_pb2_grpc  # noqa: E402

MODEL = "depot"
TOKEN = "learning-bench-token-0123456789"
# Rows with an entry that was refused end the run.
BATCH = 500


def share(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2.0 ** 32


def ndcg_at_10(grades):
    """Of grades from 1 to 3 in the order of a ranking."""
    gain = lambda order: sum((2 ** (grade - 1) - 1) / math.log2(place + 2)
                             for place, grade in enumerate(order[:10]))
    return gain(grades) / gain(sorted(grades, reverse=True))


def read(path, first_share):
    """Rows for measuring by query, and the two parts for labelling."""
    measured, parts = collections.OrderedDict(), ([], [])
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            # Held out as the project's baselines hold out: by the query.
            if share("test " + row["query"]) < 0.2:
                measured.setdefault(row["query"], []).append(row)
            else:
                parts[share("half " + row["query"]) >= first_share].append(row)
    measured = {query: rows for query, rows in measured.items()
                if len(rows) > 1 and len({row["grade"] for row in rows}) > 1}
    return measured, parts


def write_encoder(folder, rows, options):
    """A random encoder whose vocabulary is of the first part's words."""
    words = collections.Counter(
        word for row in rows for text in (row["query"], row["title"])
        for word in re.findall(r"[^\W_]+|[^\w\s]|_", text.lower()))
    letters = sorted({letter for word in words for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [word for word, n in words.most_common(options.words) if n > 1]
    pieces += letters + ["##" + letter for letter in letters]
    vocab = os.path.join(folder, "vocab.txt")
    with open(vocab, "w", encoding="utf-8") as out:
        out.write("\n".join(dict.fromkeys(pieces)) + "\n")
    encoder = os.path.join(folder, "encoder")
    harness.run("vitrine-trainer", "init", "--vocab", vocab, "--layers",
                options.layers, "--hidden", options.hidden, "--heads",
                options.hidden // 64, "--segments", 2 if options.plain else 4,
                "--out", encoder, check=0)
    harness.run("vitrine-trainer", "import", "--from", encoder, "--out",
                os.path.join(folder, "registry"), "--model", MODEL, check=0)


def feedback(number, row):
    return feedback_pb2.Feedback(
        feedback_id="depot-%d" % number,
        relevance=feedback_pb2.RelevanceJudgement(
            query=row["query"], grade=(row["grade"] - 1) / 2,
            item=pb.Item(id=row["item_id"], title=row["title"])))


class Loop:
    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.path = lambda *names: os.path.join(folder, *names)
        with open(self.path("token"), "w") as out:
            out.write(TOKEN + "\n")
        self.recipe = """
          tasks { kind: TRAINING_TASK_KIND_RELEVANCE }
          epochs: %d learning_rate: %g batch_size: 64 seed: %d replay_share: 0.5
          patience: %d %s
          gate { rules { metric: "ndcg@10" min_change: %g %s } }""" % (
            options.epochs, options.learning_rate, options.seed,
            options.patience,
            "relevance_loss: RELEVANCE_LOSS_LAMBDA" if options.lambda_loss
            else "", options.min_change,
            "evidence: GATE_EVIDENCE_PROOF_OF_GAIN" if options.proof else "")
        self.server = harness.Server(
            self.path("registry"), model="", config="""
              models { name: "%s" activation: ACTIVATION_AUTOMATIC }
              store { url: "sqlite:%s" }
              admin { listen: "127.0.0.1:0" token_file: "%s" }""" % (
                MODEL, self.path("labels.db"), self.path("token")))
        self.worker = None
        with open(self.server.port_file) as lines:
            self.admin = "127.0.0.1:" + lines.read().split()[2]

    def vitrine(self, *arguments, stdin=""):
        return harness.run(
            "vitrine", "--target", self.server.target, "--admin-target",
            self.admin, "--token-file", self.path("token"), "--json",
            *arguments, stdin=stdin, check=0, timeout=3600).stdout

    def start_worker(self, policy):
        with open(self.path("worker.textproto"), "w") as out:
            out.write("""registry: "%s" store { url: "sqlite:%s" }
                policies { model: "%s" min_new_labels: %d recipe { %s } }""" % (
                    self.path("registry"), self.path("labels.db"), MODEL,
                    policy, self.recipe))
        self.worker = subprocess.Popen(
            [os.path.join(BIN_DIR, "vitrine-trainer"), "work", "--config",
             self.path("worker.textproto")],
            stderr=open(self.path("worker.log"), "w"))

    def jobs(self):
        return json.loads(self.vitrine("train", "list"))["jobs"]

    def wait_for_job(self, number):
        """The job, once it has ended; its progress on the terminal."""
        shown = None
        while True:
            jobs = [job for job in self.jobs() if int(job["id"]) == number]
            job = jobs[0] if jobs else {"state": "not there yet"}
            progress = job.get("progress", {})
            line = "job %d %s, epoch %s of %s" % (
                number, job["state"].rsplit("_", 1)[-1].lower(),
                progress.get("epoch", 0), progress.get("epochs", 0))
            if line != shown:
                print(line, file=sys.stderr, flush=True)
                shown = line
            if jobs and job["state"].rsplit("_", 1)[-1] in (
                    "SUCCEEDED", "REJECTED", "FAILED", "CANCELLED"):
                return job
            time.sleep(1)

    def wait_for_version(self, version):
        harness.wait_until(
            lambda: self.serving() == version, "version %d" % version)

    def serving(self):
        listed = json.loads(self.vitrine("status"))
        return int(listed["models"][0]["model"]["version"])

    def measure(self, measured):
        """Mean NDCG@10 of the queries as the server ranks them."""
        stub = self.server.stub()
        shuffle, sum_of = random.Random(1), 0.0
        for query, rows in measured.items():
            rows = shuffle.sample(rows, len(rows))
            response = stub.Rank(pb.RankRequest(
                context=pb.Context(query=query),
                items=[pb.Item(id=row["item_id"], title=row["title"])
                       for row in rows]), timeout=harness.PATIENCE)
            sum_of += ndcg_at_10([rows[item.index]["grade"]
                                  for item in response.items])
        return sum_of / len(measured)

    def close(self):
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait()
        self.server.close()


def change(job, metric="ndcg@10"):
    for found in job["metrics"]:
        if found["name"] == metric:
            return found
    return {}


def run(folder, options):
    measured, (first, second) = read(options.data, options.first_share)
    print("%d queries for measuring; %d and %d rows to label"
          % (len(measured), len(first), len(second)), file=sys.stderr)
    write_encoder(folder, first, options)
    loop = Loop(folder, options)
    steps = []

    def step(what, rows, seconds, job=None):
        gate = change(job) if job else {}
        steps.append({
            "step": what, "version": loop.serving(), "labels": rows,
            "held_out_ndcg@10": None if options.skip_untrained and not job
                                else loop.measure(measured),
            "gate_before": gate.get("before"), "gate_value": gate.get("value"),
            "gate_change": [gate.get("change_low"), gate.get("change_high")],
            "seconds": seconds})
        print(json.dumps(steps[-1]), file=sys.stderr, flush=True)

    try:
        # The first part, in bulk; an admin starts the first training.
        lines = "\n".join(
            json.dumps({"feedback_id": "depot-%d" % number, "relevance": {
                "query": row["query"], "grade": (row["grade"] - 1) / 2,
                "item": {"id": row["item_id"], "title": row["title"]}}})
            for number, row in enumerate(first))
        imported = json.loads(loop.vitrine("label", "import", "-",
                                           stdin=lines + "\n"))
        assert int(imported["stored"]) == len(first), imported
        with open(os.path.join(folder, "recipe.textproto"), "w") as out:
            # There is nothing in service to be better than.
            out.write(re.sub(r"gate \{.*\}", "", loop.recipe, flags=re.S))
        start = time.time()
        loop.start_worker(policy=len(second) // 2)
        loop.vitrine("train", "start", "--recipe",
                     os.path.join(folder, "recipe.textproto"))
        job = loop.wait_for_job(1)
        assert job["state"].endswith("SUCCEEDED"), job
        loop.wait_for_version(int(job["result_version"]))
        step("first part, by an admin", len(first), time.time() - start, job)

        # The second part, as it comes; the policy starts the training.
        stub = feedback_pb2_grpc.FeedbackServiceStub(loop.server.channel())
        start = time.time()
        for begin in range(0, len(second), BATCH):
            request = feedback_pb2.RecordFeedbackRequest(feedback=[
                feedback(len(first) + begin + i, row)
                for i, row in enumerate(second[begin:begin + BATCH])])
            answer = stub.RecordFeedback(request, timeout=harness.PATIENCE)
            assert answer.stored == len(request.feedback), answer
        recorded = time.time() - start
        number = 2
        while True:
            job = loop.wait_for_job(number)
            assert job["created_by"] == "policy", job
            if job["state"].endswith("SUCCEEDED"):
                loop.wait_for_version(int(job["result_version"]))
            step("second part, by policy (%s)"
                 % job["state"].rsplit("_", 1)[-1].lower(),
                 int(job["label_watermark"]), time.time() - start, job)
            # The policy may have begun before the last label had come.
            time.sleep(5)
            if len(loop.jobs()) == number:
                break
            number += 1
    finally:
        loop.close()
    return {"queries_measured": len(measured), "rows_first": len(first),
            "rows_second": len(second), "record_seconds": recorded,
            "steps": steps}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True,
                        help="home_depot.jsonl.gz: query, item_id, title, "
                        "grade from 1 to 3")
    parser.add_argument("--first-share", type=float, default=0.5,
                        help="of the labels, imported before the rest comes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--patience", type=int, default=1,
                        help="epochs without gain before a job ends")
    parser.add_argument("--lambda-loss", action="store_true",
                        help="LambdaLoss in place of the graded loss alone")
    parser.add_argument("--plain", action="store_true",
                        help="an encoder without match marks")
    parser.add_argument("--min-change", type=float, default=0,
                        help="of NDCG@10, for the gate")
    parser.add_argument("--proof", action="store_true",
                        help="the gate wants proof of a gain, not just none "
                        "of harm")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--words", type=int, default=12000,
                        help="of the vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="a folder for what is made")
    options = parser.parse_args()
    options.skip_untrained = True
    folder = options.keep or tempfile.mkdtemp(prefix="vitrine-learning-")
    os.makedirs(folder, exist_ok=True)
    try:
        result = run(folder, options)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print("%-40s %8s %8s %10s %22s" % (
        "", "version", "NDCG@10", "gate", "change"))
    for row in result["steps"]:
        low, high = row["gate_change"]
        print("%-40s %8d %8.4f %10.4f %22s" % (
            row["step"], row["version"], row["held_out_ndcg@10"],
            row["gate_value"],
            "" if low is None else "[%+.4f, %+.4f]" % (low, high)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
