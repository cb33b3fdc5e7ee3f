#!/usr/bin/env python3
"""What deploy/gpu_check.sh runs once GPU engine and trainer are built. Of the
engine: its tests, logits against a reference, and its speed beside Hugging Face
transformers (SDPA, bf16) and the device's matrix products. Of the trainer: its
tests, the sample shop's texts and labels on the device and on the CPU, and the
speed of pre-training beside plain PyTorch's.

  gpu_check.py --bin FOLDER --work FOLDER [--device cuda|cpu] [--quick]

FOLDER of --bin has engine_bench and gpu_tests, and vitrine-trainer and
pass_tests where the trainer was built; models with random weights are made in
--work, unless they are there. Needs PyTorch and NumPy.
"""
import argparse
import json
import math
import os
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time

import torch

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
sys.path.insert(0, os.path.join(ROOT, "tests/data"))
import reference_bert  # noqa: E402

try:
    import transformers
except ImportError:
    transformers = None

# The reference calls math.erf for each element, which takes minutes on large
# models; this is the same function in the same precision.
reference_bert.ERF = lambda x: torch.erf(torch.from_numpy(x)).numpy()

SHAPES = {  # layers, hidden, heads, intermediate, vocabulary
    "small": (2, 128, 2, 512, 1000),
    "odd": (2, 320, 5, 1000, 997),
    "minilm": (6, 384, 12, 1536, 30522),
    "bert-base": (12, 768, 12, 3072, 30522),
}
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}
BATCHES = (32, 64, 128, 256)
# Of the two targets.
TIMES_PEER, SHARE_OF_PRODUCTS = 2, 0.5


def make_model(folder, layers, hidden, heads, intermediate, vocab):
    """A BertForSequenceClassification with one output. Products keep the
    variance of what they multiply, as training leaves it about."""
    generator = torch.Generator().manual_seed(hidden)

    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std

    tensors = {}

    def linear(name, to, by):
        tensors[name + ".weight"] = normal(to, by, std=1 / math.sqrt(by))
        tensors[name + ".bias"] = normal(to, std=0.02)

    def norm(name):
        tensors[name + ".weight"] = 1 + normal(hidden, std=0.02)
        tensors[name + ".bias"] = normal(hidden, std=0.02)

    scope = "bert.embeddings."
    for name, rows in (("word", vocab), ("position", 512), ("token_type", 2)):
        tensors[f"{scope}{name}_embeddings.weight"] = normal(
            rows, hidden, std=0.05)
    norm(scope + "LayerNorm")
    for layer in range(layers):
        scope = f"bert.encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            linear(f"{scope}attention.self.{part}", hidden, hidden)
        linear(scope + "attention.output.dense", hidden, hidden)
        norm(scope + "attention.output.LayerNorm")
        linear(scope + "intermediate.dense", intermediate, hidden)
        linear(scope + "output.dense", hidden, intermediate)
        norm(scope + "output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", 1, hidden)

    os.makedirs(folder, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "vocab_size": vocab,
        "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    }
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(config, out, indent=1)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            out.write(tensor.numpy().tobytes())


def random_rows(vocab, lengths, seed):
    draw = random.Random(seed)
    rows = []
    for length in lengths:
        first = draw.randint(1, length)
        rows.append({"ids": [draw.randrange(vocab) for _ in range(length)],
                     "type_ids": [int(i >= first) for i in range(length)]})
    return rows


def write_rows(path, rows):
    with open(path, "w") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def median_seconds(run, rounds, device):
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Bench:
    """engine_bench: a process a call, so that nothing carries over."""

    def __init__(self, options):
        self.program = os.path.join(options.bin, "engine_bench")
        self.device = options.device

    def run(self, model, ids, dtype, *more):
        command = [self.program, "--model", model, "--ids", ids, "--engine",
                   "torch", "--device", self.device, "--dtype", dtype, *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"gpu_check: failed: {' '.join(command)}")
        return json.loads(done.stdout)

    def logits(self, model, ids, dtype, *more):
        path = ids + ".logits"
        self.run(model, ids, dtype, "--rounds", "1", "--logits", path, *more)
        with open(path) as lines:
            return [json.loads(line)["logits"][0] for line in lines]


class Peer:
    """transformers' BertForSequenceClassification with SDPA."""

    def __init__(self, folder, device, dtype):
        self.device = device
        model = transformers.BertForSequenceClassification.from_pretrained(
            folder, attn_implementation="sdpa")
        self.model = model.to(device, dtype).eval()

    def batches(self, rows, size, by_length=True):
        """Padded to the longest of each batch: (their rows, tensors)."""
        order = list(range(len(rows)))
        if by_length:
            order.sort(key=lambda i: len(rows[i]["ids"]))
        out = []
        for begin in range(0, len(order), size):
            part = order[begin:begin + size]
            longest = max(len(rows[i]["ids"]) for i in part)
            tensors = {}
            for name, key in (("input_ids", "ids"),
                              ("token_type_ids", "type_ids")):
                tensors[name] = torch.tensor([
                    rows[i][key] + [0] * (longest - len(rows[i][key]))
                    for i in part])
            tensors["attention_mask"] = torch.tensor([
                [1] * len(rows[i]["ids"]) +
                [0] * (longest - len(rows[i]["ids"])) for i in part])
            if self.device == "cuda":
                tensors = {n: t.pin_memory() for n, t in tensors.items()}
            out.append((part, tensors))
        return out

    @torch.inference_mode()
    def logits(self, rows, batches):
        out = [0.0] * len(rows)
        for part, tensors in batches:
            inputs = {n: t.to(self.device, non_blocking=True)
                      for n, t in tensors.items()}
            values = self.model(**inputs).logits.float().cpu()
            for i, value in zip(part, values[:, 0].tolist()):
                out[i] = value
        return out


def distance(a, b):
    """The largest difference; NaN counts as infinite."""
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    if any(math.isnan(d) for d in differences):
        return math.inf
    return max(differences)


def rank_correlation(a, b):
    def ranks(values):
        order = sorted(range(len(values)), key=values.__getitem__)
        out = [0] * len(values)
        for rank, i in enumerate(order):
            out[i] = rank
        return out

    n = len(a)
    squares = sum((x - y)**2 for x, y in zip(ranks(a), ranks(b)))
    return 1 - 6 * squares / (n * (n * n - 1))


class Table:

    def __init__(self, title, *columns):
        self.title, self.columns, self.rows = title, columns, []

    def add(self, **row):
        self.rows.append(row)

    def show(self):
        cells = [[str(row.get(c, "")) for c in self.columns]
                 for row in self.rows]
        widths = [max(len(line[i]) for line in [list(self.columns), *cells])
                  for i in range(len(self.columns))]
        print(f"\n{self.title}")
        for line in [list(self.columns), *cells]:
            print("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip())
        print(flush=True)


def check_parity(options, bench, models):
    table = Table("Logits: the largest difference from the reference",
                  "model", "engine", "batch", "error", "tolerance", "ranks",
                  "passed")
    draw = random.Random(1)
    lengths = [1, 2, 3, 31, 128, 511, 512, 31, 30, 16, 17]
    lengths += [draw.randint(8, 128) for _ in range(21)]
    dtypes = ["fp32", "bf16"] + (["fp16"] if options.device == "cuda" else [])
    for name, folder in models.items():
        rows = random_rows(SHAPES[name][4], lengths, seed=2)
        ids = os.path.join(options.work, name + ".parity.jsonl")
        write_rows(ids, rows)
        reference = reference_bert.Model(folder)
        expected = [
            float(reference.logits(reference.hidden(
                row["ids"], row["type_ids"]))[0]) for row in rows]

        def add(engine, batch, logits, dtype, counts=True):
            error = distance(logits, expected)
            tolerance = TOLERANCE[dtype]
            table.add(kind="parity", model=name, engine=engine, batch=batch,
                      error=float(f"{error:.2g}"), tolerance=tolerance,
                      ranks=round(rank_correlation(logits, expected), 4),
                      passed=error <= tolerance if counts else "")

        for dtype in dtypes:
            # One by one and in threes, after rounds that let graphs be
            # captured; all at once, without.
            for batch, more in (
                ("1", ["--single", "--warmup-rounds", "3"]),
                ("3", ["--batch", "3", "--warmup-rounds", "3"]),
                (str(len(rows)), ["--batch", str(len(rows))])):
                add("vitrine " + dtype, batch,
                    bench.logits(folder, ids, dtype, *more), dtype)
        if transformers is None:
            continue
        for dtype in dtypes:
            torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16,
                           "fp16": torch.float16}[dtype]
            peer = Peer(folder, options.device, torch_dtype)
            # In fp32 it vouches for the reference; below, it is what others
            # get, and no fault of ours.
            add("transformers " + dtype, "3",
                peer.logits(rows, peer.batches(rows, 3)), dtype,
                counts=dtype == "fp32")
    table.show()
    return table


def product_rate(options, hidden, intermediate):
    """FLOP/s of a layer's four products, one after the other, in bf16."""
    tokens = 8192 if options.device == "cuda" else 512
    make = lambda *shape: torch.randn(  # noqa: E731
        *shape, device=options.device, dtype=torch.bfloat16)
    pairs = [(make(tokens, by), make(to, by).t())
             for to, by in ((3 * hidden, hidden), (hidden, hidden),
                            (intermediate, hidden), (hidden, intermediate))]
    repeats = 20 if options.device == "cuda" else 2

    def run():
        for _ in range(repeats):
            for x, weight in pairs:
                torch.matmul(x, weight)

    operations = repeats * sum(
        2 * x.shape[0] * weight.shape[0] * weight.shape[1]
        for x, weight in pairs)
    return operations / median_seconds(run, 10, options.device)


def time_model(options, bench, name, folder):
    table = Table(f"{name}, bf16, 8 to 128 tokens", "engine", "batch",
                  "tokens_per_s", "share_of_products", "p50_ms")
    layers, hidden, _, intermediate, vocab = SHAPES[name]
    operations = 2 * layers * (4 * hidden**2 + 2 * hidden * intermediate)
    draw = random.Random(3)
    count = 512 if options.quick else 2048
    if options.device == "cpu":
        count = 64
    rows = random_rows(vocab, [draw.randint(8, 128) for _ in range(count)], 4)
    ids = os.path.join(options.work, name + ".ids.jsonl")
    write_rows(ids, rows)
    tokens = sum(len(row["ids"]) for row in rows)
    short = os.path.join(options.work, name + ".short.jsonl")
    write_rows(short, random_rows(vocab, [32] * 64, 5))
    with open(short) as lines:
        short_rows = [json.loads(line) for line in lines]

    rate = product_rate(options, hidden, intermediate)
    peer = None
    if transformers is not None:
        peer = Peer(folder, options.device, torch.bfloat16)
    best = {}  # engine: batch
    speeds = {}  # engine: tokens per second, by round

    def ours(batch):
        return bench.run(folder, ids, "bf16", "--batch", str(batch),
                         "--warmup-rounds", "3", "--rounds",
                         "5")["tokens_per_s"]

    def theirs(batch):
        batches = peer.batches(rows, batch)
        run = lambda: peer.logits(rows, batches)  # noqa: E731
        run()
        return tokens / median_seconds(run, 5, options.device)

    engines = {"vitrine": ours}
    if peer is not None:
        engines["transformers"] = theirs
    # The best batch of each in a first round; then in turn.
    for engine, measure in engines.items():
        found = {batch: measure(batch) for batch in BATCHES}
        for batch, speed in found.items():
            table.add(kind="throughput", model=name, engine=engine,
                      batch=batch, tokens_per_s=round(speed))
        best[engine] = max(found, key=found.get)
        speeds[engine] = [found[best[engine]]]
    for _ in range(0 if options.quick else 2):
        for engine, measure in engines.items():
            speeds[engine].append(measure(best[engine]))
    medians = {e: statistics.median(values) for e, values in speeds.items()}
    for engine, speed in medians.items():
        table.add(kind="best", model=name, engine=engine, batch=best[engine],
                  tokens_per_s=round(speed),
                  share_of_products=round(speed * operations / rate, 3))
    table.add(kind="products", model=name, engine="products alone",
              tokens_per_s=round(rate / operations), share_of_products=1)

    single = bench.run(folder, short, "bf16", "--single", "--warmup-rounds",
                       "3", "--rounds", "5")
    table.add(kind="latency", model=name, engine="vitrine, 32 tokens", batch=1,
              p50_ms=single["p50_ms"])
    if peer is not None:
        batches = peer.batches(short_rows, 1)
        peer.logits(short_rows, batches)
        times = []
        for batch in batches:
            one = [([0], batch[1])]
            start = time.perf_counter()
            peer.logits(short_rows[:1], one)
            times.append(time.perf_counter() - start)
        table.add(kind="latency", model=name, engine="transformers, 32 tokens",
                  batch=1, p50_ms=round(1e3 * statistics.median(times), 3))
    table.show()

    share = medians["vitrine"] * operations / rate
    print(f"{name}: {share:.2f} of {rate / 1e12:.1f} TFLOP/s in products "
          f"(target {SHARE_OF_PRODUCTS} on bert-base)")
    if peer is not None:
        times = medians["vitrine"] / medians["transformers"]
        print(f"{name}: {times:.2f} times transformers (target {TIMES_PEER})")
    return table


class Trainer:
    """vitrine-trainer, from the repository's root."""

    def __init__(self, options):
        self.program = os.path.join(options.bin, "vitrine-trainer")
        self.work = options.work

    def run(self, *arguments):
        """Standard output; the trainer's progress goes to the log."""
        with open(os.path.join(self.work, "trainer.log"), "a+") as log:
            begin = log.seek(0, os.SEEK_END)
            done = subprocess.run(
                [self.program, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                stderr=log, text=True)
            if done.returncode == 0:
                return done.stdout
            log.seek(begin)
            sys.exit(f"{log.read()[-2000:]}\ngpu_check: failed: "
                     f"vitrine-trainer {' '.join(arguments)}")

    def pretrain(self, name, device, *arguments):
        """(perplexity, tokens per second) of a folder that is made anew."""
        out = os.path.join(self.work, name)
        shutil.rmtree(out, ignore_errors=True)
        told = self.run("pretrain", "--device", device, "--out", out,
                        *arguments)
        numbers = re.search(r"(\d+) tokens/s, perplexity ([0-9.]+|\w+)", told)
        return float(numbers[2]), float(numbers[1])


SHOP = "deploy/starter/shop/"
STARTER = "deploy/starter/model"


def check_training(options, trainer):
    """In fp32 and without dropout the device is to end where the CPU does."""
    table = Table("Training on the sample shop, by the device and by the CPU",
                  "what", "measure", "cpu", "device", "passed")
    devices = ["cpu", options.device]

    def add(what, measure, values, near):
        table.add(kind="training", what=what, measure=measure,
                  cpu=round(values[0], 4), device=round(values[1], 4),
                  passed=abs(values[0] - values[1]) <= near)

    texts = ["--text", SHOP + "items.jsonl", "--fields",
             "title,description?,categories?", "--from", STARTER, "--seed",
             "1", "--epochs", "1", "--held-out-share", "0.3", "--dropout",
             "0", "--bf16", "off", "--pooling", "mean", "--learning-rate",
             "2e-4"]
    for stage in ("mlm", "contrastive", "matching"):
        found = [trainer.pretrain(stage, device, "--stage", stage, *texts)[0]
                 for device in devices]
        add(stage, "perplexity", found, 1e-2 * found[0])
    fit = ["--from", STARTER, "--recipe", "deploy/recipes/shop.toml",
           "--items", SHOP + "items.jsonl", "--task", "relevance", "--data",
           SHOP + "relevance.jsonl", "--task", "classification", "--head",
           "category", "--data", SHOP + "categories.jsonl", "--epochs", "1",
           "--bf16", "off", "--out", os.path.join(options.work, "registry"),
           "--model", "shop", "--json"]
    reports = [json.loads(trainer.run("fit", "--device", device, *fit))
               for device in devices]
    for head, measure in (("relevance", "ndcg@10"), ("category", "accuracy")):
        # Rounding grows over the steps: near, not equal.
        add("fit", f"{head} {measure}",
            [next(h["after"][measure] for h in report["heads"]
                  if h["name"] == head) for report in reports], 0.02)
    table.show()
    return table


def make_words(folder, words, documents):
    """A text of words that are drawn by Zipf's law, and their vocabulary."""
    os.makedirs(folder, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = ["".join(letters[i // 26**place % 26] for place in range(4))
             for i in range(words)]
    with open(os.path.join(folder, "vocab.txt"), "w") as out:
        for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + vocab:
            out.write(token + "\n")
    draw = random.Random(6)
    weights = [1 / (i + 10) for i in range(words)]
    with open(os.path.join(folder, "text.txt"), "w") as out:
        for _ in range(documents):
            out.write(" ".join(draw.choices(
                vocab, weights, k=draw.randint(8, 126))) + "\n")


def time_training(options, trainer):
    """Masked words beside pretrain_bench.py, which is plain PyTorch."""
    table = Table("Pre-training in bf16, tokens per second", "model",
                  "vitrine", "pytorch", "ratio")
    on_gpu = options.device == "cuda"
    words = os.path.join(options.work, "words")
    make_words(words, 16000, 20000 if on_gpu else 1000)
    text = os.path.join(words, "text.txt")
    if on_gpu:
        shapes = {"4 layers of 256": (4, 256, 4000000, 16384),
                  "12 layers of 768": (12, 768, 2000000, 32768)}
    else:
        shapes = {"2 layers of 128": (2, 128, 50000, 8192)}
    for name, (layers, hidden, tokens, batch) in shapes.items():
        if options.quick:
            tokens //= 4
        speed = trainer.pretrain(
            "timed", options.device, "--text", text, "--tokenizer", words,
            "--layers", str(layers), "--hidden", str(hidden), "--tokens",
            str(tokens), "--batch-tokens", str(batch), "--share-tokens",
            str(batch // 2), "--bf16", "on", "--evaluate-tokens",
            "1000000000")[1]
        done = subprocess.run(
            [sys.executable,
             os.path.join(ROOT, "tests/bench/pretrain_bench.py"), "--config",
             os.path.join(options.work, "timed/config.json"),
             "--vocab", os.path.join(words, "vocab.txt"), "--text", text,
             "--tokens", str(tokens), "--batch-tokens", str(batch),
             "--share-tokens", str(batch // 2), "--device", options.device],
            stdout=subprocess.PIPE, text=True, check=True)
        theirs = json.loads(done.stdout)["tokens_per_second"]
        table.add(kind="pretraining", model=name, vitrine=round(speed),
                  pytorch=theirs, ratio=round(speed / theirs, 2))
    table.show()
    return table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.bin = os.path.abspath(options.bin)
    options.work = os.path.abspath(options.work)
    on_gpu = options.device == "cuda"
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}, transformers "
          f"{transformers.__version__ if transformers else 'not installed'}",
          flush=True)

    tests = subprocess.run([os.path.join(options.bin, "gpu_tests"),
                            "--gtest_brief=1"])
    passed = tests.returncode == 0

    bench = Bench(options)
    names = list(SHAPES) if on_gpu else ["small", "odd"]
    models = {n: os.path.join(options.work, n) for n in names}
    for name, folder in models.items():
        if not os.path.exists(os.path.join(folder, "model.safetensors")):
            make_model(folder, *SHAPES[name])
    tables = [check_parity(options, bench, models)]
    passed = passed and all(row["passed"] is not False
                            for row in tables[0].rows)
    for name in ["minilm", "bert-base"] if on_gpu else ["small"]:
        tables.append(time_model(options, bench, name, models[name]))
    trainer = Trainer(options)
    if os.path.exists(trainer.program):
        tests = subprocess.run([os.path.join(options.bin, "pass_tests"),
                                "--gtest_brief=1"])
        trained = check_training(options, trainer)
        tables += [trained, time_training(options, trainer)]
        passed = passed and tests.returncode == 0 and all(
            row["passed"] for row in trained.rows)
    else:
        print("gpu_check: the trainer was not built")
        passed = False
    print()
    for table in tables:
        for row in table.rows:
            print(json.dumps(row))
    print(f"gpu_check: {'passed' if passed else 'FAILED'}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
