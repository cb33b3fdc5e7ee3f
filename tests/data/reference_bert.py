#!/usr/bin/python3
"""BERT and RoBERTa classifiers in NumPy, double precision: what the engine's
tests compare with. Shares nothing with the C++ code but the file format.

  reference_bert.py FOLDER IDS.jsonl

FOLDER is a Hugging Face folder (config.json, model.safetensors) with a
sequence classifier or a bare encoder; a line of IDS.jsonl is {"ids": [...],
"type_ids": [...]}. Prints a line per sequence: {"logits": [...], "mean": [...],
"first": [...]}: the classifier's logits (none of a bare encoder), and the mean
and the first of the last layer's hidden states.
"""
import json
import math
import os
import struct
import sys

import numpy as np

# erf on a grid, from where Taylor's series goes on: within 1e-11, and much
# faster than math.erf of each element.
GRID_STEPS = 512
GRID_END = 6
GRID = np.arange(-GRID_END * GRID_STEPS, GRID_END * GRID_STEPS + 1) / GRID_STEPS
GRID_ERF = np.array([math.erf(x) for x in GRID])
GRID_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-GRID**2)


def erf(x):
    x = np.clip(x, -GRID_END, GRID_END)
    nearest = np.rint((x + GRID_END) * GRID_STEPS).astype(np.int64)
    at = GRID[nearest]
    d = x - at
    return GRID_ERF[nearest] + GRID_SLOPE[nearest] * d * (
        1 - at * d + (2 * at**2 - 1) / 3 * d**2)


def read_safetensors(path):
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            values = wide.view(np.float32)
        else:
            kind = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[entry["dtype"]]
            values = np.frombuffer(raw, kind)
        tensors[name] = values.astype(np.float64).reshape(entry["shape"])
    return tensors


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_new(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "relu": lambda x: np.maximum(x, 0),
}


class Model:

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as f:
            self.config = json.load(f)
        self.weights = read_safetensors(
            os.path.join(folder, "model.safetensors"))
        self.roberta = self.config["model_type"] != "bert"
        self.prefix = "roberta." if self.roberta else "bert."
        if "embeddings.word_embeddings.weight" in self.weights:
            self.prefix = ""
        self.activation = ACTIVATIONS[self.config["hidden_act"]]

    def linear(self, name, x):
        return x @ self.weights[name + ".weight"].T + self.weights[name +
                                                                   ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.config["layer_norm_eps"])
        return (scaled * self.weights[name + ".weight"] +
                self.weights[name + ".bias"])

    def attention(self, scope, x):
        heads = self.config["num_attention_heads"]
        tokens, hidden = x.shape
        size = hidden // heads
        # (heads, tokens, size)
        q, k, v = (self.linear(scope + part, x).reshape(tokens, heads, size)
                   .transpose(1, 0, 2) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ v).transpose(1, 0, 2).reshape(tokens, hidden)

    def hidden(self, ids, type_ids):
        scope = self.prefix + "embeddings."
        first = self.config["pad_token_id"] + 1 if self.roberta else 0
        positions = np.arange(first, first + len(ids))
        x = (self.weights[scope + "word_embeddings.weight"][ids] +
             self.weights[scope + "position_embeddings.weight"][positions] +
             self.weights[scope + "token_type_embeddings.weight"][type_ids])
        x = self.norm(scope + "LayerNorm", x)
        for layer in range(self.config["num_hidden_layers"]):
            scope = f"{self.prefix}encoder.layer.{layer}."
            y = self.attention(scope + "attention.self.", x)
            y = self.linear(scope + "attention.output.dense", y)
            x = self.norm(scope + "attention.output.LayerNorm", x + y)
            y = self.activation(self.linear(scope + "intermediate.dense", x))
            y = self.linear(scope + "output.dense", y)
            x = self.norm(scope + "output.LayerNorm", x + y)
        return x

    def logits(self, hidden):
        if not self.prefix:
            return np.array([])
        if self.roberta:
            pooled = np.tanh(self.linear("classifier.dense", hidden[0]))
            return self.linear("classifier.out_proj", pooled)
        pooled = np.tanh(self.linear(self.prefix + "pooler.dense", hidden[0]))
        return self.linear("classifier", pooled)


def main():
    folder, ids_path = sys.argv[1:]
    model = Model(folder)
    with open(ids_path) as lines:
        for line in lines:
            row = json.loads(line)
            ids = np.array(row["ids"])
            type_ids = np.array(row.get("type_ids") or [0] * len(ids))
            hidden = model.hidden(ids, type_ids)
            print(
                json.dumps({
                    "logits": model.logits(hidden).tolist(),
                    "mean": hidden.mean(0).tolist(),
                    "first": hidden[0].tolist(),
                }))


if __name__ == "__main__":
    main()
