#!/usr/bin/env bash
# Fetches a checkpoint from Hugging Face and imports it into a registry.
#
#   deploy/fetch_model.sh NAME --out REGISTRY --model MODEL
#
#   NAME                 as on huggingface.co, such as
#                        cross-encoder/ms-marco-MiniLM-L-6-v2; or the URL of a
#                        folder that has the files
#   --revision REV       branch, tag or commit [main]; a commit never changes
#   --sha256 FILE=HEX    what FILE must be; repeatable. Every file's digest is
#                        printed, for the next time
#   --keep FOLDER        where the files stay [~/.cache/vitrine/NAME/REV]; what
#                        is there whole is not fetched again
#   --base-url URL       a mirror [https://huggingface.co]
#   --trainer PROGRAM    vitrine-trainer [build/release/bin's, else PATH's]
#
# Takes config.json, model.safetensors or its shards, vocab.txt or a
# SentencePiece model, and tokenizer_config.json where there is one. A download
# that was cut off goes on where it stopped when the same command is given
# again. Needs curl.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/progress.sh"

usage() {
  complain "$*; --help says more"
  exit 2
}

name='' registry='' model='' revision=main keep='' trainer=''
base=https://huggingface.co
declare -A wanted=()
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,22s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --out | --model | --revision | --sha256 | --keep | --base-url | --trainer)
    [ $# -ge 2 ] || usage "$1 needs a value"
    case $1 in
    --out) registry=$2 ;;
    --model) model=$2 ;;
    --revision) revision=$2 ;;
    --keep) keep=$2 ;;
    --base-url) base=${2%/} ;;
    --trainer) trainer=$2 ;;
    --sha256)
      [[ $2 =~ ^([A-Za-z0-9._-]+)=([0-9a-fA-F]{64})$ ]] ||
        usage "--sha256 $2 is not FILE=64 hexadecimal digits"
      wanted[${BASH_REMATCH[1]}]=${BASH_REMATCH[2],,}
      ;;
    esac
    shift 2
    ;;
  -*) usage "unknown option $1" ;;
  *)
    [ -z "$name" ] || usage "two models: $name and $1"
    name=${1%/}
    shift
    ;;
  esac
done
[ -n "$name" ] || usage "no NAME"
[ -n "$registry" ] || usage "no --out"
[ -n "$model" ] || usage "no --model"
command -v curl >/dev/null || die "curl is missing: apt-get install curl"

[[ $name != *..* ]] || usage "$name has two dots in a row"
if [[ $name =~ ^https?:// ]]; then
  from=$name
  name=${name#*://}
  name=${name//[^A-Za-z0-9.\/_-]/_}
else
  [[ $name =~ ^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$ ]] ||
    usage "$name is neither a model's name nor a URL"
  from=$base/$name/resolve/$revision
fi
if [ -z "$trainer" ]; then
  trainer=$here/../build/release/bin/vitrine-trainer
  [ -x "$trainer" ] || trainer=$(command -v vitrine-trainer) ||
    die "vitrine-trainer is missing: build it, or name it with --trainer"
fi
[ -n "$keep" ] ||
  keep=${XDG_CACHE_HOME:-$HOME/.cache}/vitrine/$name/$revision
mkdir -p "$keep"

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
fetched=()

# One try at URL into PART; sets `status` and `code`, curl's and HTTP's.
try() {
  local show=(--silent --show-error)
  [ -z "$VITRINE_TTY" ] || show=(--progress-bar)
  status=0
  # Given up once nothing has come for a minute.
  code=$(curl --fail --location "${show[@]}" --connect-timeout 20 \
    --speed-limit 1 --speed-time 60 --retry 3 --continue-at - \
    --output "$2" --write-out '%{http_code}' "$1" 2>"$errors") || status=$?
}

# FILE into $keep, checked; 1 where the server does not have it.
fetch() {
  local file=$1 path=$keep/$1 part=$keep/$1.part digest
  if [ ! -e "$path" ]; then
    printf '%s ...\n' "$file"
    try "$from/$file" "$part"
    # A server that cannot go on in the middle (33), or what is there is as
    # long as the file, or longer (416): from the start.
    if [ -e "$part" ] && { [ "$status" -eq 33 ] || [ "$code" = 416 ]; }; then
      rm -f "$part"
      try "$from/$file" "$part"
    fi
    case $status:$code in
    0:*) ;;
    22:404) return 1 ;;
    22:401 | 22:403)
      die "$from/$file: HTTP $code: there is no such model, or it is not public"
      ;;
    22:*) die "$from/$file: HTTP $code" ;;
    5:* | 6:* | 7:* | 28:* | 35:*)
      die "$from/$file: no connection: $(tr -d '\r' <"$errors" | tail -n 1)"
      ;;
    *)
      die "$from/$file: $(tr -d '\r' <"$errors" | tail -n 1)
what has come so far is kept; give the same command again"
      ;;
    esac
    # An empty file leaves nothing behind.
    [ -e "$part" ] || : >"$part"
    mv "$part" "$path"
  fi
  digest=$(sha256sum "$path" | cut -d ' ' -f 1)
  if [ -n "${wanted[$file]:-}" ] && [ "$digest" != "${wanted[$file]}" ]; then
    rm -f "$path"
    die "$file: its SHA-256 is $digest, not ${wanted[$file]}; it was removed"
  fi
  note "  $digest  $file, $(stat -c %s "$path") bytes"
  fetched+=("$file")
}

fetch config.json || die "$from/config.json: not found (404): is NAME right?"
if ! fetch model.safetensors; then
  fetch model.safetensors.index.json ||
    die "$from/model.safetensors: not found (404), nor its .index.json;" \
      "weights in other formats are not read"
  mapfile -t shards < <(
    grep -o '"[A-Za-z0-9._-]*\.safetensors"' \
      "$keep/model.safetensors.index.json" | tr -d '"' | sort -u)
  [ ${#shards[@]} -gt 0 ] || die "model.safetensors.index.json names no files"
  for shard in "${shards[@]}"; do
    fetch "$shard" || die "$from/$shard: not found (404)"
  done
fi
tokenizer=
for file in vocab.txt sentencepiece.bpe.model spiece.model spm.model; do
  if fetch "$file"; then
    tokenizer=$file
    break
  fi
done
[ -n "$tokenizer" ] ||
  die "$from: not found (404): vocab.txt, sentencepiece.bpe.model," \
    "spiece.model, spm.model; no other tokenizers are read"
fetch tokenizer_config.json || note "  no tokenizer_config.json"

for file in "${!wanted[@]}"; do
  [[ " ${fetched[*]} " == *" $file "* ]] ||
    die "--sha256 $file: no such file was needed"
done
"$trainer" import --from "$keep" --out "$registry" --model "$model"
