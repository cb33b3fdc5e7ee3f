#!/usr/bin/python3
"""What compare_ort.sh gives ONNX Runtime: a BERT classifier with random weights
as a Hugging Face folder, and the same one as ONNX graphs.

  bert_onnx.py make FOLDER --layers 6 --hidden 384 --heads 12
  bert_onnx.py export FOLDER OUT.onnx
  bert_onnx.py quantize IN.onnx OUT.onnx

`export` is PyTorch's exporter; ONNX Runtime fuses what it knows at load. (A graph
of its Attention operators, as its offline optimizer writes it, was tried too and
ran slower, in fp32 and in int8.) `quantize` does what its quantize_dynamic does:
int8 weights per output channel, activations scaled as they come.

FOLDER has vocab.txt already where `make` is called. Needs Debian's
python3-torch and python3-onnx.
"""
import argparse
import json
import math
import os
import struct

import numpy as np


def read_safetensors(path):
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(
            entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            f.write(tensor.tobytes())


def make(folder, layers, hidden, heads, seed):
    with open(os.path.join(folder, "vocab.txt"), encoding="utf-8") as lines:
        vocab_size = sum(1 for _ in lines)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "vocab_size": vocab_size,
        "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
    }
    random = np.random.default_rng(seed)
    tensors = {}

    def table(name, rows):
        tensors[name + ".weight"] = random.normal(0, 0.05, (rows, hidden))

    # Spread like a trained model's, so that softmax and GELU have work to do.
    def linear(name, inputs, outputs):
        tensors[name + ".weight"] = random.normal(
            0, 1.4 / math.sqrt(inputs), (outputs, inputs))
        tensors[name + ".bias"] = random.normal(0, 0.02, outputs)

    def norm(name):
        tensors[name + ".weight"] = random.normal(1, 0.02, hidden)
        tensors[name + ".bias"] = random.normal(0, 0.02, hidden)

    scope = "bert.embeddings."
    table(scope + "word_embeddings", vocab_size)
    table(scope + "position_embeddings", 512)
    table(scope + "token_type_embeddings", 2)
    norm(scope + "LayerNorm")
    for layer in range(layers):
        scope = "bert.encoder.layer.%d." % layer
        for part in ("query", "key", "value"):
            linear(scope + "attention.self." + part, hidden, hidden)
        linear(scope + "attention.output.dense", hidden, hidden)
        norm(scope + "attention.output.LayerNorm")
        linear(scope + "intermediate.dense", hidden, 4 * hidden)
        linear(scope + "output.dense", 4 * hidden, hidden)
        norm(scope + "output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", hidden, 1)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    write_safetensors(
        os.path.join(folder, "model.safetensors"),
        {name: t.astype("<f4") for name, t in tensors.items()})


def load(folder):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    return config, read_safetensors(os.path.join(folder, "model.safetensors"))


INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def export(folder, out):
    import torch
    from torch import nn
    from torch.nn import functional

    config, tensors = load(folder)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]

    class Bert(nn.Module):

        def __init__(self):
            super().__init__()
            for name, tensor in tensors.items():
                self.register_parameter(
                    name.replace(".", "_"),
                    nn.Parameter(torch.from_numpy(tensor.copy())))

        def weight(self, name):
            return getattr(self, name.replace(".", "_"))

        def linear(self, name, x):
            return functional.linear(x, self.weight(name + ".weight"),
                                     self.weight(name + ".bias"))

        def norm(self, name, x):
            return functional.layer_norm(
                x, (hidden,), self.weight(name + ".weight"),
                self.weight(name + ".bias"), config["layer_norm_eps"])

        def forward(self, ids, mask, types):
            scope = "bert.embeddings."
            positions = torch.arange(ids.shape[1])[None, :]
            x = self.norm(
                scope + "LayerNorm",
                functional.embedding(
                    ids, self.weight(scope + "word_embeddings.weight")) +
                functional.embedding(
                    positions,
                    self.weight(scope + "position_embeddings.weight")) +
                functional.embedding(
                    types, self.weight(scope + "token_type_embeddings.weight")))
            bias = (1.0 - mask[:, None, None, :].float()) * -10000.0
            batch, length = ids.shape

            def split(y):
                return y.view(batch, length, heads,
                              hidden // heads).transpose(1, 2)

            for layer in range(config["num_hidden_layers"]):
                scope = "bert.encoder.layer.%d." % layer
                q, k, v = (split(self.linear(scope + "attention.self." + part,
                                             x))
                           for part in ("query", "key", "value"))
                scores = q @ k.transpose(-1, -2) / math.sqrt(hidden // heads)
                y = torch.softmax(scores + bias, -1) @ v
                y = y.transpose(1, 2).reshape(batch, length, hidden)
                y = self.linear(scope + "attention.output.dense", y)
                x = self.norm(scope + "attention.output.LayerNorm", y + x)
                y = functional.gelu(self.linear(scope + "intermediate.dense",
                                                x))
                y = self.linear(scope + "output.dense", y)
                x = self.norm(scope + "output.LayerNorm", y + x)
            return self.linear(
                "classifier",
                torch.tanh(self.linear("bert.pooler.dense", x[:, 0])))

    ids = torch.randint(0, config["vocab_size"], (2, 16))
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    torch.onnx.export(
        Bert().eval(), (ids, torch.ones_like(ids), torch.zeros_like(ids)), out,
        input_names=INPUTS, output_names=["logits"], opset_version=14,
        dynamic_axes={**axes, "logits": {0: "batch"}})


def quantize(source, out):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    nodes, quantized = [], {}

    def add(kind, inputs, outputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def constant(name, value):
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def activation(name):
        """Once, however many products read it."""
        if name not in quantized:
            quantized[name] = [name + end for end in (".q", ".scale", ".zero")]
            add("DynamicQuantizeLinear", [name], quantized[name])
        return quantized[name]

    def weight(name):
        values = numpy_helper.to_array(constants[name])
        scale = np.abs(values).max(0) / 127
        scale[scale == 0] = 1
        steps = np.round(values / scale).clip(-127, 127).astype(np.int8)
        graph.initializer.remove(constants[name])
        return [constant(name + ".q", steps),
                constant(name + ".scale", scale.astype(np.float32)),
                constant(name + ".zero", np.zeros(scale.shape, np.int8))]

    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            nodes.append(node)
            continue
        x, x_scale, x_zero = activation(node.input[0])
        w, w_scale, w_zero = weight(node.input[1])
        name = node.output[0]
        add("MatMulInteger", [x, w, x_zero, w_zero], [name + ".sums"])
        add("Cast", [name + ".sums"], [name + ".float"], to=TensorProto.FLOAT)
        add("Mul", [x_scale, w_scale], [name + ".scale"])
        add("Mul", [name + ".float", name + ".scale"], [name])
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make")
    command.add_argument("folder")
    for name, default in (("layers", 6), ("hidden", 384), ("heads", 12),
                          ("seed", 1)):
        command.add_argument("--" + name, type=int, default=default)
    command = commands.add_parser("export")
    command.add_argument("folder")
    command.add_argument("out")
    command = commands.add_parser("quantize")
    command.add_argument("source")
    command.add_argument("out")
    options = vars(parser.parse_args())
    globals()[options.pop("command")](**options)


if __name__ == "__main__":
    main()
