#!/usr/bin/python3
"""The sample shop: what its generator writes, and hard enough to be of use."""

import collections
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
STARTER = os.path.join(ROOT, "deploy", "starter")
SHOP = os.path.join(STARTER, "shop")


def rows(name):
  with open(os.path.join(SHOP, name), encoding="utf-8") as lines:
    return [json.loads(line) for line in lines]


def words(text):
  return re.findall(r"[a-z0-9]+", text.lower())


def text_of(item):
  return " ".join([item["title"], item["brand"], item["description"]] +
                  item["categories"] + list(item["attributes"].values()))


def mean_ndcg(graded, score):
  """graded: {query: [(item id, grade)]}"""
  def dcg(grades):
    return sum((2**g - 1) / math.log2(i + 2) for i, g in enumerate(grades[:10]))

  total = 0
  for query, pairs in graded.items():
    best = dcg(sorted((g for _, g in pairs), reverse=True))
    ranked = sorted(pairs, key=lambda p: -score(query, p[0]))
    total += dcg([g for _, g in ranked]) / best
  return total / len(graded)


class StarterShopTest(unittest.TestCase):

  @classmethod
  def setUpClass(cls):
    cls.items = {item["id"]: item for item in rows("items.jsonl")}
    cls.graded = collections.defaultdict(list)
    for row in rows("relevance.jsonl"):
      cls.graded[row["query"]].append((row["item_id"], row["grade"]))

  def check(self, folder):
    return subprocess.run(
        [sys.executable, os.path.join(STARTER, "make_shop.py"), "--check",
         "--out", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True)

  def test_is_what_the_generator_writes(self):
    result = self.check(SHOP)
    self.assertEqual((result.returncode, result.stdout), (0, ""))

  def test_check_finds_one_changed_byte(self):
    with tempfile.TemporaryDirectory() as folder:
      for name in os.listdir(SHOP):
        with open(os.path.join(SHOP, name), "rb") as source:
          content = source.read()
        if name == "users.jsonl":
          content = content.replace(b"tent-1", b"tent-2", 1)
        with open(os.path.join(folder, name), "wb") as copy:
          copy.write(content)
      result = self.check(folder)
    self.assertEqual(result.returncode, 1)
    self.assertIn("users.jsonl differs", result.stdout)
    self.assertNotIn("items.jsonl", result.stdout)

  def test_is_a_shop_of_the_promised_size(self):
    categories = {item["categories"][-1] for item in self.items.values()}
    self.assertGreaterEqual(len(self.items), 400)
    self.assertGreaterEqual(len(categories), 20)
    self.assertGreaterEqual(len(self.graded), 300)
    for query, pairs in self.graded.items():
      self.assertEqual(len({i for i, _ in pairs}), len(pairs), query)
      self.assertTrue(20 <= len(pairs) <= 30, query)
      self.assertLess({3}, {g for _, g in pairs}, query)
      self.assertLessEqual({g for _, g in pairs}, {0, 1, 2, 3}, query)

  def test_every_reference_resolves(self):
    ids = set(self.items)
    labels = {item["categories"][-1] for item in self.items.values()}
    self.assertLessEqual({i for p in self.graded.values() for i, _ in p}, ids)
    histories = {r["user_id"]: r["items"] for r in rows("users.jsonl")}
    for user, history in histories.items():
      self.assertGreaterEqual(len(history), 2, user)
      self.assertLessEqual(set(history), ids, user)
    for row in rows("interest.jsonl"):
      whole = histories[row["user_id"]]
      self.assertEqual(row["items"], whole[:len(row["items"])])
      self.assertTrue(row["categories"])
      self.assertLessEqual(set(row["categories"]), labels)
    self.assertEqual({r["label"] for r in rows("categories.jsonl")}, labels)

  def test_a_part_of_the_reviews_are_none(self):
    labels = collections.Counter(r["label"] for r in rows("reviews.jsonl"))
    self.assertEqual(set(labels), {"normal", "anomaly"})
    share = labels["anomaly"] / sum(labels.values())
    self.assertTrue(0.1 < share < 0.3, labels)
    self.assertEqual(len({r["text"] for r in rows("reviews.jsonl")}),
                     sum(labels.values()))

  def test_matching_words_ranks_better_than_chance_and_far_from_well(self):
    documents = {i: collections.Counter(words(text_of(item)))
                 for i, item in self.items.items()}
    frequency = collections.Counter(w for d in documents.values() for w in d)
    mean = sum(sum(d.values()) for d in documents.values()) / len(documents)

    def bm25(query, item_id):
      document = documents[item_id]
      length = sum(document.values()) / mean
      score = 0
      for word in words(query):
        idf = math.log(1 + (len(documents) - frequency[word] + .5) /
                       (frequency[word] + .5))
        tf = document[word]
        score += idf * tf * 2.2 / (tf + 1.2 * (.25 + .75 * length))
      return score

    chance = random.Random(1)
    by_chance = mean_ndcg(self.graded, lambda *_: chance.random())
    by_words = mean_ndcg(self.graded, bm25)
    self.assertLess(by_chance, 0.45)
    self.assertGreater(by_words, by_chance + 0.2)
    self.assertLess(by_words, 0.75)


if __name__ == "__main__":
  unittest.main()
