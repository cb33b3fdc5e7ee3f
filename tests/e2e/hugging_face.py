"""Model folders as Hugging Face lays them out: written with random weights, and
read back without any code of ours."""

import json
import os
import struct

import numpy

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


def bert_shapes(config):
    """The tensors of transformers' BertModel, pooler and all, by name."""
    hidden = config["hidden_size"]
    inner = config["intermediate_size"]
    shapes = {}

    def norm(name):
        shapes[name + ".LayerNorm.weight"] = [hidden]
        shapes[name + ".LayerNorm.bias"] = [hidden]

    def linear(name, out, width):
        shapes[name + ".weight"] = [out, width]
        shapes[name + ".bias"] = [out]

    for part, rows in (("word", "vocab_size"),
                       ("position", "max_position_embeddings"),
                       ("token_type", "type_vocab_size")):
        shapes["embeddings.%s_embeddings.weight" % part] = [config[rows],
                                                            hidden]
    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        scope = "encoder.layer.%d." % layer
        for part in ("query", "key", "value"):
            linear(scope + "attention.self." + part, hidden, hidden)
        linear(scope + "attention.output.dense", hidden, hidden)
        norm(scope + "attention.output")
        linear(scope + "intermediate.dense", inner, hidden)
        linear(scope + "output.dense", hidden, inner)
        norm(scope + "output")
    linear("pooler.dense", hidden, hidden)
    return shapes


def random_tensors(shapes, seed=1):
    generator = numpy.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = generator.normal(0, 0.02, shape).astype("<f4")
        if name.endswith("LayerNorm.weight"):
            tensors[name][:] = 1
    return tensors


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        dtype = {of: name for name, of in DTYPES.items()}[values.dtype.str]
        header[name] = {"dtype": dtype, "shape": list(values.shape),
                        "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            out.write(values.tobytes())


def read_safetensors(path):
    """(tensors, metadata), by the format's description alone."""
    with open(path, "rb") as file:
        data = file.read()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", None)
    body = data[8 + length:]
    tensors, covered = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = numpy.frombuffer(body[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
        covered += end - begin
    assert covered == len(body), "bytes that belong to no tensor"
    return tensors, metadata


def write_folder(folder, config, tensors, files):
    """`files`: other files' names and their text or bytes."""
    os.makedirs(folder)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    files = dict(files, **{"config.json": json.dumps(config, indent=2)})
    for name, content in files.items():
        if isinstance(content, str):
            content = content.encode()
        with open(os.path.join(folder, name), "wb") as out:
            out.write(content)
