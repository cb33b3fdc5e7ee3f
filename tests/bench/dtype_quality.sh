#!/usr/bin/env bash
# What bf16 and int8 cost in quality: a relevance model is fine-tuned on real
# judgements and quantised, and NDCG@10 on the queries held out is printed for
# fp32, bf16 and int8.
#
#   tests/bench/dtype_quality.sh [OPTION...]
#
#   --data FILE     rows with "query", "title" and "grade" (JSON lines, .gz too)
#                   (default: crowdflower.jsonl.gz in VITRINE_DATA or
#                   ../shared/data)
#   --grades A:B    (default 1:4)
#   --layers N, --hidden N   of the encoder, random at first (default 4, 256)
#   --epochs N      (default 6)
#   --keep FOLDER   keep what is made there
#
# One JSON line at the end. Builds nothing; needs build/release.
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${VITRINE_DATA:-../shared/data}/crowdflower.jsonl.gz
grades=1:4 layers=4 hidden=256 epochs=6 keep=''
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --data) data=$2 ;;
  --grades) grades=$2 ;;
  --layers) layers=$2 ;;
  --hidden) hidden=$2 ;;
  --epochs) epochs=$2 ;;
  --keep) keep=$2 ;;
  *)
    echo "unknown option $1; --help lists them" >&2
    exit 2
    ;;
  esac
  shift 2
done
trainer=build/release/bin/vitrine-trainer
[ -x $trainer ] || {
  echo "no $trainer: cmake --preset release && cmake --build build/release" >&2
  exit 1
}
[ -f "$data" ] || {
  echo "no $data: name one by --data" >&2
  exit 1
}
work=${keep:-$(mktemp -d)}
[ -n "$keep" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"

/usr/bin/python3 - "$data" "$work/vocab.txt" <<'PYTHON'
"""The words that occur more than once, and letters: as a real vocabulary."""
import collections
import gzip
import json
import re
import sys

count = collections.Counter()
with (gzip.open if sys.argv[1].endswith(".gz") else open)(sys.argv[1]) as rows:
    for row in map(json.loads, rows):
        text = row["query"] + " " + row["title"]
        count.update(re.findall(r"[^\W_]+|[^\w\s]|_", text.lower()))
letters = sorted({c for word in count for c in word})
pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
pieces += [word for word, n in count.most_common(20000) if n > 1] + letters
pieces += ["##" + c for c in letters]
with open(sys.argv[2], "w", encoding="utf-8") as out:
    out.writelines(piece + "\n" for piece in dict.fromkeys(pieces))
PYTHON

rows=(--task relevance --data "$data" --grades "$grades" --validation-share 0.2)
$trainer init --vocab "$work/vocab.txt" --layers "$layers" --hidden "$hidden" \
  --out "$work/encoder" >&2
$trainer fit --from "$work/encoder" --out "$work/registry" --model quality \
  "${rows[@]}" --epochs "$epochs" >&2
$trainer quantize --from quality/1 --out "$work/registry" "${rows[@]}" --json
