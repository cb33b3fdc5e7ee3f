"""deploy/fetch_model.sh against a server of our own that stands for Hugging
Face's."""

import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest

import hugging_face
import models

SCRIPT = os.path.join(models.SOURCE_DIR, "deploy", "fetch_model.sh")
NAME = "someone/tiny-model"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; with ranges, as Hugging Face has them."""

    def do_GET(self):
        self.server.asked.append((os.path.basename(self.path),
                                  self.headers.get("Range")))
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        path = self.translate_path(self.path)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not (wanted and self.server.ranges and os.path.isfile(path)):
            super().do_GET()
            return
        with open(path, "rb") as file:
            data = file.read()
        begin = int(wanted.group(1))
        if begin >= len(data):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("Content-Range", "bytes %d-%d/%d" % (
            begin, len(data) - 1, len(data)))
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *arguments):
        pass


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class FetchModelTest(unittest.TestCase):

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="vitrine-e2e-")
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        self.files = os.path.join(self.folder, "site", NAME, "resolve", "main")
        vocab = os.path.join(self.folder, "vocab.txt")
        models.write_vocab(vocab)
        models.write_hugging_face_folder(self.files, vocab, layers=1,
                                         hidden=32, heads=2)
        site = os.path.join(self.folder, "site")
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0),
            lambda *arguments: Handler(*arguments, directory=site))
        self.server.asked, self.server.status, self.server.ranges = [], None, 1
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.keep = os.path.join(self.folder, "keep")
        self.registry = os.path.join(self.folder, "registry")

    @property
    def base(self):
        return "http://127.0.0.1:%d" % self.server.server_port

    def path(self, file):
        return os.path.join(self.files, file)

    def fetch(self, *arguments, name=NAME, base=None):
        environment = {key: value for key, value in os.environ.items()
                       if not key.lower().endswith("_proxy")}
        done = subprocess.run(
            [SCRIPT, name, "--out", self.registry, "--model", "m",
             "--base-url", base or self.base, "--keep", self.keep,
             "--trainer", os.path.join(models.BIN_DIR, "vitrine-trainer"),
             *arguments], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def refused(self, *arguments, **options):
        status, said = self.fetch(*arguments, **options)
        self.assertEqual(status, 1, said)
        self.assertFalse(os.path.exists(os.path.join(self.registry, "m", "1")))
        return said

    def digest(self, file):
        with open(self.path(file), "rb") as data:
            return hashlib.sha256(data.read()).hexdigest()

    def test_fetches_checks_and_imports(self):
        status, said = self.fetch(
            "--sha256", "model.safetensors=" + self.digest("model.safetensors"),
            "--sha256", "vocab.txt=" + self.digest("vocab.txt").upper())
        self.assertEqual(status, 0, said)
        self.assertIn("head       relevance", said)
        self.assertIn(self.digest("config.json") + "  config.json", said)
        self.assertTrue(os.path.exists(os.path.join(self.registry, "m", "1")))
        # Once more: only what may have come since is asked for.
        self.server.asked.clear()
        status, said = self.fetch()
        self.assertEqual(status, 0, said)
        self.assertEqual([file for file, _ in self.server.asked],
                         ["tokenizer_config.json"])
        self.assertTrue(os.path.exists(os.path.join(self.registry, "m", "2")))

    def test_an_url_and_a_revision(self):
        status, said = self.fetch(name=self.base + "/" + NAME + "/resolve/main")
        self.assertEqual(status, 0, said)
        self.keep = os.path.join(self.folder, "again")
        status, said = self.fetch("--revision", "abc")
        self.assertEqual(status, 1, said)
        self.assertIn("/resolve/abc/config.json: not found (404)", said)

    def test_goes_on_where_it_stopped(self):
        with open(self.path("model.safetensors"), "rb") as file:
            data = file.read()
        os.makedirs(self.keep)
        part = os.path.join(self.keep, "model.safetensors.part")
        with open(part, "wb") as file:
            file.write(data[:1000])
        status, said = self.fetch(
            "--sha256", "model.safetensors=" + self.digest("model.safetensors"))
        self.assertEqual(status, 0, said)
        self.assertIn(("model.safetensors", "bytes=1000-"), self.server.asked)
        self.assertFalse(os.path.exists(part))

    def test_starts_again_where_a_server_cannot_go_on(self):
        for ranges, length in ((False, 1000), (True, 10 ** 6)):
            with self.subTest(ranges=ranges):
                self.server.ranges = ranges
                self.keep = os.path.join(self.folder, "keep%d" % ranges)
                os.makedirs(self.keep)
                with open(os.path.join(self.keep, "model.safetensors.part"),
                          "wb") as file:
                    file.write(b"x" * length)
                status, said = self.fetch(
                    "--sha256",
                    "model.safetensors=" + self.digest("model.safetensors"))
                self.assertEqual(status, 0, said)

    def test_shards(self):
        tensors, _ = hugging_face.read_safetensors(
            self.path("model.safetensors"))
        os.remove(self.path("model.safetensors"))
        names = sorted(tensors)
        halves = {"model-00001-of-00002.safetensors": names[::2],
                  "model-00002-of-00002.safetensors": names[1::2]}
        for file, part in halves.items():
            hugging_face.write_safetensors(
                self.path(file), {name: tensors[name] for name in part})
        with open(self.path("model.safetensors.index.json"), "w") as index:
            json.dump({"metadata": {"total_size": 1},
                       "weight_map": {name: file for file, part in
                                      halves.items() for name in part}}, index)
        status, said = self.fetch()
        self.assertEqual(status, 0, said)
        os.remove(self.path("model-00002-of-00002.safetensors"))
        self.keep = os.path.join(self.folder, "again")
        status, said = self.fetch()
        self.assertEqual(status, 1, said)
        self.assertIn("model-00002-of-00002.safetensors: not found (404)", said)

    def test_a_wrong_digest(self):
        said = self.refused("--sha256", "model.safetensors=" + "0" * 64)
        self.assertIn("model.safetensors: its SHA-256 is %s, not 0000" %
                      self.digest("model.safetensors"), said)
        self.assertFalse(os.path.exists(
            os.path.join(self.keep, "model.safetensors")))
        said = self.refused("--sha256", "model.bin=" + "0" * 64)
        self.assertIn("--sha256 model.bin: no such file was needed", said)

    def test_what_is_not_there_is_named(self):
        said = self.refused(name="someone/nothing")
        self.assertIn("someone/nothing/resolve/main/config.json: not found "
                      "(404)", said)
        os.remove(self.path("vocab.txt"))
        self.assertIn("not found (404): vocab.txt, sentencepiece.bpe.model",
                      self.refused())
        os.remove(self.path("model.safetensors"))
        self.keep = os.path.join(self.folder, "again")
        self.assertIn("model.safetensors: not found (404), nor its .index.json",
                      self.refused())

    def test_who_may_not_or_cannot(self):
        self.server.status = 401
        self.assertIn("HTTP 401: there is no such model, or it is not public",
                      self.refused())
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            base = "http://127.0.0.1:%d" % closed.getsockname()[1]
            said = self.refused(base=base)
        self.assertIn("config.json: no connection: curl: (7)", said)

    def test_wrong_usage(self):
        for arguments, message in (
                (("--sha256", "model.safetensors=12"), "64 hexadecimal"),
                (("--nothing",), "unknown option --nothing"),
                (("second",), "two models"), (("--keep",), "needs a value")):
            status, said = self.fetch(*arguments)
            self.assertEqual(status, 2, said)
            self.assertIn(message, said)
        status, said = self.fetch(name="../up")
        self.assertEqual(status, 2, said)


if __name__ == "__main__":
    unittest.main()
