#!/usr/bin/env python3
"""Makes lexical.json beside this, the goldens of tests/trainer/lexical_fit_test.

    /usr/bin/python3 make_lexical_goldens.py

Needs Debian's python3-sklearn (scikit-learn 1.2.1); the tests need neither it
nor this script. Queries and items are lists of token ids; a grade says how many
of a query's tokens the item has, with noise and with favourites. Features are
TfidfVectorizer's, BM25 and overlap counted here, and weights Ridge's.
"""

import json
import math
import pathlib
from collections import Counter

import numpy
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

TOKENS = 30
LEARNT = 150


def ngrams(ids):
    return [(a, -1) for a in ids] + list(zip(ids, ids[1:]))


def of_pair(pair):
    return ngrams(pair[0]) + ngrams(pair[1])


def main():
    random = numpy.random.default_rng(11)
    pairs, targets = [], []
    for _ in range(LEARNT + 40):
        query = random.integers(0, TOKENS, random.integers(1, 5)).tolist()
        item = random.integers(0, TOKENS + 4, random.integers(2, 14)).tolist()
        if random.random() < 0.6:
            item[:len(query)] = query[:len(item)]
        share = len(set(query) & set(item)) / len(set(query))
        liked = 0.2 * (7 in item) - 0.2 * (8 in query)
        pairs.append((query, item))
        targets.append(float(numpy.clip(
            0.2 + 0.6 * share + liked + random.normal(0, 0.1), 0, 1)))
    weights = random.choice([0.5, 1.0, 2.0], LEARNT).tolist()

    learnt = pairs[:LEARNT]
    vectors = TfidfVectorizer(analyzer=of_pair, min_df=2,
                              sublinear_tf=True).fit(learnt)
    known = vectors.vocabulary_
    count = Counter(n for pair in learnt for n in set(of_pair(pair)))
    length = numpy.mean([len(item) for _, item in learnt])

    def idf(token):
        listed = (token, -1) in known
        return 1 + math.log((1 + LEARNT)
                            / (1 + (count[token, -1] if listed else 1)))

    def features(rows):
        empty = []
        queries = vectors.transform([(q, empty) for q, _ in rows])
        items = vectors.transform([(empty, i) for _, i in rows])
        overlap = []
        for (query, item), cosine in zip(
                rows, numpy.asarray(queries.multiply(items).sum(1)).ravel()):
            found = [t for t in set(query) if t in item]
            bm25 = sum(
                idf(t) * item.count(t) * 2.2
                / (item.count(t)
                   + 1.2 * (0.25 + 0.75 * len(item) / length))
                for t in found)
            overlap.append([5 * cosine, 5 * len(found) / len(set(query)),
                            5 * bm25 / 25])
        return hstack([queries, items, csr_matrix(overlap)]).tocsr()

    model = Ridge(alpha=10, tol=1e-10, solver="sparse_cg").fit(
        features(learnt), targets[:LEARNT], sample_weight=weights)
    mean = numpy.average(targets[:LEARNT], weights=weights)
    order = sorted(known)
    out = {
        "queries": [q for q, _ in pairs], "items": [i for _, i in pairs],
        "targets": targets[:LEARNT], "weights": weights,
        "ngrams": order,
        "idf": [vectors.idf_[known[n]] for n in order],
        "values": (model.predict(features(pairs[LEARNT:])) - mean).tolist(),
    }
    path = pathlib.Path(__file__).parent / "lexical.json"
    path.write_text(json.dumps(
        out, separators=(",", ":"),
        default=lambda x: x.item() if hasattr(x, "item") else list(x)) + "\n")


if __name__ == "__main__":
    main()
