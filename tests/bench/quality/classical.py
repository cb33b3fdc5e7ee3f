"""What a team has without a language model, for every task."""

import math
import re
from collections import Counter, defaultdict

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def bm25(train, test):
    """Scores of the test rows; statistics of all."""
    def document(row):
        return words(row["title"] + " " + row.get("description", ""))

    frequency = Counter(w for row in train + test for w in set(document(row)))
    count = len(train) + len(test)
    average = np.mean([len(document(row)) for row in test])
    scores = []
    for row in test:
        found = Counter(document(row))
        size = sum(found.values())
        scores.append(sum(
            math.log(1 + (count - frequency[w] + .5) / (frequency[w] + .5))
            * found[w] * 2.2
            / (found[w] + 1.2 * (.25 + .75 * size / average))
            for w in words(row["query"]) if found[w]))
    return scores


def search(train, test):
    """Ridge on TF-IDF of query and title, their cosine, overlap and BM25."""
    vectors = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True,
        token_pattern=r"[A-Za-z0-9]+").fit(
            [row["query"] + " " + row["title"] for row in train])

    def features(rows):
        queries = vectors.transform([row["query"] for row in rows])
        titles = vectors.transform([row["title"] for row in rows])
        cosine = np.asarray(queries.multiply(titles).sum(1))
        overlap = np.array([
            [len(set(words(row["query"])) & set(words(row["title"])))
             / max(1, len(set(words(row["query"]))))] for row in rows])
        return hstack([queries, titles, csr_matrix(np.hstack(
            [cosine * 5, overlap * 5,
             np.array(bm25(train, rows))[:, None] / 5]))])

    model = Ridge(alpha=3).fit(features(train), [r["grade"] for r in train])
    return model.predict(features(test))


def classifier(train, test, chinese=False):
    """Labels and margins of a linear SVM on TF-IDF: (predicted, margins)."""
    vectors = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True,
        max_features=300000) if chinese else TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LinearSVC(C=.5).fit(
        vectors.fit_transform([row["text"] for row in train]),
        [row["label"] for row in train])
    matrix = vectors.transform([row["text"] for row in test])
    return (list(model.predict(matrix)), model.decision_function(matrix),
            list(model.classes_))


def item_item(sequences, users):
    """Places of the next items by decayed co-occurrence over root popularity."""
    popularity = Counter(item for items in sequences for item in items)
    together = defaultdict(Counter)
    for items in sequences:
        for first in set(items):
            for second in set(items):
                if first != second:
                    together[first][second] += 1
    places = []
    for user in users:
        scores = Counter()
        for age, item in enumerate(reversed(user["items"])):
            for other, count in together[item].items():
                scores[other] += (count * .8 ** age / math.sqrt(
                    popularity[item] * popularity[other]))
        target = scores.get(user["next"], -1)
        places.append(
            sum(1 for item, score in scores.items()
                if score > target and item not in user["items"])
            if target >= 0 else 10 ** 9)
    return places


def most_frequent_category(users, category):
    """The category that a history has most of."""
    return [Counter(category[item] for item in user["items"])
            .most_common(1)[0][0] for user in users]
