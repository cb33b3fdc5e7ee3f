"""tests/bench/quality names file, line and field of data that is wrong, and
keeps what belongs together on one side."""

import gzip
import json
import os
import sys
import tempfile
import unittest

SOURCE = os.environ["VITRINE_SOURCE_DIR"]
sys.path.insert(0, os.path.join(SOURCE, "tests", "bench", "quality"))
import data  # noqa: E402

FIELDS = {"text": str, "grade": (int, float)}
GOOD = {"text": "red sofa", "grade": 2}


class QualityDataTest(unittest.TestCase):

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "rows.jsonl.gz")

    def write(self, *lines):
        with gzip.open(self.path, "wb") as file:
            for line in lines:
                if not isinstance(line, bytes):
                    line = json.dumps(line).encode()
                file.write(line + b"\n")

    def refused(self):
        with self.assertRaises(data.DataError) as caught:
            data.read(self.folder.name, "rows", FIELDS)
        message = str(caught.exception)
        self.assertIn(self.path, message)
        return message

    def test_reads_what_is_right(self):
        self.write(GOOD, dict(GOOD, grade=2.5))
        self.assertEqual(len(data.read(self.folder.name, "rows", FIELDS)), 2)

    def test_a_missing_field(self):
        self.write(GOOD, {"text": "x"})
        self.assertIn(":2: field grade is missing", self.refused())

    def test_a_wrong_type(self):
        self.write(GOOD, GOOD, dict(GOOD, grade="high"))
        self.assertIn(":3: field grade is str, not int or float",
                      self.refused())

    def test_what_is_no_json(self):
        self.write(GOOD, b"{text")
        self.assertIn(":2: not JSON", self.refused())

    def test_an_empty_file(self):
        self.write()
        self.assertIn("no rows", self.refused())

    def test_a_file_that_is_no_gzip(self):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(json.dumps(GOOD))
        self.assertIn("not gzip", self.refused())

    def test_a_file_that_is_cut_off(self):
        self.write(*[dict(GOOD, text=os.urandom(40).hex())] * 500)
        with open(self.path, "r+b") as file:
            file.truncate(os.path.getsize(self.path) // 2)
        self.assertIn("cut off after line", self.refused())

    def test_what_is_no_utf8(self):
        self.write(GOOD, b'{"text": "\xff", "grade": 1}')
        self.assertIn("not UTF-8", self.refused())

    def test_a_file_that_is_not_there(self):
        self.assertIn("No such file", self.refused())

    def test_rows_of_a_key_stay_together(self):
        self.write(*[dict(GOOD, text="query %d" % (i % 50), grade=i)
                     for i in range(500)])
        train, test = data.split((self.folder.name, ""), "rows", FIELDS,
                                 "text")
        self.assertEqual(len(train) + len(test), 500)
        self.assertTrue(test)
        self.assertFalse({row["text"] for row in train}
                         & {row["text"] for row in test})
        some = data.share(train, "text", 0.3)
        self.assertTrue(0 < len(some) < len(train))
        chosen = {row["text"] for row in some}
        self.assertEqual(
            len(some), sum(row["text"] in chosen for row in train))

    def test_metrics_by_hand(self):
        try:
            import metrics
        except ImportError:
            self.skipTest("scikit-learn is not installed")
        rows = [{"query": "q", "item_id": str(i), "grade": grade}
                for i, grade in enumerate((1, 3, 2))]
        # Gains 0, 3, 1; in this order: 0 + 3 / log2(3) + 1 / 2 of
        # 3 + 1 / log2(3).
        self.assertAlmostEqual(metrics.ndcg_at_10(rows, [3, 2, 1]),
                               (3 / 1.5849625 + 0.5) / (3 + 1 / 1.5849625),
                               places=6)
        self.assertEqual(metrics.next_item([0, 9, 10]),
                         {"hr@10": 2 / 3,
                          "ndcg@10": (1 + 1 / 3.4594316186372973) / 3})
        result = metrics.anomaly([0, 0, 1, 1], [.1, .4, .35, .8],
                                 [False, False, False, True])
        self.assertAlmostEqual(result["auroc"], 0.75)
        self.assertAlmostEqual(result["false_alarms@95"], 0.5)
        self.assertAlmostEqual(result["f1"], 2 / 3)


if __name__ == "__main__":
    unittest.main()
