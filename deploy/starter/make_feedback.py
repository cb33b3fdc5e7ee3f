#!/usr/bin/env python3
"""Shoppers who prefer another product than the model does, as feedback.

Reads an answer of `vitrine rank --json` and writes JSON lines for `vitrine
label import`: lists of search results as they were shown, in the model's order,
of which shoppers buy the product at --position and pass over the others. It is
made up, for the quickstart to show what the model makes of it.
"""

import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", required=True, help="the shop's items.jsonl")
    parser.add_argument("--query", action="append", required=True,
                        help="what was searched for; may be repeated")
    parser.add_argument("--position", type=int, default=5,
                        help="of the product that they buy, from 1 [5]")
    parser.add_argument("--shoppers", type=int, default=20,
                        help="for each query [20]")
    options = parser.parse_args()
    with open(options.items, encoding="utf-8") as lines:
        items = {item["id"]: item for item in map(json.loads, lines)}
    shown = [row["item_id"] for row in json.load(sys.stdin)["items"]]
    if not 1 <= options.position <= len(shown):
        parser.error("--position %d: %d items were shown"
                     % (options.position, len(shown)))
    fields = ("id", "title", "brand", "description", "categories", "attributes")
    for number, query in enumerate(options.query):
        for shopper in range(options.shoppers):
            for position, item_id in enumerate(shown, 1):
                item = {key: value for key, value in items[item_id].items()
                        if key in fields}
                bought = position == options.position
                print(json.dumps({
                    "feedback_id": "quickstart-%d-%d-%d"
                                   % (number, shopper, position),
                    "interaction": {
                        "user_id": "visitor-%d-%d" % (number, shopper),
                        "impression_id": "list-%d-%d" % (number, shopper),
                        "query": query,
                        "item": item,
                        "type": "INTERACTION_TYPE_PURCHASE" if bought
                                else "INTERACTION_TYPE_SKIP",
                        "position": position,
                    }}))


if __name__ == "__main__":
    main()
