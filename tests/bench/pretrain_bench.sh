#!/usr/bin/env bash
# Tokens per second of `vitrine-trainer pretrain` beside a trainer in plain
# PyTorch (pretrain_bench.py): the same shape, texts, pieces and step, in one
# run.
#
#   tests/bench/pretrain_bench.sh [OPTION...]
#
#   --text FILE       a document a line, .gz too
#                     (default: free_text.txt.gz in VITRINE_DATA or
#                     ../shared/data)
#   --layers N --hidden N --pieces N          (default: 4, 256, 16000)
#   --dtype bf16|fp32                         (default: bf16)
#   --threads N       (default: all cores)
#   --tokens N        that each trains on (default: 1000000)
#   --keep FOLDER     keep what is made there, and use its pieces again
#
# Ours runs before and after the peer, and the better one counts. One JSON line
# at the end. Builds nothing; needs build/release and Debian's python3-torch
# and python3-sentencepiece. The machine should do nothing else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."

text='' layers=4 hidden=256 pieces=16000 dtype=bf16 threads=$(nproc)
tokens=1000000 keep=''
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,21s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --text) text=$2 ;;
  --layers) layers=$2 ;;
  --hidden) hidden=$2 ;;
  --pieces) pieces=$2 ;;
  --dtype) dtype=$2 ;;
  --threads) threads=$2 ;;
  --tokens) tokens=$2 ;;
  --keep) keep=$2 ;;
  *)
    echo "unknown option $1; --help lists them" >&2
    exit 2
    ;;
  esac
  shift 2
done

trainer=build/release/bin/vitrine-trainer
[ -x "$trainer" ] || {
  echo "no $trainer: cmake --preset release && cmake --build build/release" >&2
  exit 1
}
/usr/bin/python3 -c 'import numpy, sentencepiece, torch' || exit 1
if [ -z "$text" ]; then
  text=${VITRINE_DATA:-../shared/data}/free_text.txt.gz
fi
[ -f "$text" ] || {
  echo "no $text; --text names another" >&2
  exit 1
}
if [ -n "$keep" ]; then
  work=$keep
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi

# The first run learns the pieces; those that are measured find them there.
ours() { # OUT TOKENS
  local tokenizer=(--pieces "$pieces") bf16=off
  if [ -d "$work/pieces" ]; then tokenizer=(--tokenizer "$work/pieces"); fi
  if [ "$dtype" = bf16 ]; then bf16=on; fi
  rm -rf "$work/$1"
  "$trainer" pretrain --text "$text" "${tokenizer[@]}" --layers "$layers" \
    --hidden "$hidden" --threads "$threads" --bf16 "$bf16" --tokens "$2" \
    --evaluate-tokens 1000000000 --out "$work/$1" >"$work/$1.log"
  # "OUT: … tokens/s, perplexity …"
  sed -n 's/.* \([0-9]*\) tokens\/s.*/\1/p' "$work/$1.log"
}

if [ ! -d "$work/pieces" ]; then
  ours pieces-only 1 >/dev/null
  mv "$work/pieces-only" "$work/pieces"
fi
echo "ours" >&2
before=$(ours before "$tokens")
echo "plain PyTorch" >&2
peer=$(/usr/bin/python3 tests/bench/pretrain_bench.py \
  --config "$work/before/config.json" --pieces "$work/pieces/spiece.model" \
  --text "$text" --tokens "$tokens" --threads "$threads" --dtype "$dtype")
echo "ours again" >&2
after=$(ours after "$tokens")
/usr/bin/python3 - "$before" "$after" "$peer" <<'END'
import json, sys
ours = max(int(sys.argv[1]), int(sys.argv[2]))
peer = json.loads(sys.argv[3])
print(json.dumps({
    "ours_tokens_per_second": ours, "ours_runs": [int(x) for x in sys.argv[1:3]],
    "pytorch_tokens_per_second": peer["tokens_per_second"],
    "ratio": round(ours / peer["tokens_per_second"], 2), "pytorch": peer}))
END
