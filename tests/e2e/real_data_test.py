"""Real queries and products: a small model learns from a slice of them, is
served, and ranks products for queries that it has not seen.

The data is not part of the project: home_depot.jsonl.gz in the folder that
VITRINE_DATA names, or in ../shared/data beside the repository.
"""

import collections
import gzip
import itertools
import json
import math
import os
import random
import re
import sys

import harness
import models
from harness import pb

DATA = os.path.join(
    os.environ.get("VITRINE_DATA") or
    os.path.join(models.SOURCE_DIR, "..", "shared", "data"),
    "home_depot.jsonl.gz")
TRAINING_QUERIES = 1000
HELD_OUT_QUERIES = 400


def ndcg_at_10(grades):
    """Of grades in the order of a ranking."""
    gain = lambda order: sum((2 ** grade - 1) / math.log2(place + 2)
                             for place, grade in enumerate(order[:10]))
    return gain(grades) / gain(sorted(grades, reverse=True))


def read_queries(count):
    """The first `count` queries whose products differ in grade, with their
    rows."""
    by_query = collections.OrderedDict()
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            by_query.setdefault(row["query"], []).append(row)
    usable = ((query, rows) for query, rows in by_query.items()
              if len(rows) >= 5 and len({row["grade"] for row in rows}) > 1)
    return list(itertools.islice(usable, count))


class RealDataTest(harness.TestCase):

    def train(self, queries):
        """A registry with a model that has seen `queries`."""
        folder = self.temporary_folder()
        path = lambda name: os.path.join(folder, name)
        models.write_lines(path("train.jsonl"), (
            {"query": query, "title": row["title"], "grade": row["grade"]}
            for query, rows in queries for row in rows))
        words = collections.Counter(
            word for query, rows in queries
            for text in [query] + [row["title"] for row in rows]
            for word in re.findall(r"[^\W_]+|[^\w\s]|_", text.lower()))
        letters = sorted({letter for word in words for letter in word})
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces += [word for word, n in words.most_common(8000) if n > 1]
        pieces += letters + ["##" + letter for letter in letters]
        with open(path("vocab.txt"), "w", encoding="utf-8") as out:
            out.write("\n".join(dict.fromkeys(pieces)) + "\n")
        models.trainer("init", "--vocab", path("vocab.txt"), "--layers", 2,
                       "--hidden", 64, "--heads", 2, "--out", path("encoder"))
        models.trainer("fit", "--from", path("encoder"), "--task", "relevance",
                       "--data", path("train.jsonl"), "--grades", "1:3",
                       "--epochs", 3, "--batch-size", 64, "--bf16", "off",
                       "--learning-rate", "3e-3", "--out", path("registry"),
                       "--model", "depot")
        return path("registry")

    def test_a_model_trained_on_a_slice_ranks_queries_it_has_not_seen(self):
        queries = read_queries(TRAINING_QUERIES + HELD_OUT_QUERIES)
        self.assertEqual(len(queries), TRAINING_QUERIES + HELD_OUT_QUERIES)
        server = self.serve(registry=self.train(queries[:TRAINING_QUERIES]),
                            model="depot")
        stub = server.stub()
        shuffle = random.Random(1)
        served, by_chance = [], []
        for query, rows in queries[TRAINING_QUERIES:]:
            rows = shuffle.sample(rows, len(rows))
            response = stub.Rank(pb.RankRequest(
                context=pb.Context(query=query),
                items=[pb.Item(id=row["item_id"], title=row["title"])
                       for row in rows]), timeout=harness.PATIENCE)
            self.assertEqual(sorted(item.index for item in response.items),
                             list(range(len(rows))))
            self.assertFalse(any(i.HasField("error") for i in response.items))
            served.append(ndcg_at_10(
                [rows[item.index]["grade"] for item in response.items]))
            grades = [row["grade"] for row in rows]
            by_chance += [ndcg_at_10(shuffle.sample(grades, len(grades)))
                          for _ in range(50)]
        served = sum(served) / len(served)
        by_chance = sum(by_chance) / len(by_chance)
        print("NDCG@10 of %d held-out queries: %.4f served, %.4f by chance" %
              (HELD_OUT_QUERIES, served, by_chance), flush=True)
        # A quarter of what it gains as a rule, and twice the sampling error.
        self.assertGreater(served, by_chance + 0.008)


if __name__ == "__main__":
    if not os.path.exists(DATA):
        print("skipped: no %s; set VITRINE_DATA" % os.path.normpath(DATA))
        sys.exit(77)
    if harness.SANITIZED:
        print("skipped: training under a sanitizer takes too long")
        sys.exit(77)
    harness.main()
