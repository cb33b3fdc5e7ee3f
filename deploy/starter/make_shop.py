#!/usr/bin/python3
"""Writes the sample shop: products, graded queries, shoppers, reviews.

  make_shop.py            writes shop/ beside this file
  make_shop.py --out DIR  writes there
  make_shop.py --check    generates again and compares with shop/; exit 1 and
                          the names of files that differ

Everything is made up from words.py by the rules below; README.md describes
the files. The standard library is enough, and the result depends on nothing
but this folder: of Python's random module only random() is used, whose
sequence for a seed is fixed across versions.

How a product is graded for a query. A query names a type of product (by its
name or by a synonym that no product carries) and up to two wishes: brand,
colour, material or size.
  another type              0, accessories of the type and what it is an
                            accessory of included; 1 for types that a shopper
                            might take instead
  the type                  3, less 1 for each wish that it misses, less 2
                            where it is the size, which is of no use; never
                            less than 1
"""

import argparse
import filecmp
import json
import os
import random
import sys
import tempfile

from words import (COLOUR_ASKS, DEPARTMENTS, FOREIGN_REVIEWS, INTERESTS,
                   PALETTES, REVIEW_ENDS, REVIEW_MIDDLES, REVIEW_STARTS, SIZES,
                   TYPES)

SEED = 20240229
ITEMS_PER_TYPE = 8
QUERIES_PER_TYPE = 8
# How many of them use the title's own name, which word matching would find.
BY_TITLE_NAME = 2
CANDIDATES = 26
TEXTS_PER_NAME = 10
REVIEWS_PER_TYPE = 12
FOREIGN_PER_TYPE = 4
USERS = 900
FLUFF = ["cheap", "best", "new", "buy"]


class Dice:
  """Choices made of random() alone, so that no version changes them."""

  def __init__(self, purpose):
    self._random = random.Random("%d/%s" % (SEED, purpose))

  def chance(self, probability):
    return self._random.random() < probability

  def below(self, n):
    return int(self._random.random() * n)

  def pick(self, values):
    return values[self.below(len(values))]

  def shuffled(self, values):
    values = list(values)
    for i in range(len(values) - 1, 0, -1):
      j = self.below(i + 1)
      values[i], values[j] = values[j], values[i]
    return values

  def weighted(self, values, weights):
    x = self._random.random() * sum(weights)
    for value, weight in zip(values, weights):
      x -= weight
      if x < 0:
        return value
    return values[-1]


DEPARTMENT_OF = {
    category: department
    for department, categories in DEPARTMENTS.items()
    for category in categories
}
BRANDS_OF = {
    category: brands
    for categories in DEPARTMENTS.values()
    for category, brands in categories.items()
}
TYPE_OF = {t.key: t for t in TYPES}


def title_case(words):
  return " ".join(w[:1].upper() + w[1:] for w in words.split(" "))


# Products ------------------------------------------------------------------


def make_items():
  """[(type, {wish kind: value}, the row of items.jsonl)]"""
  items = []
  for t in TYPES:
    dice = Dice("items/" + t.key)
    choices = {
        "brand": dice.shuffled(BRANDS_OF[t.category]),
        "color": dice.shuffled(PALETTES[t.palette]),
        "material": dice.shuffled(t.materials),
        "size": dice.shuffled(SIZES[t.sizes]),
    }
    seen = set()
    while len(seen) < ITEMS_PER_TYPE:
      facts = {}
      for kind, values in choices.items():
        if values:
          facts[kind] = dice.pick(values)
      feature = dice.pick(t.features)
      look = (feature,) + tuple(sorted(facts.items()))
      if look in seen:
        continue
      seen.add(look)
      title = title_case(" ".join(
          filter(None, [feature, facts.get("material"), t.name])))
      for kind in ("color", "size"):
        if kind in facts:
          title += ", " + title_case(facts[kind])
      attributes = {k: v for k, v in facts.items() if k != "brand"}
      items.append((t, facts, {
          "id": "%s-%d" % (t.key, len(seen)),
          "title": title,
          "brand": facts["brand"],
          "description": t.use,
          "categories": [DEPARTMENT_OF[t.category], t.category],
          "attributes": attributes,
      }))
  return items


# Search --------------------------------------------------------------------


def grade(query_type, wishes, item_type, facts):
  if item_type.key != query_type.key:
    return 1 if item_type.key in query_type.like else 0
  missed = 0
  for kind, value in wishes.items():
    if facts.get(kind) != value:
      missed += 2 if kind == "size" else 1
  return max(1, 3 - missed)


def write_query(dice, name, wishes):
  words = []
  if dice.chance(0.08):
    words.append(dice.pick(FLUFF))
  if "brand" in wishes:
    words.append(wishes["brand"].lower())
  if "color" in wishes:
    colour = wishes["color"]
    asks = COLOUR_ASKS.get(colour, [])
    words.append(dice.pick(asks) if asks and dice.chance(0.4) else colour)
  if "material" in wishes:
    words.append(wishes["material"])
  words.append(name)
  if "size" in wishes:
    words.append(wishes["size"])
  return " ".join(words)


def draw_wishes(dice, own):
  """Up to two facts of one product, so that something is worth a grade 3."""
  facts = dice.pick(own)
  count = dice.weighted([0, 1, 2], [0.15, 0.55, 0.3])
  return {k: facts[k] for k in sorted(dice.shuffled(sorted(facts))[:count])}


def candidates(dice, query_type, wishes, items):
  """What a first search stage might return: right, near and wrong."""
  same, near, lookalike, far = [], [], [], []
  for item in items:
    t, facts, _ = item
    shares = sum(facts.get(k) == v for k, v in wishes.items())
    if t.key == query_type.key:
      same.append(item)
    elif (t.accessory_of == query_type.key or
          query_type.accessory_of == t.key or t.key in query_type.like or
          set(t.name.split(" ")) & set(query_type.name.split(" "))):
      near.append(item)
    elif shares:
      lookalike.append((-shares, item))
    else:
      far.append(item)
  chosen = same + dice.shuffled(near)[:6]
  lookalike = dice.shuffled(lookalike)
  lookalike.sort(key=lambda x: x[0])  # those that meet more wishes first
  chosen += [item for _, item in lookalike][:5]
  chosen += dice.shuffled(far)[:CANDIDATES - len(chosen)]
  return dice.shuffled(chosen)


def make_relevance(items):
  """Rows of relevance.jsonl, a query's rows together."""
  rows = []
  seen = set()
  for t in TYPES:
    own = [facts for item_type, facts, _ in items if item_type.key == t.key]
    dice = Dice("queries/" + t.key)
    made = 0
    while made < QUERIES_PER_TYPE:
      name = (t.name if made < BY_TITLE_NAME else
              t.asks[made % len(t.asks)])
      wishes = draw_wishes(dice, own)
      query = write_query(dice, name, wishes)
      if query in seen:
        continue
      seen.add(query)
      made += 1
      for item_type, item_facts, item in candidates(dice, t, wishes, items):
        rows.append({
            "query": query,
            "item_id": item["id"],
            "grade": grade(t, wishes, item_type, item_facts),
        })
  return rows


# Shoppers ------------------------------------------------------------------


def make_users(items):
  """Rows of users.jsonl and of interest.jsonl.

  A shopper has one or two interests and follows each one's series from some
  point on, with now and then a product from elsewhere, and prefers one
  brand's rank and one colour. interest.jsonl holds a short and a longer first
  part of the history and the categories of all that belongs to the interests,
  bought yet or not.
  """
  by_type = {}
  for t, facts, row in items:
    by_type.setdefault(t.key, []).append((facts, row["id"]))
  colours = sorted({c for palette in PALETTES.values() for c in palette})
  series = {name: keys.split() for name, keys in INTERESTS.items()}
  names = list(series)
  users, interests = [], []
  for number in range(USERS):
    dice = Dice("user/%d" % number)
    mine = dice.shuffled(names)[:dice.weighted([1, 2], [0.4, 0.6])]
    colour = dice.pick(colours)
    rank = dice.below(3)

    def buy(key):
      weights = []
      for i, (facts, _) in enumerate(by_type[key]):
        weight = 1.0 / (1 + i)  # some products sell better than others
        if facts["brand"] == BRANDS_OF[TYPE_OF[key].category][rank]:
          weight *= 6
        if facts.get("color") == colour:
          weight *= 3
        weights.append(weight)
      return dice.weighted([item_id for _, item_id in by_type[key]], weights)

    history = []
    begun = 0  # the length of the history at which the last interest shows
    for name in mine:
      keys = series[name]
      begun = len(history) + 2
      # A start that leaves at least three steps.
      for key in keys[dice.below(max(1, len(keys) - 3)):]:
        if dice.chance(0.06):
          continue
        if dice.chance(0.07):
          history.append(buy(dice.pick(TYPES).key))
        history.append(buy(key))
    user_id = "u%04d" % (number + 1)
    categories = {TYPE_OF[k].category for name in mine for k in series[name]}
    # At least one product of each interest, or nobody could know of it.
    longer = max(2, len(history) - 1 - dice.below(2))
    for cut in sorted({max(2, begun), longer}):
      interests.append({
          "user_id": user_id,
          "items": history[:cut],
          "categories": sorted(categories),
      })
    users.append({"user_id": user_id, "items": history})
  return users, interests


# Classification ------------------------------------------------------------


def make_categories(items, relevance):
  """Titles, and texts like queries but none of those in relevance.jsonl."""
  rows = [{"text": item["title"], "label": t.category} for t, _, item in items]
  done = {row["query"] for row in relevance}
  for t in TYPES:
    dice = Dice("categories/" + t.key)
    own = [facts for item_type, facts, _ in items if item_type.key == t.key]
    for name in [t.name] + t.asks:
      # Some names allow few texts: what repeats is left out.
      for _ in range(TEXTS_PER_NAME):
        text = write_query(dice, name, draw_wishes(dice, own))
        if text not in done:
          done.add(text)
          rows.append({"text": text, "label": t.category})
  return Dice("categories").shuffled(rows)


def make_reviews():
  """Reviews of each type of product, and texts that are none."""
  rows, done = [], set()

  def add(text, name, label):
    text = text.replace("%s", name)
    if text not in done:
      done.add(text)
      rows.append({"text": text, "label": label})

  for t in TYPES:
    dice = Dice("reviews/" + t.key)
    for _ in range(REVIEWS_PER_TYPE):
      add("%s %s. %s" % (dice.pick(REVIEW_STARTS), dice.pick(REVIEW_MIDDLES),
                         dice.pick(REVIEW_ENDS)), t.name, "normal")
    for _ in range(FOREIGN_PER_TYPE):
      # As often with another's words around it.
      text = dice.pick(FOREIGN_REVIEWS)
      if dice.chance(0.5):
        text += ". " + dice.pick(REVIEW_ENDS)
      add(text, t.name, "anomaly")
  return Dice("reviews").shuffled(rows)


# ---------------------------------------------------------------------------


def write_lines(folder, name, rows):
  with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
    for row in rows:
      out.write(row if isinstance(row, str) else json.dumps(
          row, ensure_ascii=False, separators=(",", ":")))
      out.write("\n")


FILES = ["items.jsonl", "relevance.jsonl", "users.jsonl", "interest.jsonl",
         "categories.jsonl", "reviews.jsonl"]


def write_shop(folder):
  os.makedirs(folder, exist_ok=True)
  items = make_items()
  relevance = make_relevance(items)
  users, interests = make_users(items)
  for rows, name in zip(
      [[item for _, _, item in items], relevance, users, interests,
       make_categories(items, relevance), make_reviews()], FILES):
    write_lines(folder, name, rows)


def main():
  here = os.path.dirname(os.path.abspath(__file__))
  parser = argparse.ArgumentParser(
      description="Writes the sample shop, always the same.")
  parser.add_argument("--out", default=os.path.join(here, "shop"),
                      help="folder to write or check (default: shop/ beside "
                      "this file)")
  parser.add_argument("--check", action="store_true",
                      help="write nothing; compare the folder with what would "
                      "be written")
  options = parser.parse_args()
  if not options.check:
    write_shop(options.out)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    write_shop(folder)
    _, mismatch, errors = filecmp.cmpfiles(folder, options.out, FILES,
                                           shallow=False)
  for name in mismatch + errors:
    print("%s differs from what make_shop.py writes" %
          os.path.join(options.out, name), file=sys.stderr)
  return 1 if mismatch or errors else 0


if __name__ == "__main__":
  sys.exit(main())
