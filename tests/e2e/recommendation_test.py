"""Recommendation by what goes together, from rows to answers: the ranks that a
server gives are those that training measured."""

import json
import math
import os
import sys

import harness
import models
from harness import pb

ITEMS = 40
# By no text: whoever had an item had, next, the one 7 further on.
NEXT = 7


class RecommendationTest(harness.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.items = [{"id": "i%d" % i,
                      "title": " ".join(models.WORDS[(3 * i + w) % 40]
                                        for w in range(3))}
                     for i in range(ITEMS)]
        cls.users = [[cls.items[(user + NEXT * step) % ITEMS]["id"]
                      for step in range(4)] for user in range(500)]
        cls.held_out = cls.users[400:460]

    def fit(self, *options):
        """A registry with one version, and its report."""
        folder = self.temporary_folder()
        path = lambda name: os.path.join(folder, name)
        rows = lambda users, first: (
            {"user_id": "u%d" % (first + number), "items": items}
            for number, items in enumerate(users))
        models.write_vocab(path("vocab.txt"))
        models.write_lines(path("items.jsonl"), self.items)
        models.write_lines(path("train.jsonl"), rows(self.users[:400], 0))
        models.write_lines(path("held_out.jsonl"), rows(self.held_out, 400))
        models.trainer("init", "--vocab", path("vocab.txt"), "--layers", 2,
                       "--hidden", 32, "--heads", 2, "--out", path("encoder"))
        done = harness.run(
            "vitrine-trainer", "fit", "--from", path("encoder"), "--items",
            path("items.jsonl"), "--task", "recommendation", "--data",
            path("train.jsonl"), "--validation", path("held_out.jsonl"),
            "--epochs", 1, "--freeze", "encoder", "--bf16", "off", "--out",
            path("registry"), "--model", "shop", "--json", *options, check=0)
        return path("registry"), json.loads(done.stdout)["heads"][0]

    def request(self, history, with_ids=True):
        request = pb.RankRequest()
        titles = {item["id"]: item["title"] for item in self.items}
        for item in history:
            request.context.history.add().item.CopyFrom(pb.Item(
                id=item if with_ids else "", title=titles[item]))
        for item in self.items:
            if item["id"] not in history:
                request.items.add(id=item["id"] if with_ids else "",
                                  title=item["title"])
        return request

    def test_a_server_ranks_as_training_measured(self):
        registry, report = self.fit()
        self.assertGreater(report["after"]["ndcg@10"], 0.9)
        self.assertLess(report["baselines"]["text alone"]["ndcg@10"], 0.6)
        stub = self.serve(
            "engine { device: DEVICE_CPU dtype: DTYPE_FP32 }",
            registry=registry).stub()
        ndcg, scores = [], []
        for *history, target in self.held_out:
            answer = stub.Rank(self.request(history), timeout=harness.PATIENCE)
            place = [item.item_id for item in answer.items].index(target)
            ndcg.append(1 / math.log2(place + 2) if place < 10 else 0)
            scores.append(answer.items[place].score)
        self.assertAlmostEqual(sum(ndcg) / len(ndcg),
                               report["after"]["ndcg@10"], places=4)
        self.assertGreater(sum(scores) / len(scores), 0.7)

    def test_ids_change_the_order_and_unknown_ones_do_not_matter(self):
        registry, _ = self.fit()
        stub = self.serve(registry=registry).stub()
        history = [self.items[3]["id"]]
        best = lambda request: stub.Rank(
            request, timeout=harness.PATIENCE).items[0].index
        after = [item.id for item in self.request(history).items].index(
            self.items[3 + NEXT]["id"])
        self.assertEqual(best(self.request(history)), after)
        strangers = self.request(history, with_ids=False)
        for place, item in enumerate(strangers.items):
            item.id = "stranger-%d" % place
        without = self.request(history, with_ids=False)
        order = lambda request: [
            item.index for item in stub.Rank(
                request, timeout=harness.PATIENCE).items]
        self.assertEqual(order(strangers), order(without))

    def test_a_version_without_counts_serves_by_texts(self):
        registry, report = self.fit("--co-occurrence", "off")
        self.assertNotIn("text alone", report["baselines"])
        self.assertNotIn("recommendation.cooccurrence.safetensors",
                         os.listdir(os.path.join(registry, "shop", "1")))
        stub = self.serve(registry=registry).stub()
        answers = [
            [item.index for item in stub.Rank(
                self.request(self.held_out[0][:3], with_ids),
                timeout=harness.PATIENCE).items]
            for with_ids in (True, False)]
        self.assertEqual(answers[0], answers[1])


if __name__ == "__main__":
    if harness.SANITIZED:
        print("skipped: training under a sanitizer takes too long")
        sys.exit(77)
    harness.main()
