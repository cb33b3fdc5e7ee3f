"""The sample shop's model, made by the quickstart's recipe, has learned."""

import os
import re
import subprocess
import sys

import harness
import models

FIT = """
set -euo pipefail
cd "$1" && shop=deploy/starter/shop && . deploy/starter/recipe.sh
"$2" fit "${recipe[@]}" --model shop --out "$3/registry"
"""


class SampleShopLearnedTest(harness.TestCase):

    def fit(self):
        """What `fit` prints of each head in the end: {head: {metric: values}},
        where the values are those of the baselines, before and after."""
        done = subprocess.run(
            ["bash", "-c", FIT, "fit", os.environ["VITRINE_SOURCE_DIR"],
             os.path.join(models.BIN_DIR, "vitrine-trainer"),
             self.temporary_folder()],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)
        heads, metrics = {}, None
        for line in done.stdout.splitlines():
            title = re.match(r"(\w+) +metric  ", line)
            if title:
                metrics = heads.setdefault(title[1], {})
                continue
            row = re.match(r" +(\S+)((?: +(?:-|[\d.]+))+)$", line)
            if metrics is not None and row:
                metrics[row[1]] = [None if value == "-" else float(value)
                                   for value in row[2].split()]
        print(heads, flush=True)
        return heads

    def test_every_head_is_far_better_than_its_baselines(self):
        heads = self.fit()
        bm25, chance, *_, relevance = heads["relevance"]["ndcg@10"]
        self.assertGreater(relevance, bm25 + 0.1)
        self.assertGreater(relevance, chance + 0.4)
        popularity, *_, hits = heads["recommendation"]["hr@10"]
        self.assertGreater(hits, popularity + 0.3)
        frequent, _, interest = heads["interest"]["ndcg@10"]
        self.assertGreater(interest, frequent + 0.2)
        self.assertGreater(heads["category"]["accuracy"][-1], 0.9)
        self.assertGreater(heads["anomaly"]["auroc"][-1], 0.95)


if __name__ == "__main__":
    if harness.SANITIZED:
        print("skipped: training under a sanitizer takes too long")
        sys.exit(77)
    harness.main()
