#!/usr/bin/env python3
"""Makes ngrams.json beside this, the goldens of tests/trainer/ngram_fit_test.

    /usr/bin/python3 make_ngram_goldens.py

Needs Debian's python3-sklearn (scikit-learn 1.2.1); the tests need neither it
nor this script. Texts are lists of token ids drawn by label, so that labels
overlap; what is learnt of them is TfidfVectorizer's and LinearSVC's.
"""

import json
import pathlib

import numpy
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

LABELS = 3
TOKENS = 40


def ngrams(ids):
    return [(a, -1) for a in ids] + list(zip(ids, ids[1:]))


def main():
    random = numpy.random.default_rng(7)
    shares = random.dirichlet(numpy.full(TOKENS, 0.4), LABELS)
    truth = [int(label) for label in random.integers(0, LABELS, 160)]
    texts = [[int(t) for t in random.choice(TOKENS, random.integers(2, 12),
                                            p=shares[label])]
             for label in truth]
    vectors = TfidfVectorizer(analyzer=ngrams, min_df=2, sublinear_tf=True)
    known = vectors.fit_transform(texts[:120])
    machine = LinearSVC(C=0.5, tol=1e-6, max_iter=100000).fit(
        known, truth[:120])
    order = sorted(vectors.vocabulary_, key=tuple)
    out = {
        "labels": LABELS, "texts": texts[:120], "truth": truth[:120],
        "ngrams": order,
        "idf": [vectors.idf_[vectors.vocabulary_[n]] for n in order],
        "new_texts": texts[120:],
        "margins": machine.decision_function(
            vectors.transform(texts[120:])).tolist(),
    }
    path = pathlib.Path(__file__).parent / "ngrams.json"
    path.write_text(json.dumps(
        out, separators=(",", ":"),
        default=lambda x: x.item() if hasattr(x, "item") else list(x)) + "\n")


if __name__ == "__main__":
    main()
