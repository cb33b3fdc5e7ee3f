"""What a task is measured by, from scores, by scikit-learn where it has it."""

import math
from collections import defaultdict

import numpy as np
from sklearn import metrics as sk

from data import hash_of


def ndcg_at_10(rows, scores):
    """Gain 2^(grade - 1) - 1, over queries with two items and two grades; equal
    scores in the order of a hash."""
    queries = defaultdict(list)
    for row, score in zip(rows, scores):
        tie = hash_of(row["query"] + row["item_id"])
        queries[row["query"]].append((score, tie, row["grade"]))
    values = []
    for group in queries.values():
        grades = [grade for _, _, grade in group]
        if len(set(grades)) < 2:
            continue
        ranked = [g for _, _, g in sorted(group, key=lambda x: (-x[0], x[1]))]
        values.append(_dcg(ranked) / _dcg(sorted(grades, reverse=True)))
    return float(np.mean(values))


def _dcg(grades):
    return sum((2 ** (grade - 1.0) - 1) / math.log2(place + 2)
               for place, grade in enumerate(grades[:10]))


def search(rows, predicted, lowest, highest):
    """`predicted` are on the scale of the grades."""
    truth = np.array([row["grade"] for row in rows], float)
    result = {
        "ndcg@10": ndcg_at_10(rows, predicted),
        "rmse": float(np.sqrt(np.mean((np.array(predicted) - truth) ** 2))),
    }
    if np.all(truth == np.round(truth)):
        result["kappa"] = sk.cohen_kappa_score(
            truth.astype(int),
            np.clip(np.round(predicted), lowest, highest).astype(int),
            weights="quadratic")
    return result


def next_item(places):
    """Places from 0 among all items."""
    places = np.array(places)
    return {
        "hr@10": float(np.mean(places < 10)),
        "ndcg@10": float(np.mean(
            np.where(places < 10, 1 / np.log2(places + 2), 0))),
    }


def labels(truth, predicted, confidence=None):
    """`confidence`: of what was predicted, where it is a probability."""
    result = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "macro_f1": sk.f1_score(truth, predicted, average="macro",
                                zero_division=0),
    }
    if confidence is not None:
        right = np.array([t == p for t, p in zip(truth, predicted)], float)
        result["ece"] = calibration_error(np.array(confidence), right)
    return result


def calibration_error(probability, outcome):
    """15 bins of equal width."""
    bins = np.minimum((probability * 15).astype(int), 14)
    return float(sum(abs((probability[bins == b] - outcome[bins == b]).sum())
                     for b in range(15)) / len(probability))


def anomaly(is_anomaly, score, predicted=None):
    """A larger score is more of an anomaly."""
    is_anomaly = np.array(is_anomaly, bool)
    false_alarms, recall, _ = sk.roc_curve(is_anomaly, score)
    result = {
        "auroc": sk.roc_auc_score(is_anomaly, score),
        "false_alarms@95": float(false_alarms[np.argmax(recall >= 0.95)]),
    }
    if predicted is not None:
        predicted = np.array(predicted, bool)
        result["f1"] = sk.f1_score(is_anomaly, predicted)
        result["accuracy"] = sk.accuracy_score(is_anomaly, predicted)
    return result
