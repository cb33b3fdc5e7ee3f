#!/usr/bin/python3
"""Masked language modelling in plain PyTorch: what pretrain_bench.sh measures beside ours.

    pretrain_bench.py --config FOLDER/config.json (--pieces FOLDER/spiece.model | --vocab FOLDER/vocab.txt) \
        --text FILE[.gz] --tokens N [--batch-tokens N] [--share-tokens N] [--threads N]
        [--dtype bf16|fp32] [--device cpu|cuda]

The same shape, texts (a document a line) and step as vitrine-trainer pretrain; written as one would by hand:
batches of like lengths, padded; autocast; the output layer sees hidden places only; torch.optim.AdamW. Prints one
JSON line. Tokens are counted without padding. With --vocab the text's words are the vocabulary's. Needs Debian's
python3-torch, python3-numpy, and for --pieces python3-sentencepiece.
"""

import argparse
import gzip
import json
import math
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MASK_SHARE = 0.15


class Layer(nn.Module):
    def __init__(self, hidden, heads, inner, epsilon):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.intermediate = nn.Linear(hidden, inner)
        self.output = nn.Linear(inner, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, x, mask):  # x (texts, length, hidden), mask (texts, 1, 1, length)
        texts, length, hidden = x.shape
        parts = self.query_key_value(x).view(texts, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(hidden // self.heads) + mask, -1)
        context = (weights @ value).transpose(1, 2).reshape(texts, length, hidden)
        x = self.attention_norm(x + self.attention_output(context))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class MaskedLm(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.positions = nn.Embedding(config["max_position_embeddings"], hidden)
        self.norm = nn.LayerNorm(hidden, eps=epsilon)
        self.layers = nn.ModuleList(
            Layer(hidden, config["num_attention_heads"], config["intermediate_size"], epsilon)
            for _ in range(config["num_hidden_layers"])
        )
        self.transform = nn.Linear(hidden, hidden)
        self.transform_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(config["vocab_size"]))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, lengths, places):  # ids (texts, length), places: of the flat ids
        length = ids.shape[1]
        inside = torch.arange(length, device=ids.device)[None, :] < lengths[:, None]
        mask = torch.where(inside, 0.0, -10000.0)[:, None, None, :]
        x = self.norm(self.words(ids) + self.positions(torch.arange(length, device=ids.device)))
        for layer in self.layers:
            x = layer(x, mask)
        x = x.reshape(-1, x.shape[-1])[places]
        x = self.transform_norm(F.gelu(self.transform(x)).float())
        return F.linear(x, self.words.weight, self.bias)


def load_tokenizer(options):
    """A function from text to ids, and one from a special piece to its id."""
    if options.pieces is not None:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=options.pieces)
        return model.encode, model.piece_to_id
    with open(options.vocab, encoding="utf-8") as lines:
        ids = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    return lambda text: [ids[word] for word in text.split()], ids.__getitem__


def read_texts(path, encode, id_of, max_tokens):
    cls, sep = id_of("[CLS]"), id_of("[SEP]")
    texts = []
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            ids = encode(line.strip())
            for begin in range(0, len(ids), max_tokens - 2):
                part = ids[begin : begin + max_tokens - 2]
                if len(part) >= 3:
                    texts.append(np.array([cls] + part + [sep]))
    return texts, id_of("[MASK]")


def shares(texts, tokens):
    """Texts of like lengths, about `tokens` of them padded in each share."""
    texts = sorted(texts, key=len)
    out, share = [], []
    for text in texts:
        if share and (len(share) + 1) * len(text) > tokens:
            out.append(share)
            share = []
        share.append(text)
    return out + [share]


def pad_and_hide(texts, mask_id, random):
    lengths = np.array([len(text) for text in texts])
    ids = np.zeros((len(texts), lengths.max()), np.int64)
    hidden = np.zeros(ids.shape, bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = text
        hidden[i, 1 : len(text) - 1] = random.random(len(text) - 2) < MASK_SHARE
    hidden[0, 1] = True  # one at least
    targets = ids[hidden]
    ids[hidden] = mask_id
    places = np.flatnonzero(hidden)
    return tuple(map(torch.from_numpy, (ids, lengths, places, targets)))


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--config", required=True)
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--pieces")
    tokenizer.add_argument("--vocab")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--share-tokens", type=int, default=4096)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    with open(options.config, encoding="utf-8") as file:
        config = json.load(file)
    encode, id_of = load_tokenizer(options)
    texts, mask_id = read_texts(options.text, encode, id_of, options.max_tokens)
    network = MaskedLm(config).to(options.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)

    order, done, steps, loss = [], 0, 0, 0.0
    begin = time.perf_counter()
    while done < options.tokens:
        step, tokens = [], 0
        while tokens < options.batch_tokens:
            if not order:
                order = list(random.permutation(len(texts)))
            step.append(texts[order.pop()])
            tokens += len(step[-1])
        batches = [pad_and_hide(share, mask_id, random) for share in shares(step, options.share_tokens)]
        places = sum(len(batch[2]) for batch in batches)
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for ids, lengths, hidden, targets in batches:
            ids, lengths, hidden, targets = (x.to(options.device) for x in (ids, lengths, hidden, targets))
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
                logits = network(ids, lengths, hidden)
            part = F.cross_entropy(logits.float(), targets, reduction="sum") / places
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done += tokens
        steps += 1
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "device": options.device,
                "dtype": options.dtype,
                "threads": options.threads,
                "tokens": done,
                "steps": steps,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(done / seconds),
                "loss": round(loss, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
