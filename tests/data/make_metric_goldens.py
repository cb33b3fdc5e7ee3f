#!/usr/bin/env python3
"""Makes metrics.json beside this, the goldens of tests/trainer/evaluation_test.

    /usr/bin/python3 make_metric_goldens.py

Needs Debian's python3-sklearn (scikit-learn 1.2.1); the tests need neither it
nor this script, and the file comes out the same byte for byte.

Where scikit-learn has a metric, it is scikit-learn's: f1_score, accuracy_score,
roc_auc_score, cohen_kappa_score, mean_squared_error, average_precision_score
and ndcg_score. Its NDCG has linear gains, so the gains 2^grade - 1 are what it
is given. It has no calibration error and no reciprocal rank: those are written
out below. It averages over equal scores, where ours go by the row's tie: logits
of one query differ.
"""

import json
import pathlib

import numpy
from sklearn import metrics

BINS = 15
DEPTH = 10


def calibration_error(probabilities, outcomes):
    bins = numpy.minimum((probabilities * BINS).astype(int), BINS - 1)
    total = 0.0
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            gap = probabilities[inside].mean() - outcomes[inside].mean()
            total += inside.mean() * abs(gap)
    return total


def sigmoid(x):
    return 1 / (1 + numpy.exp(-x))


def classification(name, random, rows, labels, absent, sharpness, digits):
    """`absent` labels at the end occur in no row."""
    truth = random.randint(0, labels - absent, rows)
    logits = random.normal(0, 1, (rows, labels))
    logits[numpy.arange(rows), truth] += 1
    p = numpy.exp(sharpness * logits)
    # Few digits, so that there are draws.
    p = numpy.round(p / p.sum(1, keepdims=True), digits)
    predicted = p.argmax(1)
    areas = [metrics.roc_auc_score(truth == label, p[:, label])
             for label in range(labels) if 0 < (truth == label).sum() < rows]
    return {
        'name': name,
        'labels': [f'label {label}' for label in range(labels)],
        'truth': truth.tolist(),
        'probabilities': p.ravel().tolist(),
        'metrics': {
            'macro_f1': metrics.f1_score(truth, predicted, average='macro'),
            'accuracy': metrics.accuracy_score(truth, predicted),
            'ece': calibration_error(p.max(1), predicted == truth),
            'auroc': numpy.mean(areas),
        },
    }


def relevance(name, random, queries, top):
    query, logits, grades = [], [], []
    for number in range(queries):
        count = random.randint(1, 25)
        query += [number] * count
        own = random.randint(0, top + 1, count)
        grades += own.tolist()
        noise = random.normal(0, 2, count)
        logits += numpy.round(own - top / 2 + noise, 6).tolist()
    query, logits, grades = map(numpy.array, (query, logits, grades))
    ndcg, mrr, average = [], [], []
    for number in range(queries):
        own, scores = grades[query == number], logits[query == number]
        assert len(set(scores)) == len(scores)
        if len(set(own)) < 2:
            continue
        ndcg.append(metrics.ndcg_score([2.0 ** own - 1], [scores], k=DEPTH))
        relevant = own >= top / 2
        ranks = numpy.flatnonzero(relevant[numpy.argsort(-scores)]) + 1
        mrr.append(1 / ranks[0] if len(ranks) else 0)
        average.append(metrics.average_precision_score(relevant, scores)
                       if len(ranks) else 0)
    p = sigmoid(logits)
    return {
        'name': name,
        'range': top,
        'query': query.tolist(),
        'logits': logits.tolist(),
        'grades': grades.tolist(),
        'metrics': {
            'ndcg@10': numpy.mean(ndcg),
            'mrr': numpy.mean(mrr),
            'map': numpy.mean(average),
            'rmse': metrics.mean_squared_error(grades, top * p,
                                               squared=False),
            'ece': calibration_error(p, grades / top),
            'kappa': metrics.cohen_kappa_score(
                grades, numpy.round(top * p).astype(int),
                labels=range(top + 1), weights='quadratic'),
        },
    }


def interest(name, random, rows, labels):
    truth = random.rand(rows, labels) < 0.3
    logits = numpy.round(random.normal(0, 1, (rows, labels)) + truth, 3)
    # Exactly what the test reads as floats.
    logits = logits.astype(numpy.float32).astype(float)
    some = truth.any(1)
    likeliest = logits.argmax(1)
    return {
        'name': name,
        'labels': [f'label {label}' for label in range(labels)],
        'truth': truth.astype(int).ravel().tolist(),
        'logits': logits.ravel().tolist(),
        'metrics': {
            'macro_f1': metrics.f1_score(truth, logits >= 0, average='macro'),
            'accuracy': truth[numpy.arange(rows), likeliest][some].mean(),
            'ndcg@10': metrics.ndcg_score(truth[some], logits[some], k=DEPTH,
                                          ignore_ties=True),
            'ece': calibration_error(sigmoid(logits.ravel()), truth.ravel()),
        },
    }


def main():
    random = numpy.random.RandomState(7)
    goldens = {
        'classification': [
            classification('two labels', random, 120, 2, 0, 1, 3),
            classification('two labels, draws', random, 90, 2, 0, 1, 1),
            classification('six labels, one absent', random, 150, 6, 1, 1, 3),
            classification('sure of itself', random, 60, 4, 0, 20, 2),
        ],
        'relevance': [
            relevance('grades 0 to 3', random, 20, 3),
            relevance('grades 0 and 1', random, 20, 1),
            relevance('grades 0 to 6', random, 12, 6),
        ],
        'interest': [
            interest('four labels', random, 40, 4),
            interest('fourteen labels', random, 30, 14),
        ],
    }
    path = pathlib.Path(__file__).parent / 'metrics.json'
    lines = [
        f'{json.dumps(kind)}:[\n' + ',\n'.join(
            json.dumps(golden, separators=(',', ':')) for golden in of) + ']'
        for kind, of in goldens.items()
    ]
    path.write_text('{' + ',\n'.join(lines) + '}\n', encoding='utf-8')


if __name__ == '__main__':
    main()
