"""Folders by the layouts of well-known checkpoints, with tiny random weights:
taken as they are, and published so that transformers' BertModel finds every
tensor that it expects."""

import json
import os
import subprocess
import tempfile
import unittest

import numpy

import hugging_face
import models

TOKENIZERS = os.path.join(models.SOURCE_DIR, "tests", "data", "tokenizer")
SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
ENGLISH = SPECIAL + "red\nshoes\nrunning\na\nwooden\ntable\n##s\nfor\nsix\n"
CHINESE = SPECIAL + "红\n色\n跑\n鞋\n木\n桌\n##s\nsofa\n"


def config_of(**changes):
    config = {"model_type": "bert", "architectures": ["BertModel"],
              "attention_probs_dropout_prob": 0.1,
              "gradient_checkpointing": False, "hidden_act": "gelu",
              "hidden_dropout_prob": 0.1, "hidden_size": 32,
              "initializer_range": 0.02, "intermediate_size": 64,
              "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
              "num_attention_heads": 2, "num_hidden_layers": 2,
              "pad_token_id": 0, "position_embedding_type": "absolute",
              "transformers_version": "4.8.2", "type_vocab_size": 2,
              "use_cache": True, "vocab_size": len(ENGLISH.splitlines())}
    config.update(changes)
    return config


def for_masked_lm(tensors, config):
    """As Google's checkpoints were converted: a prefix, gamma and beta, and the
    heads of pre-training."""
    out = {}
    for name, values in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        out["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = values
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    head = {"cls.predictions.bias": [vocab],
            "cls.predictions.transform.dense.weight": [hidden, hidden],
            "cls.predictions.transform.dense.bias": [hidden],
            "cls.predictions.transform.LayerNorm.gamma": [hidden],
            "cls.predictions.transform.LayerNorm.beta": [hidden],
            "cls.seq_relationship.weight": [2, hidden],
            "cls.seq_relationship.bias": [2]}
    out.update(hugging_face.random_tensors(head))
    return out


def with_position_ids(tensors, config):
    positions = numpy.arange(config["max_position_embeddings"], dtype="<i8")
    return dict(tensors, **{"embeddings.position_ids": positions[None]})


class HuggingFaceTest(unittest.TestCase):

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="vitrine-e2e-")
        self.addCleanup(self.temporary.cleanup)
        self.registry = os.path.join(self.temporary.name, "registry")

    def check_version(self, folder, tokenizer_class):
        """That BertModel.from_pretrained() and AutoTokenizer find in a
        published folder what they look for."""
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        self.assertEqual(config["model_type"], "bert")
        self.assertEqual(config["architectures"], ["BertModel"])
        self.assertNotIn("id2label", config)
        shapes = hugging_face.bert_shapes(config)
        tensors, metadata = hugging_face.read_safetensors(
            os.path.join(folder, "model.safetensors"))
        self.assertEqual({name: list(values.shape)
                          for name, values in tensors.items()}, shapes)
        # Older releases of transformers refuse a file without it.
        self.assertEqual(metadata, {"format": "pt"})
        path = os.path.join(folder, "tokenizer_config.json")
        if tokenizer_class is not None:
            with open(path) as file:
                self.assertEqual(json.load(file)["tokenizer_class"],
                                 tokenizer_class)
        return config, tensors

    def check_import(self, name, config, decorate, files):
        """Writes a folder, imports it, and compares what was published."""
        tensors = hugging_face.random_tensors(hugging_face.bert_shapes(config))
        source = os.path.join(self.temporary.name, name)
        hugging_face.write_folder(source, config, decorate(tensors, config),
                                  files)
        said = models.trainer("import", "--from", source, "--out",
                              self.registry, "--model", "m")
        self.assertIn("head       none", said)
        folder = os.path.join(self.registry, "m", "1")
        tokenizer_class = json.loads(
            files.get("tokenizer_config.json", "{}")).get("tokenizer_class")
        published, found = self.check_version(folder, tokenizer_class)
        for field in ("vocab_size", "hidden_size", "num_hidden_layers",
                      "num_attention_heads", "intermediate_size",
                      "max_position_embeddings", "type_vocab_size",
                      "layer_norm_eps", "hidden_act", "pad_token_id"):
            self.assertEqual(published[field], config[field], field)
        for key, values in tensors.items():
            numpy.testing.assert_array_equal(found[key], values, key)
        for file, content in files.items():
            with open(os.path.join(folder, file), "rb") as there:
                expected = content
                if isinstance(expected, str):
                    expected = expected.encode()
                self.assertEqual(there.read(), expected, file)
        return said

    def test_bert_base_uncased(self):
        config = config_of(architectures=["BertForMaskedLM"])
        said = self.check_import(
            "bert-base-uncased", config, for_masked_lm,
            {"vocab.txt": ENGLISH, "tokenizer_config.json": json.dumps(
                {"do_lower_case": True, "model_max_length": 512})})
        self.assertIn("wordpiece", said)

    def test_all_minilm(self):
        self.check_import(
            "all-MiniLM-L6-v2", config_of(), with_position_ids,
            {"vocab.txt": ENGLISH, "tokenizer_config.json": json.dumps({
                "do_lower_case": True, "unk_token": "[UNK]",
                "sep_token": "[SEP]", "pad_token": "[PAD]",
                "cls_token": "[CLS]", "mask_token": "[MASK]",
                "tokenize_chinese_chars": True, "strip_accents": None,
                "name_or_path": "nreimers/MiniLM-L6-H384-uncased",
                "do_basic_tokenize": True, "never_split": None,
                "tokenizer_class": "BertTokenizer",
                "model_max_length": 512})})

    def test_bert_base_chinese(self):
        config = config_of(
            architectures=["BertForMaskedLM"], directionality="bidi",
            pooler_fc_size=768, pooler_num_attention_heads=12,
            pooler_num_fc_layers=3, pooler_size_per_head=128,
            pooler_type="first_token_transform",
            vocab_size=len(CHINESE.splitlines()))
        self.check_import(
            "bert-base-chinese", config, for_masked_lm,
            {"vocab.txt": CHINESE, "tokenizer_config.json": json.dumps(
                {"do_lower_case": False, "model_max_length": 512})})

    def test_multilingual_e5(self):
        # BERT's architecture over XLM-RoBERTa's pieces, fewer than the
        # embedding table has rows; pad_token_id is BERT's, and means nothing.
        with open(os.path.join(TOKENIZERS, "xlmr.model"), "rb") as file:
            pieces = file.read()
        said = self.check_import(
            "multilingual-e5-small",
            config_of(vocab_size=4096, tokenizer_class="XLMRobertaTokenizer"),
            with_position_ids,
            {"sentencepiece.bpe.model": pieces,
             "tokenizer_config.json": json.dumps({
                 "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
                 "cls_token": "<s>", "unk_token": "<unk>",
                 "pad_token": "<pad>", "mask_token": {
                     "content": "<mask>", "lstrip": True, "rstrip": False},
                 "tokenizer_class": "XLMRobertaTokenizer",
                 "model_max_length": 512})})
        self.assertIn("sentencepiece", said)
        # It loads as in a server, golden outputs and all; then there is no head.
        done = subprocess.run(
            [os.path.join(models.BIN_DIR, "vitrine-trainer"), "evaluate",
             os.path.join(self.registry, "m", "1"),
             "--task", "relevance", "--data", __file__],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("it has no heads at all", done.stdout)

    def test_bge_small(self):
        # Labels of a head that is not there: no head is made of them.
        self.check_import(
            "bge-small-en-v1.5",
            config_of(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0},
                      classifier_dropout=None, torch_dtype="float32"),
            lambda tensors, config: tensors,
            {"vocab.txt": ENGLISH, "tokenizer_config.json": json.dumps({
                "cls_token": "[CLS]", "clean_up_tokenization_spaces": True,
                "do_basic_tokenize": True, "do_lower_case": True,
                "mask_token": "[MASK]", "model_max_length": 512,
                "never_split": None, "pad_token": "[PAD]",
                "sep_token": "[SEP]", "strip_accents": None,
                "tokenize_chinese_chars": True,
                "tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"})})

    def test_what_was_trained_here(self):
        registry = models.ensure_models()
        self.check_version(os.path.join(registry, "shop", "1"),
                           "BertTokenizer")

    def test_an_encoder_over_sentencepiece(self):
        folder = os.path.join(self.temporary.name, "albert")
        models.trainer("init", "--spm", os.path.join(TOKENIZERS, "albert.model"),
                       "--spm-layout", "albert", "--layers", 1, "--hidden", 32, "--out", folder)
        self.check_version(folder, "AlbertTokenizer")


if __name__ == "__main__":
    unittest.main()
