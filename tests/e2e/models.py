"""Makes the models that the end-to-end tests serve, with vitrine-trainer.

  shop   2 versions, every kind of head, tiny: answers in milliseconds
  slow   1 version, the sequence head of a Hugging Face folder, wide and deep
         enough that a large call takes seconds

They stay in the build folder and are made again when vitrine-trainer is newer.
"""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys

import hugging_face

BIN_DIR = os.environ.get("VITRINE_BIN_DIR", "build/release/bin")
SOURCE_DIR = os.environ.get(
    "VITRINE_SOURCE_DIR",
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
MODELS = os.environ.get("VITRINE_E2E_MODELS", "build/release/e2e_models")
SHOP = os.path.join(SOURCE_DIR, "deploy", "starter", "shop")

WORDS = """red blue green black white oak steel velvet leather cotton sofa couch
table chair lamp rug desk shelf mirror bed pillow kettle toaster pan knife mug
drill saw hammer hose tent boots jacket scarf gloves ball bike helmet phone
charger cable speaker book pen paper small large round two seat three piece set
for and the with of home kitchen garden living room good bad spam normal""".split()


def trainer(*arguments):
    """Runs vitrine-trainer; its output is shown where it fails."""
    command = [os.path.join(BIN_DIR, "vitrine-trainer"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError("%s: exit %d\n%s" % (
            " ".join(command), done.returncode, done.stdout))
    return done.stdout


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_vocab(path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = special + WORDS + letters + ["##" + c for c in letters]
    pieces += list("0123456789.,-!?'") + ["##" + d for d in "0123456789"]
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(dict.fromkeys(pieces)) + "\n")


def make_shop(folder, registry):
    """Every kind of head over a tiny encoder; what it learns is no matter."""
    pick = random.Random(1)
    items = [{"id": "i%d" % i,
              "title": " ".join(pick.sample(WORDS[:40], 3)),
              "brand": pick.choice(["oak", "steel"]),
              "categories": [pick.choice(["home", "kitchen", "garden"])],
              "description": " ".join(pick.sample(WORDS, 6)),
              "attributes": {"color": pick.choice(["red", "blue"])}}
             for i in range(40)]
    ids = [item["id"] for item in items]
    path = lambda name: os.path.join(folder, name)
    write_lines(path("items.jsonl"), items)
    write_lines(path("relevance.jsonl"), (
        {"query": query, "item_id": item, "grade": pick.randint(0, 3)}
        for query in WORDS[:20] for item in pick.sample(ids, 4)))
    write_lines(path("users.jsonl"), (
        {"user_id": "u%d" % u, "items": pick.sample(ids, 5)}
        for u in range(30)))
    write_lines(path("interest.jsonl"), (
        {"user_id": "u%d" % u, "items": pick.sample(ids, 3),
         "categories": pick.sample(["home", "kitchen", "garden"], 2)}
        for u in range(30)))
    write_lines(path("spam.jsonl"), (
        {"text": " ".join(pick.sample(WORDS, 4)),
         "label": pick.choice(["spam", "normal"])} for _ in range(40)))
    for seed in (1, 2):
        encoder = path("encoder%d" % seed)
        trainer("init", "--vocab", path("vocab.txt"), "--layers", 2,
                "--hidden", 32, "--heads", 2, "--seed", seed, "--out", encoder)
        trainer("fit", "--from", encoder, "--out", registry,
                "--model", "shop", "--items", path("items.jsonl"),
                "--task", "relevance", "--data", path("relevance.jsonl"),
                "--task", "recommendation", "--data", path("users.jsonl"),
                "--task", "interest", "--data", path("interest.jsonl"),
                "--task", "classification", "--data", path("spam.jsonl"),
                "--epochs", 1, "--learning-rate", "1e-3", "--seed", seed)


def write_hugging_face_folder(folder, vocab, layers, hidden, heads, seed=1):
    """A BertForSequenceClassification with one output, random weights."""
    with open(vocab, encoding="utf-8") as lines:
        pieces = lines.read()
    config = {"model_type": "bert", "vocab_size": len(pieces.splitlines()),
              "architectures": ["BertForSequenceClassification"],
              "hidden_size": hidden, "num_hidden_layers": layers,
              "num_attention_heads": heads, "intermediate_size": 4 * hidden,
              "max_position_embeddings": 128, "type_vocab_size": 2,
              "layer_norm_eps": 1e-12, "hidden_act": "gelu",
              "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
              "pad_token_id": 0, "id2label": {"0": "LABEL_0"}}
    shapes = {"bert." + name: shape
              for name, shape in hugging_face.bert_shapes(config).items()}
    shapes["classifier.weight"], shapes["classifier.bias"] = [1, hidden], [1]
    hugging_face.write_folder(folder, config,
                              hugging_face.random_tensors(shapes, seed),
                              {"vocab.txt": pieces})


def make_slow(folder, registry):
    source = os.path.join(folder, "slow")
    write_hugging_face_folder(source, os.path.join(folder, "vocab.txt"),
                              layers=6, hidden=256, heads=4)
    trainer("import", "--from", source, "--out", registry, "--model", "slow")


def ensure_models():
    """The registry with the models, made where it is missing or out of date."""
    os.makedirs(os.path.dirname(os.path.abspath(MODELS)), exist_ok=True)
    with open(os.path.abspath(MODELS) + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        registry = os.path.join(MODELS, "registry")
        done = os.path.join(MODELS, "done")
        newest = max(os.path.getmtime(os.path.abspath(__file__)),
                     os.path.getmtime(os.path.join(BIN_DIR, "vitrine-trainer")))
        if os.path.exists(done) and os.path.getmtime(done) > newest:
            return registry
        shutil.rmtree(MODELS, ignore_errors=True)
        os.makedirs(registry)
        write_vocab(os.path.join(MODELS, "vocab.txt"))
        make_shop(MODELS, registry)
        make_slow(MODELS, registry)
        open(done, "w").close()
        return registry


if __name__ == "__main__":
    print(ensure_models())
    sys.exit(0)
