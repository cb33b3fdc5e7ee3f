#!/usr/bin/env bash
# Our engines beside ONNX Runtime, on the token ids of the same real pairs, in
# one run: tokens per second, the time of a single sequence, and how far the
# logits are from each other.
#
#   tests/bench/compare_ort.sh [OPTION...]
#
#   --model minilm|bert-base|both  6 layers of 384 or 12 of 768, random weights
#                        (default both)
#   --data FILE          rows with "query" and "title" (JSON lines, .gz too)
#                        (default: crowdflower.jsonl.gz in VITRINE_DATA or
#                        ../shared/data, else the sample shop)
#   --vocab FILE         vocab.txt of the models (default: made of --data)
#   --sequences N        pairs (default 1024)
#   --rounds N           of all engines in turn; medians count (default 3)
#   --threads N          for everyone (default: all cores)
#   --batch-tokens N     tokens in a batch of our oneDNN engine (default 8192);
#                        ONNX Runtime runs at its best of 1, 8, 32 and 64
#                        sequences, LibTorch at its best of these and of the
#                        same N, found in a first pass
#   --isa NAME           ONEDNN_MAX_CPU_ISA (AVX2, AVX512_CORE, ...) for our
#                        oneDNN engine and the floor, and for nobody else
#   --keep FOLDER        keep what is made there, and use models and peer again
#   --fast               few sequences, one round: to see that all works
#
# The floor is oneDNN's time for the encoder's matrix products alone, without
# attention's own. What an engine does not have is skipped with its message.
# A table a model, then one JSON line a row; progress on standard error. Builds
# nothing; needs build/release, and npm for onnxruntime-node. The machine should
# do nothing else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=both data='' vocab='' sequences='' rounds='' threads=$(nproc)
batch_tokens=8192 isa='' keep='' fast=''
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,34s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --fast)
    fast=1
    shift
    continue
    ;;
  esac
  [ $# -ge 2 ] || {
    echo "$1: no such option, or its value is missing; --help lists them" >&2
    exit 2
  }
  case $1 in
  --model) model=$2 ;;
  --data) data=$2 ;;
  --vocab) vocab=$2 ;;
  --sequences) sequences=$2 ;;
  --rounds) rounds=$2 ;;
  --threads) threads=$2 ;;
  --batch-tokens) batch_tokens=$2 ;;
  --isa) isa=$2 ;;
  --keep) keep=$2 ;;
  *)
    echo "unknown option $1; --help lists them" >&2
    exit 2
    ;;
  esac
  shift 2
done
case $model in
minilm | bert-base) models=$model ;;
both) models='minilm bert-base' ;;
*)
  echo "--model $model: minilm, bert-base or both" >&2
  exit 2
  ;;
esac
sequences=${sequences:-$([ -n "$fast" ] && echo 128 || echo 1024)}
rounds=${rounds:-$([ -n "$fast" ] && echo 1 || echo 3)}

bin=build/release/bin
for program in engine_bench products_bench vitrine; do
  [ -x "$bin/$program" ] || {
    echo "no $bin/$program: cmake --preset release && cmake --build build/release" >&2
    exit 1
  }
done
command -v npm >/dev/null || {
  echo "npm is missing: install Node.js (apt-get install nodejs npm)" >&2
  exit 1
}
deploy/install-packages.sh tests/bench/compare_ort_packages.txt >&2
if [ -z "$data" ]; then
  data=${VITRINE_DATA:-../shared/data}/crowdflower.jsonl.gz
  [ -f "$data" ] || data=deploy/starter/shop/relevance.jsonl
fi

work=${keep:-$(mktemp -d)}
mkdir -p "$work/peer"
work=$(realpath "$work")
bench_pid=
finish() {
  [ -z "$bench_pid" ] || kill -TERM "$bench_pid" 2>/dev/null || true
  wait
  [ -n "$keep" ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*" >&2; }

if [ ! -d "$work/peer/node_modules/onnxruntime-node" ]; then
  say "installing onnxruntime-node"
  (cd "$work/peer" && ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm install \
    --no-fund --no-audit --loglevel=error onnxruntime-node >&2)
fi

say "pairs from $data"
/usr/bin/python3 tests/bench/compare_ort.py pairs --data "$data" \
  --work "$work" --sequences "$sequences" --singles $((sequences / 4))
for name in $models; do
  folder=$work/$name
  [ ! -f "$folder/done" ] || continue
  case $name in
  minilm) shape='--layers 6 --hidden 384 --heads 12' ;;
  bert-base) shape='--layers 12 --hidden 768 --heads 12' ;;
  esac
  say "$name: random weights, ONNX, int8"
  mkdir -p "$folder"
  cp "${vocab:-$work/vocab.txt}" "$folder/vocab.txt"
  # shellcheck disable=SC2086
  /usr/bin/python3 tests/bench/bert_onnx.py make "$folder" $shape
  /usr/bin/python3 tests/bench/bert_onnx.py export "$folder" \
    "$folder/fp32.onnx" >"$work/export.log" 2>&1 || {
    cat "$work/export.log" >&2
    exit 1
  }
  /usr/bin/python3 tests/bench/bert_onnx.py quantize "$folder/fp32.onnx" \
    "$folder/int8.onnx"
  touch "$folder/done"
done

tokenize() {
  "$bin/vitrine" tokenize --model "$work/${models%% *}" \
    --pairs "$work/$1.pairs.jsonl" --max-tokens "$2" >"$work/$1.jsonl"
}
tokenize ids 128
tokenize singles 32

# shellcheck disable=SC2086
/usr/bin/python3 tests/bench/compare_ort.py run --bin "$bin" --work "$work" \
  --models $models --rounds "$rounds" --threads "$threads" \
  --batch-tokens "$batch_tokens" --isa "$isa" ${fast:+--fast} &
bench_pid=$!
status=0
wait "$bench_pid" || status=$?
bench_pid=
exit "$status"
