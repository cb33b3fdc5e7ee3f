#!/usr/bin/env bash
# Vitrine from nothing to answers: installs, builds, fine-tunes the starter model
# on the sample shop, serves it and asks it; then has it learn from what shoppers
# do, swaps the new version in under load, and rolls it back.
#
#   deploy/quickstart.sh            all of it; stops the server at the end
#   deploy/quickstart.sh --serve    keeps serving until Ctrl-C
#   deploy/quickstart.sh --fresh    fine-tunes again even if a model is there
#   deploy/quickstart.sh --help     this text
#
# For Debian 12. Root is needed only to install packages that are missing
# (deploy/apt-packages.txt). Some minutes on 2 cores the first time, seconds
# after that: what is there is reused. Writes to build/release (programs) and
# build/quickstart (model, configuration, logs) and nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/progress.sh

serve='' fresh=''
for argument in "$@"; do
  case $argument in
  --serve) serve=1 ;;
  --fresh) fresh=1 ;;
  -h | --help)
    sed -n '2,14s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *)
    complain "unknown option $argument; --help lists them"
    exit 2
    ;;
  esac
done

bin=build/release/bin
shop=deploy/starter/shop
state=build/quickstart
registry=$state/registry
# What this run serves, learns and writes; begun anew each time.
run=$state/run
server_pid='' worker_pid='' bench_pid=''

# 0 where the server ended as it should.
stop_server() {
  [ -n "$server_pid" ] || return 0
  local status=0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  return "$status"
}

stop_helpers() {
  local pid
  for pid in $bench_pid $worker_pid; do
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  bench_pid='' worker_pid=''
}

finish() {
  local status=$?
  trap - EXIT INT TERM
  stop_running
  stop_helpers
  stop_server || true
  # A training that was cut off leaves no model that looks whole.
  [ ! -d "$state/unfinished" ] || rm -rf "$state/unfinished"
  case $status in
  0) ;;
  130 | 143) complain "interrupted; run it again to go on" ;;
  *) complain "failed; logs are in $state" ;;
  esac
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$state"
exec 9>"$state/lock"
flock -n 9 || die "another quickstart is at work in $state"

# ---------------------------------------------------------------- packages --
heading "1/6  Packages"
deploy/install-packages.sh

# ------------------------------------------------------------------- build --
heading "2/6  Build (into build/release)"
run_logged "configuring" "$state/configure.log" cmake --preset release
run_logged "compiling" "$state/build.log" \
  env NINJA_STATUS='[%f/%t] ' cmake --build build/release \
  --target vitrine-server vitrine-trainer vitrine

# ------------------------------------------------------------------- train --
. deploy/starter/recipe.sh # for the files in $shop

heading "3/6  Fine-tune on the sample shop (synthetic: see deploy/starter)"
stamp=$( (
  printf '%s\n' "${recipe[@]}"
  cat "$shop"/* deploy/recipes/shop.toml deploy/starter/model/model.safetensors
) | sha256sum | cut -d' ' -f1)
if [ -z "$fresh" ] && [ "$(cat "$state/stamp" 2>/dev/null)" = "$stamp" ]; then
  note "a model trained on these files is there: $registry"
else
  rm -rf "$state/stamp" "$state/unfinished" "$registry"
  mkdir -p "$state/unfinished"
  "$bin/vitrine-trainer" fit "${recipe[@]}" --model shop \
    --out "$state/unfinished/registry"
  mv "$state/unfinished/registry" "$registry"
  rmdir "$state/unfinished"
  echo "$stamp" >"$state/stamp"
fi

# ------------------------------------------------------------------- serve --
heading "4/6  Serve"
rm -rf "$state/ports" "$run"
mkdir -p "$run"
cp -r "$registry" "$run/registry"
(umask 077 && head -c 24 /dev/urandom | base64 >"$run/admin-token")
cat >"$state/server.textproto" <<CONFIG
registry: "$run/registry"
models { name: "shop" activation: ACTIVATION_AUTOMATIC }
listen: "127.0.0.1:0"          # 0: any free port
metrics_listen: "127.0.0.1:0"
port_file: "$state/ports"
store { url: "sqlite:$run/labels.db" }
admin { listen: "127.0.0.1:0" token_file: "$run/admin-token" }
CONFIG
set -m # out of reach of a Ctrl-C here: finish() ends it, once
"$bin/vitrine-server" --config "$state/server.textproto" \
  >"$state/server.log" 2>&1 </dev/null 9>&- &
server_pid=$!
set +m
for ((tries = 0; ; tries++)); do
  [ ! -s "$state/ports" ] || break
  if ! kill -0 "$server_pid" 2>/dev/null || [ "$tries" -ge 600 ]; then
    complain "vitrine-server did not start; the end of $state/server.log:"
    tail -n 20 "$state/server.log" | sed 's/^/  | /' >&2
    exit 1
  fi
  sleep 0.1
done
{ read -r port && read -r metrics_port && read -r admin_port; } <"$state/ports"
export VITRINE_TARGET=127.0.0.1:$port
export VITRINE_ADMIN_TARGET=127.0.0.1:$admin_port
export VITRINE_ADMIN_TOKEN_FILE=$run/admin-token
metrics_url=http://127.0.0.1:$metrics_port/metrics

# Shows a command as one would type it, and runs it.
ask() {
  printf '\n%s$ vitrine' "$BOLD"
  local word
  for word in "$@"; do
    case $word in
    *[!A-Za-z0-9_./:=-]*) printf ' "%s"' "$word" ;;
    *) printf ' %s' "$word" ;;
    esac
  done
  printf '%s\n' "$PLAIN"
  "$bin/vitrine" "$@"
}

ask status

query="blue couch"
history=(--history tent-1 --history sleeping-bag-2)
# The first call pays for what later ones find warm.
"$bin/vitrine" rank --query "warm up" --items "$shop/items.jsonl" >/dev/null

heading "5/6  Ask it"
printf 'Search: the shop sells sofas, and no product text says "couch".\n'
ask rank --query "$query" --items "$shop/items.jsonl" --top-k 8
printf '\nA shopper who bought a tent and a sleeping bag: what next?\n'
ask rank "${history[@]}" --exclude-history --items "$shop/items.jsonl" \
  --top-k 8
printf '\nAnd what are they interested in? Campers of this shop buy clothing,\nfootwear and bags for it, too.\n'
ask interests "${history[@]}" --items "$shop/items.jsonl" --top-k 6
printf '\nWhat is no review among reviews:\n'
ask classify --head anomaly "My tent came on Tuesday, but a peg was missing." \
  "Tents for half the price on my page, click the link"

# ------------------------------------------------------------------- learn --
heading "6/6  Let it learn"
printf 'The labels that it was trained on go into the store, for a start:\n'
for labels in relevance users interest; do
  ask label import "$shop/$labels.jsonl" --items "$shop/items.jsonl"
done
ask label import "$shop/categories.jsonl" --head category
ask label import "$shop/reviews.jsonl" --head anomaly

printf '\nNow shoppers who search for a couch buy the fifth product that they are\nshown, and pass over the four above it:\n'
queries=(--query "$query" --query "navy couch" --query "soft blue couch")
"$bin/vitrine" rank --query "$query" --items "$shop/items.jsonl" --top-k 8 \
  --json | python3 deploy/starter/make_feedback.py --items "$shop/items.jsonl" \
  "${queries[@]}" --position 5 >"$run/feedback.jsonl"
ask label import "$run/feedback.jsonl"

printf '\nA worker takes training jobs, and meanwhile the server is under load.\n'
cat >"$run/recipe.textproto" <<RECIPE
epochs: 2
learning_rate: 3e-4
dropout: 0
replay_share: 1  # all labels, old and new
RECIPE
set -m
"$bin/vitrine-trainer" work --registry "$run/registry" \
  --store "sqlite:$run/labels.db" >"$state/worker.log" 2>&1 </dev/null 9>&- &
worker_pid=$!
"$bin/vitrine" bench --callers 2 --duration 1h --items "$shop/items.jsonl" \
  --queries <(printf '%s\n' "blue couch" "red spanner" "laptop") --json \
  >"$run/bench.json" 2>"$run/bench.log" </dev/null 9>&- &
bench_pid=$!
set +m
ask train start --recipe "$run/recipe.textproto" --watch

printf '\nThe gate let it pass; the server activates it by itself:\n'
for ((tries = 0; ; tries++)); do
  case $("$bin/vitrine" status --json) in
  *'"version":"2"'*) break ;;
  esac
  [ "$tries" -lt 100 ] ||
    die "version 2 does not serve; see $state/server.log"
  sleep 0.2
done
ask model list
printf '\nWhat the shoppers bought has moved up:\n'
ask rank --query "$query" --items "$shop/items.jsonl" --top-k 8
printf '\nAnd back again:\n'
ask model rollback
ask rank --query "$query" --items "$shop/items.jsonl" --top-k 3
ask audit
kill -INT "$bench_pid"
wait "$bench_pid" || true
bench_pid=''
printf '\nThe load that ran all the while, through both swaps:\n'
python3 - "$run/bench.json" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
print("  %d calls answered, %d failed; p50 %.1f ms, p99 %.1f ms"
      % (report["ok"], report["failed"], report["latency_ms"]["p50"],
         report["latency_ms"]["p99"]))
sys.exit(1 if report["failed"] else 0)
PYTHON
[ -n "$serve" ] || stop_helpers

heading "Its own metrics ($metrics_url, a selection)"
python3 - "$metrics_url" <<'PYTHON'
import sys, urllib.request

lines = urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()
shown = 0
for line in lines.splitlines():
  if not line.startswith("vitrine_") or "_bucket{" in line:
    continue
  # Zero-initialised series say nothing yet.
  if float(line.rsplit(" ", 1)[1]) == 0:
    continue
  print("  " + line)
  shown += 1
print("  (%d series with a value other than 0, histogram buckets left out)"
      % shown)
PYTHON

commands() {
  cat <<COMMANDS
  export VITRINE_ADMIN_TARGET=$VITRINE_ADMIN_TARGET VITRINE_ADMIN_TOKEN_FILE=$VITRINE_ADMIN_TOKEN_FILE
  export VITRINE_TARGET=$VITRINE_TARGET PATH=\$PWD/$bin:\$PATH
  vitrine rank --query "red spanner" --items $shop/items.jsonl --top-k 5
  vitrine rank --query "laptop" --history "Leather Suitcase" --items $shop/items.jsonl --top-k 5
  vitrine classify --head category "gray tee" "pram"
  vitrine bench --callers 4 --queries <(printf '%s\n' "blue couch" "tee") --items $shop/items.jsonl
COMMANDS
  if [ -n "$serve" ]; then
    printf '  vitrine model activate 2; vitrine model show; vitrine train list\n'
  fi
  if [ -n "$serve" ]; then printf '  curl -s %s\n' "$metrics_url"; fi
}

if [ -n "$serve" ]; then
  heading "Serving at $VITRINE_TARGET; Ctrl-C stops it"
  printf 'In another terminal, in this folder:\n'
  commands
  stopping=
  trap 'stopping=1' INT TERM
  while [ -z "$stopping" ] && kill -0 "$server_pid" 2>/dev/null; do
    sleep 0.5 &
    wait $! || true
  done
  trap 'exit 130' INT
  trap 'exit 143' TERM
  if [ -z "$stopping" ]; then
    tail -n 20 "$state/server.log" | sed 's/^/  | /' >&2
    die "the server ended by itself; its log is $state/server.log"
  fi
  printf '\n'
fi

stop_helpers
status=0
stop_server || status=$?
[ "$status" -eq 0 ] ||
  die "the server stopped with exit status $status; see $state/server.log"

heading "Done in $(minutes "$SECONDS")"
cat <<TEXT
The server has drained and stopped. What is there now:
  $bin/            vitrine-server, vitrine-trainer, vitrine: each has --help
  $registry/shop/1    the model, a Hugging Face folder with a manifest
  $state/server.textproto  the configuration it ran with; deploy/server.textproto
                           explains every field

Next:
  deploy/quickstart.sh --serve     keep serving, and try your own queries
  README.md                        the API, the configuration, your own data
TEXT
