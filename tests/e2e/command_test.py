"""The vitrine command: exit codes, tables, JSON lines, and bench."""

import json
import os
import signal
import subprocess

import harness
import models

OK, FAILED, USAGE, UNAVAILABLE, ITEM_ERRORS = range(5)


class CommandTest(harness.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = harness.Server(cls.registry,
                                    "limits { max_items: 100 }")
        cls.addClassCleanup(cls.server.close)
        cls.items = os.path.join(models.MODELS, "items.jsonl")

    def vitrine(self, *arguments, check=OK, **options):
        environment = {"VITRINE_TARGET": self.server.target}
        return harness.run("vitrine", *arguments, check=check,
                           env=environment, **options)

    def lines(self, *arguments, **options):
        return [json.loads(line) for line in
                self.vitrine(*arguments, **options).stdout.splitlines()]

    def file(self, text, name="file"):
        path = os.path.join(self.temporary_folder(), name)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.write(text)
        return path

    def test_help_teaches_every_command(self):
        main = self.vitrine("--help").stdout
        self.assertIn("Exit codes", main)
        for command in ("rank", "score", "interests", "classify", "embed",
                        "tokenize", "status", "bench"):
            self.assertIn(command, main)
            text = self.vitrine(command, "--help").stdout
            self.assertIn("Examples:", text, command)
            self.assertIn("vitrine " + command, text)

    def test_rank_prints_a_table(self):
        out = self.vitrine("rank", "-q", "red sofa", "Red sofa", "Möbel 沙发",
                           "Lamp").stdout.splitlines()
        self.assertRegex(out[0], "^rank +score +title$")
        self.assertEqual([line.split()[0] for line in out[1:4]],
                         ["1", "2", "3"])
        scores = [float(line.split()[1]) for line in out[1:4]]
        self.assertEqual(scores, sorted(scores, reverse=True))
        self.assertIn("model shop version 2", out[-1])

    def test_rank_takes_catalogue_history_and_top_k(self):
        [answer] = self.lines("rank", "--history", "i3", "--history",
                              "Oak table", "--items", self.items, "-k", 5,
                              "--json")
        self.assertEqual(len(answer["items"]), 5)
        self.assertIn("personalization", answer["items"][0])
        self.assertNotIn("relevance", answer["items"][0])
        [all_items] = self.lines("rank", "--history", "i3", "--items",
                                 self.items, "--json")
        [others] = self.lines("rank", "--history", "i3", "--items", self.items,
                              "--exclude-history", "--json")
        self.assertEqual(len(all_items["items"]), 40)
        self.assertEqual(
            {item["item_id"] for item in all_items["items"]} -
            {item["item_id"] for item in others["items"]}, {"i3"})

    def test_weight_blends(self):
        both = ["score", "-q", "sofa", "--history", "lamp", "desk", "--json"]
        [answer] = self.lines(*both, "--weight", 0)
        item = answer["items"][0]
        self.assertAlmostEqual(item["score"], item["relevance"], places=5)
        [answer] = self.lines(*both, "--weight", 1)
        item = answer["items"][0]
        self.assertAlmostEqual(item["score"], item["personalization"],
                               places=5)
        self.vitrine(*both, "--weight", 2, check=USAGE)

    def test_requests_come_as_json_lines(self):
        request = ('{"context":{"query":"sofa"},'
                   '"items":[{"id":"a","title":"Couch"}]}\n')
        for arguments, stdin in (
                (["--requests", self.file(request * 3)], ""),
                (["--requests", "-"], request * 3), ([], request * 3)):
            answers = self.lines("rank", "--json", *arguments, stdin=stdin)
            self.assertEqual([a["items"][0]["item_id"] for a in answers],
                             ["a", "a", "a"])

    def test_a_dry_run_prints_what_requests_reads(self):
        arguments = ["-q", "sofa", "--history", "lamp", "--items", self.items]
        dry = self.vitrine("rank", *arguments, "--dry-run").stdout
        again = self.lines("rank", "--json", stdin=dry)
        direct = self.lines("rank", *arguments, "--json")
        self.assertEqual(
            [item["item_id"] for item in again[0]["items"]],
            [item["item_id"] for item in direct[0]["items"]])

    def test_the_other_methods(self):
        [interests] = self.lines("interests", "Oak table", "Hose", "-k", 2,
                                 "--json")
        self.assertEqual(len(interests["interests"]), 2)
        self.assertIn("category", self.vitrine("interests", "Lamp").stdout)
        [labels] = self.lines("classify", "good sofa", "bad", "--head",
                              "classifier", "--json")
        self.assertEqual(len(labels["results"]), 2)
        self.assertIn("spam", self.vitrine("classify", "bad").stdout)
        [vectors] = self.lines("embed", "sofa", "--texts",
                               self.file("lamp\ndesk\n"), "--json")
        self.assertEqual([len(e["values"]) for e in vectors["embeddings"]],
                         [32, 32, 32])
        self.assertIn("32", self.vitrine("embed", "--items",
                                         self.items).stdout)

    def test_status_shows_models_and_limits(self):
        out = self.vitrine("status").stdout
        for text in ("shop (default)", "serving", "100 items", "relevance",
                     "classifier (classification)", "wordpiece"):
            self.assertIn(text, out)
        [status] = self.lines("status", "--json")
        self.assertTrue(status["serving"])
        self.assertEqual(status["models"][0]["model"]["version"], "2")

    def test_exit_code_of_a_failed_call(self):
        done = self.vitrine("classify", "--head", "mood", "text", check=FAILED)
        self.assertIn("NOT_FOUND", done.stderr)
        self.assertIn("mood", done.stderr)
        self.assertEqual(done.stdout, "")
        self.vitrine("rank", "-q", "a", "b", "--model", "cellar", check=FAILED)
        [answer] = self.lines("rank", "-q", "a", "b", "--model", "cellar",
                              "--json", check=FAILED)
        self.assertEqual(answer["error"]["code"], 5)

    def test_exit_code_of_wrong_usage(self):
        for arguments in (
                [], ["nonsense"], ["rank", "--nonsense"], ["rank", "-q", "a"],
                ["rank", "title without a query"],
                ["rank", "-q", "a", "b", "--timeout", "soon"],
                ["rank", "-q", "a", "b", "--timeout", "0"],
                ["rank", "-q", "a", "--items", "/no/such/file"],
                ["rank", "--requests", "/no/such/file"],
                ["rank", "-q", "a", "b", "--requests", self.items],
                ["rank", "-q", "a", "b", "--ca", "/no/such/ca.pem"],
                ["classify"], ["embed", "--texts", "/no/such/file"],
                ["bench"], ["bench", "--items", self.items],
                ["bench", "--items", self.items, "-c", "0",
                 "--queries", self.items],
                ["tokenize", "--text", "no model"]):
            done = self.vitrine(*arguments, check=USAGE)
            self.assertEqual(done.stdout, "", arguments)
            self.assertTrue(done.stderr.strip(), arguments)

    def test_a_bad_line_is_named_and_ends_the_run(self):
        good = '{"context":{"query":"a"},"items":[{"title":"b"}]}\n'
        path = self.file(good + '{"contxt":{}}\n' + good)
        done = self.vitrine("rank", "--json", "--requests", path, check=USAGE)
        self.assertIn(path + ":2: ", done.stderr)
        self.assertIn("contxt", done.stderr)
        self.assertEqual(len(done.stdout.splitlines()), 1)

    def test_exit_code_when_nobody_is_there(self):
        for arguments in (["status"], ["rank", "-q", "a", "b"],
                          ["bench", "--method", "embed", "--items",
                           self.items]):
            done = harness.run("vitrine", *arguments, "--target",
                               "127.0.0.1:1", "--timeout", "500ms",
                               check=UNAVAILABLE)
            self.assertIn("UNAVAILABLE", done.stderr)

    def test_exit_code_when_items_have_errors(self):
        done = self.vitrine("rank", "-q", "sofa", "lamp", "", check=ITEM_ERRORS)
        self.assertIn("error: INVALID_ARGUMENT", done.stdout)
        # A failed call weighs more.
        text = ('{"context":{"query":"a"},"items":[{"title":""}]}\n'
                '{"context":{"query":"a"}}\n'
                '{"context":{"query":"a"},"items":[{"title":"b"}]}\n')
        self.assertEqual(
            len(self.lines("rank", "--json", stdin=text, check=FAILED)), 3)

    def test_the_servers_limit_is_passed_on(self):
        done = self.vitrine("rank", "-q", "a", *["b"] * 101, check=FAILED)
        self.assertIn("items: 101 > 100", done.stderr)

    def test_a_deadline_is_a_failed_call(self):
        server = self.serve("engine { dtype: DTYPE_FP32 inner_threads: 1 }",
                            model="slow")
        text = json.dumps({"context": {"query": "sofa"}, "items": [
            {"title": "%d %s" % (i, " ".join(models.WORDS))}
            for i in range(1000)]})
        done = harness.run("vitrine", "rank", "--timeout", "50ms", "--target",
                           server.target, stdin=text, check=FAILED)
        self.assertIn("DEADLINE_EXCEEDED", done.stderr)

    def test_a_full_disk_is_no_success(self):
        with open("/dev/full", "w") as full:
            code = subprocess.run(
                [os.path.join(harness.BIN_DIR, "vitrine"), "status"],
                stdout=full, env=dict(os.environ,
                                      VITRINE_TARGET=self.server.target),
                check=False).returncode
        self.assertEqual(code, FAILED)

    def test_tokenize_prints_ids(self):
        folder = os.path.join(self.registry, "shop", "2")
        with open(os.path.join(folder, "vocab.txt"), encoding="utf-8") as lines:
            vocab = {piece: i for i, piece in
                     enumerate(lines.read().splitlines())}
        ids = lambda text: [vocab[piece] for piece in text.split()]
        pairs = self.file('{"a":"Red sofa","b":"oak table"}\n{"a":"lamp"}\n'
                          '{"a":"red","b":null}\n')
        self.assertEqual(
            self.lines("tokenize", "--model", folder, "--pairs", pairs), [
                {"ids": ids("[CLS] red sofa [SEP] oak table [SEP]"),
                 "type_ids": [0, 0, 0, 0, 1, 1, 1]},
                {"ids": ids("[CLS] lamp [SEP]"), "type_ids": [0, 0, 0]},
                {"ids": ids("[CLS] red [SEP]"), "type_ids": [0, 0, 0]}])
        [line] = self.lines("tokenize", "--model", folder, "--text", "sofaz",
                            "--pieces")
        self.assertEqual(line["pieces"], ["[CLS]", "sofa", "##z", "[SEP]"])
        [line] = self.lines("tokenize", "--model", folder, "--max-tokens", 5,
                            "--pair", "red sofa", "oak table desk")
        self.assertEqual(line["ids"], ids("[CLS] red sofa [SEP] [SEP]"))

    def test_tokenize_marks_shared_words_where_the_model_has_marks(self):
        folder = os.path.join(self.temporary_folder(), "encoder")
        models.trainer("init", "--vocab", os.path.join(models.MODELS,
                                                       "vocab.txt"),
                       "--layers", 1, "--hidden", 16, "--heads", 2,
                       "--out", folder)
        [line] = self.lines("tokenize", "--model", folder, "--pair",
                            "red sofa", "blue sofa")
        self.assertEqual(line["type_ids"], [0, 0, 2, 0, 1, 3, 1])

    def test_tokenize_takes_an_empty_second_text(self):
        folder = os.path.join(self.registry, "shop", "2")
        [line] = self.lines("tokenize", "--model", folder, "--pair", "red", " ",
                            "--pieces")
        self.assertEqual(line["pieces"], ["[CLS]", "red", "[SEP]", "[SEP]"])

    def test_tokenize_names_what_is_wrong(self):
        folder = os.path.join(self.registry, "shop", "2")
        for text, message in (('{"b":"x"}', ':1: no "a"'), ("[", "not JSON"),
                              ('{"a":"b","b":3}', '"b" is not text')):
            done = self.vitrine("tokenize", "--model", folder, stdin=text,
                                check=USAGE)
            self.assertIn(message, done.stderr)
        done = self.vitrine("tokenize", "--model", "/no/such/folder", "--text",
                            "a", check=USAGE)
        self.assertIn("/no/such/folder", done.stderr)

    def bench(self, *arguments, check=OK):
        [line] = self.lines("bench", "--json", "--warmup", "0", *arguments,
                            check=check)
        return line

    def test_bench_closed_loop(self):
        queries = self.file("red sofa\noak table\n")
        line = self.bench("--queries", queries, "--items", self.items, "-c", 3,
                          "--items-per-call", 7, "--requests-total", 40)
        self.assertEqual((line["ok"], line["failed"]), (40, 0))
        self.assertEqual((line["loop"], line["callers"]), ("closed", 3))
        self.assertEqual(line["method"], "Rank")
        self.assertEqual(line["model_version"], "2")
        self.assertAlmostEqual(line["items_per_s"] / line["calls_per_s"], 7,
                               places=2)
        latency = line["latency_ms"]
        self.assertGreater(latency["p50"], 0)
        self.assertLessEqual(latency["p50"], latency["p99"])
        self.assertLessEqual(latency["p99"], latency["max"])
        self.assertGreater(line["server_ms"]["compute"], 0)

    def test_bench_open_loop(self):
        for arrivals in ("poisson", "uniform"):
            line = self.bench("--method", "embed", "--items", self.items,
                              "--items-per-call", 1, "--rate", 100,
                              "--arrivals", arrivals, "--requests-total", 30)
            self.assertEqual(line["ok"], 30)
            self.assertEqual((line["loop"], line["arrivals"]),
                             ("open", arrivals))

    def test_bench_takes_requests_of_any_method(self):
        path = self.file(
            '{"method":"Classify","texts":["a","b"]}\n'
            '{"method":"interests","history":[{"item":{"title":"lamp"}}]}\n')
        line = self.bench("--requests", path, "--requests-total", 10)
        self.assertEqual(line["method"], "Classify+PredictInterests")
        self.assertEqual(line["ok"], 10)

    def test_bench_counts_errors(self):
        path = self.file('{"method":"Classify","head":"mood","texts":["a"]}\n'
                         '{"method":"Classify","texts":["a"]}\n')
        line = self.bench("--requests", path, "--requests-total", 10, "-c", 1)
        self.assertEqual(line["errors"], {"NOT_FOUND": 5})
        self.assertEqual(line["ok"], 5)
        path = self.file('{"method":"Classify","head":"mood","texts":["a"]}\n')
        self.bench("--requests", path, "--requests-total", 3, check=FAILED)

    def test_bench_does_not_count_an_item_twice_in_a_call(self):
        done = self.vitrine("bench", "--method", "embed", "--items",
                            self.items, "--items-per-call", 999, check=USAGE)
        self.assertIn("--items-per-call 999 > the ", done.stderr)

    def test_options_that_requests_read_as_json_would_ignore(self):
        path = self.file('{"context":{"query":"sofa"},"items":[{"title":"a"}]}')
        done = self.vitrine("rank", "--requests", path, "--top-k", 1,
                            check=USAGE)
        self.assertIn("--top-k", done.stderr)

    def test_bench_prints_a_summary_for_people(self):
        out = self.vitrine("bench", "--method", "embed", "--items", self.items,
                           "--duration", "200ms", "--warmup", "0").stdout
        for text in ("throughput", "calls/s", "latency ms", "p99.9",
                     "server ms", "client"):
            self.assertIn(text, out)

    def test_an_interrupt_prints_what_there_is(self):
        process = subprocess.Popen(
            [os.path.join(harness.BIN_DIR, "vitrine"), "bench", "--json",
             "--method", "embed", "--items", self.items, "--duration", "1h",
             "--warmup", "0", "--target", self.server.target],
            stdout=subprocess.PIPE, text=True)
        try:
            before = self.server.metric("vitrine_requests_total",
                                        method="Embed", code="OK")
            harness.wait_until(lambda: self.server.metric(
                "vitrine_requests_total", method="Embed", code="OK") >
                before + 20, "calls of bench")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=harness.PATIENCE)
        finally:
            process.kill()
            process.wait()
        self.assertEqual(process.returncode, 0)
        line = json.loads(out)
        self.assertGreater(line["ok"], 20)
        self.assertEqual(line["failed"], 0)
        self.assertLess(line["seconds"], 3600)


if __name__ == "__main__":
    harness.main()
