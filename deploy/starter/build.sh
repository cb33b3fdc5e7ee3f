#!/usr/bin/env bash
# Makes the starter model, deploy/starter/model, from texts whose terms allow
# any use: the files that are named (plain text or .gz, a document a line),
# WordNet, Debian's package descriptions, and the sample shop's products and
# queries without their labels.
#
#   deploy/starter/build.sh [--work FOLDER] TEXT...
#
#   --work FOLDER   texts, stages and checkpoints (default build/starter); a run
#                   that was cut off goes on where it was
#
# Needs build/release, and root where wordnet-base is not installed; some GB of
# memory; about two hours on 2 cores. Each stage starts from the one before:
# masked words, texts that belong together, queries and what they ask for
# (docs/pretraining.md). One seed and number of threads give the same model.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/progress.sh

work=build/starter texts=()
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --work)
    work=${2:?--work needs a folder}
    shift
    ;;
  -*) die "unknown option $1; --help lists them" ;;
  *)
    [ -f "$1" ] || die "$1: no such file"
    texts+=(--text "$1")
    ;;
  esac
  shift
done
trainer=build/release/bin/vitrine-trainer
[ -x $trainer ] ||
  die "no $trainer: cmake --preset release && cmake --build build/release"
trap 'stop_running' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work"
work=$(realpath "$work")

heading "Texts"
deploy/install-packages.sh deploy/starter/apt-packages.txt
if [ ! -f "$work/texts/packages.jsonl" ]; then
  # The system's own lists may lack the long descriptions.
  mkdir -p "$work"/apt/{lists,cache/archives}/partial
  run_logged "reading Debian's package descriptions" "$work/apt.log" \
    apt-get update -o Acquire::Languages=en -o Acquire::Retries=3 \
    -o "Dir::State::lists=$work/apt/lists" \
    -o "Dir::Cache=$work/apt/cache"
  python3 deploy/starter/texts.py --out "$work/texts" \
    --wordnet /usr/share/wordnet --shop deploy/starter/shop \
    --packages "$work"/apt/lists/*Translation-en*
fi
pairs=(
  --text "$work/texts/wordnet.jsonl" --fields 'title,description?,categories?'
  --text "$work/texts/packages.jsonl" --fields 'title,description?'
  --text "$work/texts/shop.jsonl" --fields 'title,description?,categories?'
)

# stage NAME OPTION...: once.
stage() {
  local name=$1
  shift
  if [ -f "$work/$name/config.json" ]; then
    note "$work/$name is there"
    return
  fi
  heading "$name"
  $trainer pretrain --seed 1 --checkpoint "$work/$name-checkpoint" \
    --tensorboard "$work/events/$name" --out "$work/$name" "$@"
}

stage mlm "${texts[@]}" "${pairs[@]}" --pieces 12000 --layers 4 --hidden 256 \
  --heads 8 --segments 4 --max-positions 512 --max-tokens 128 \
  --batch-tokens 8192 --tokens 30000000 --learning-rate 1e-3 --warmup 0.05

stage pairs --stage contrastive --from "$work/mlm" --pooling mean "${pairs[@]}" \
  "${texts[@]}" --batch-tokens 16384 --tokens 6000000 --learning-rate 3e-4 \
  --warmup 0.1

stage matching --stage matching --from "$work/pairs" --pooling mean \
  "${pairs[@]}" --batch-tokens 16384 --tokens 6000000 --learning-rate 3e-4 \
  --warmup 0.1 --save-dtype f16

heading "Done"
card=deploy/starter/model/README.md
cp "$work"/matching/{config.json,model.safetensors,pretraining.json} \
  "$work"/matching/{spiece.model,tokenizer_config.json} deploy/starter/model/
du -sh deploy/starter/model
note "the figures in $card are those of an earlier run; $work/*/pretraining.json has the new ones"
