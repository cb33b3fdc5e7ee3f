"""The tasks: rows for vitrine-trainer, its flags, and how answers are judged."""

from dataclasses import dataclass, field
from typing import Callable

import classical
import data
import metrics

TEXT = {"text": str}
QUERY = {"query": str, "item_id": str, "title": str, "grade": (int, float)}
ITEM = {"item_id": str, "title": str}


@dataclass
class Task:
    name: str
    recipe: str  # deploy/recipes/NAME.toml
    kind: str  # of the head
    train: list
    test: list
    # From the rows of `evaluate --scores` to {metric: value}; the first is
    # what the task is judged by.
    judge: Callable
    # The same from a classical method.
    baseline: Callable
    baseline_name: str
    key: str  # whose rows stay together when a part of the labels is taken
    flags: list = field(default_factory=list)
    items: list = None
    texts: list = None  # documents for continued pre-training
    fields: str = ""  # of those, as `pretrain --fields`
    # Another task whose training comes first: one more column.
    after: str = ""
    own_pieces: bool = False  # another language: starts from texts alone
    # Another task over the same rows, whose versions are scored here too.
    trained_as: str = ""
    # Rows that are like nothing in training: what the energy is to find.
    strangers: list = None


def search(folders, name, grades, after=""):
    train, test = data.split(folders, name, QUERY, "query")
    low, high = grades

    def judge(scores):
        return metrics.search(
            test, [low + (high - low) * s["score"] for s in scores], low, high)

    return Task(
        name=name, recipe="search", kind="relevance", train=train, test=test,
        judge=judge,
        baseline=lambda rows: metrics.search(
            test, classical.search(rows, test), low, high),
        baseline_name="TF-IDF and BM25, ridge", key="query",
        flags=["--grades", "%d:%d" % grades], after=after,
        texts=list({row["title"]: {
            "title": row["title"], "description": row.get("description", "")}
            for row in train}.values()),
        fields="title,description?")


def _catalogue(folder, name):
    rows = data.read(folder, name, ITEM)
    for row in rows:
        # Some of these have their path of categories as attributes.
        path = row.pop("attributes", None)
        if isinstance(path, list):
            row["categories"] = [p for p in path if p != row.get("category")]
            if "category" in row:
                row["categories"].insert(0, row.pop("category"))
    return rows


def _item_texts(items):
    return [{"title": item["title"],
             "description": item.get("description", ""),
             "categories": item.get("categories", [])} for item in items]


def recommendation(folders, name):
    """The last item of a fifth of the users, out of all items."""
    folder, test_folder = folders
    items = _catalogue(folder, name + "_items")
    if name == "beauty":
        users = [{"user_id": u["user_id"], "items": u["items"][:-1],
                  "next": u["items"][-1]}
                 for u in data.read(folder, "beauty_sequences",
                                    {"user_id": str, "items": list})
                 if len(u["items"]) > 2]
        test_name = "beauty_next"
    else:
        fields = {"user_id": str, "items": list, "next": str}
        users = data.read(folder, name + "_valid", fields)
        test_name = name + "_test"
    if test_folder:
        test = data.read(test_folder, test_name,
                         {"items": list, "next": str})
        train = [{"user_id": u["user_id"], "items": u["items"] + [u["next"]]}
                 for u in users]
    else:
        test = [u for u in users if not data.hash_of(u["user_id"]) % 5]
        # What a user of the fifth had before is known to the shop; but where a
        # user has several rows, one's history holds another's next item.
        once = len({u["user_id"] for u in users}) == len(users)
        train = [{"user_id": u["user_id"], "items": u["items"] + (
                     [u["next"]] if data.hash_of(u["user_id"]) % 5 else [])}
                 for u in users
                 if once or data.hash_of(u["user_id"]) % 5]
    for number, user in enumerate(test):
        user.setdefault("user_id", "test-%d" % number)
    # One purchase gives nothing to predict.
    pairs = [user for user in train if len(user["items"]) > 1]
    return Task(
        name=name, recipe="recommendation", kind="recommendation",
        train=pairs, test=test,
        judge=lambda scores: metrics.next_item([s["place"] for s in scores]),
        baseline=lambda rows: metrics.next_item(classical.item_item(
            [user["items"] for user in train], test)),
        baseline_name="item-item", key="user_id", items=items,
        texts=_item_texts(items), fields="title,description?,categories?")


def next_category(folders):
    """The category of a beauty shopper's next product."""
    task = recommendation(folders, "beauty")
    category = {item["item_id"]: item["categories"][0] for item in task.items}
    truth = [category[user["next"]] for user in task.test]

    def judge(scores):
        predicted, confidence = [], []
        for row in scores:
            label, p = max(row["probabilities"].items(), key=lambda x: x[1])
            predicted.append(label)
            # One of them it is: the probabilities of yes and no, as shares.
            confidence.append(p / sum(row["probabilities"].values()))
        return metrics.labels(truth, predicted, confidence)

    # Each purchase but the first asks for the category of what came next.
    train = []
    for user in task.train:
        items = user["items"]
        for end in range(max(1, len(items) - 2), len(items)):
            train.append({"user_id": user["user_id"], "items": items[:end],
                          "categories": [category[items[end]]]})
    test = [dict(user, categories=[label])
            for user, label in zip(task.test, truth)]
    return Task(
        name="next_category", recipe="interest", kind="interest", train=train,
        test=test, judge=judge,
        baseline=lambda rows: metrics.labels(
            truth, classical.most_frequent_category(test, category)),
        baseline_name="most frequent in history", key="user_id",
        items=task.items, texts=task.texts, fields=task.fields)


def classification(folders, file, text, label, key, name=None, chinese=False):
    train, test = data.split(
        folders, file, {text: str, label: (str, int)}, key)

    def plain(rows):
        return [{"text": row[text], "label": str(row[label]),
                 "key": row[key]} for row in rows
                if row[text].strip() and str(row[label]).strip()]

    train, test = plain(train), plain(test)
    truth = [row["label"] for row in test]

    def judge(scores):
        return metrics.labels(
            truth, [s["predicted"] for s in scores],
            [s["probabilities"][s["predicted"]] for s in scores])

    def baseline(rows):
        return metrics.labels(
            truth, classical.classifier(rows, test, chinese)[0])

    return Task(
        name=name or file, recipe="chinese" if chinese else "classification",
        kind="classification", train=train, test=test, judge=judge,
        baseline=baseline, baseline_name="TF-IDF, linear SVM", key="key",
        texts=[{"text": row["text"]} for row in train], fields="text",
        own_pieces=chinese)


def anomaly(folders, file, key, positive, name=None):
    """Texts with a label; a source, a subject or a text is all on one side."""
    task = classification(folders, file, "text", "label", key, name)
    truth = [row["label"] == positive for row in task.test]

    def judge(scores):
        return metrics.anomaly(
            truth, [s["probabilities"][positive] for s in scores],
            [s["predicted"] == positive for s in scores])

    def baseline(rows):
        predicted, margins, classes = classical.classifier(rows, task.test)
        sign = 1 if classes[1] == positive else -1
        return metrics.anomaly(truth, sign * margins,
                               [p == positive for p in predicted])

    task.recipe, task.judge, task.baseline = "anomaly", judge, baseline
    return task


def out_of_domain(folders):
    """Texts of another kind, told by the energy of a classifier's logits: -log
    of the sum of their exponentials (Liu et al., Energy-based out-of-
    distribution detection, 2020)."""
    task = classification(folders, "instacart_products", "title", "aisle",
                          "item_id", name="out_of_domain")
    strangers = [
        {"text": row["title"], "label": task.test[0]["label"]}
        for row in data.read(folders[0], "home_depot", {"title": str})
        if not data.hash_of(row["title"]) % 5
    ][:len(task.test)]
    truth = [False] * len(task.test) + [True] * len(strangers)

    def baseline(rows):
        _, margins, _ = classical.classifier(rows, task.test + strangers)
        return metrics.anomaly(truth, -margins.max(axis=1))

    task.strangers = strangers
    task.trained_as = "instacart"
    task.judge = lambda scores: metrics.anomaly(
        truth, [s["energy"] for s in scores])
    task.baseline = baseline
    task.baseline_name = "TF-IDF, largest SVM margin"
    return task


# In the order in which they are printed.
TASKS = {
    "home_depot": lambda f: search(f, "home_depot", (1, 3),
                                   after="crowdflower"),
    "crowdflower": lambda f: search(f, "crowdflower", (1, 4),
                                    after="home_depot"),
    "beauty": lambda f: recommendation(f, "beauty"),
    "office": lambda f: recommendation(f, "office"),
    "industrial": lambda f: recommendation(f, "industrial"),
    "next_category": next_category,
    "instacart": lambda f: classification(
        f, "instacart_products", "title", "aisle", "item_id", "instacart"),
    "clothing": lambda f: classification(
        f, "clothing_reviews", "text", "class", "text", "clothing"),
    "chinese_category": lambda f: classification(
        f, "shopping_reviews_zh", "text", "category", "text",
        "chinese_category", chinese=True),
    "chinese_polarity": lambda f: classification(
        f, "shopping_reviews_zh", "text", "positive", "text",
        "chinese_polarity", chinese=True),
    "comment_spam": lambda f: anomaly(f, "comment_spam", "source", "spam"),
    "deceptive_opinion": lambda f: anomaly(
        f, "deceptive_opinion", "subject", "deceptive"),
    "generated_reviews": lambda f: anomaly(
        f, "generated_reviews_dev", "text", "generated",
        "generated_reviews"),
    "out_of_domain": out_of_domain,
}

# What the curve of few labels is drawn for, and the metric.
FEW_LABELS = {"home_depot": "ndcg@10", "instacart": "accuracy",
              "clothing": "accuracy"}
