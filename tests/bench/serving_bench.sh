#!/usr/bin/env bash
# What serving costs: the pairs per second that callers get from Rank, beside
# those that the engine alone runs through, on the same pairs, in one run; and
# what a Score of one item waits: alone, and beside that load of Ranks.
#
#   tests/bench/serving_bench.sh [OPTION...]
#
#   --model FOLDER       a version folder with a relevance head
#                        (default: random weights, 6 layers of 384)
#   --data FILE          rows with "query" and "title" (JSON lines, .gz too)
#                        (default: crowdflower.jsonl.gz in VITRINE_DATA or
#                        ../shared/data, else the sample shop)
#   --vocab FILE         vocab.txt of the random model (default: made of --data)
#   --engine onednn|torch   (default onednn)
#   --dtype fp32|bf16|int8  arithmetic (default fp32)
#   --threads N          in a batch, of engine and server (default: all cores)
#   --batch-threads N    that run batches at once, of the server (default 1)
#   --callers N          closed loop (default 8)
#   --items N            pairs in a call, no two alike (default 100)
#   --calls N            calls that differ (default 20: 2,000 pairs)
#   --score-rate R       Scores of one item a second, open loop (default 20)
#   --batch-tokens N     batcher.max_batch_tokens (default: the server's)
#   --short-tokens N     batcher.short_call_tokens (default: the server's)
#   --token-bytes N      cache.token_bytes (default: the server's)
#   --duration TIME      measured time of each of the three runs of serving, in
#                        seconds (default 30s)
#   --keep FOLDER        keep what is made there, and use it again
#
# The engine runs before and after the serving, and the better one counts. One
# JSON line at the end: both rates and their ratio, the two p99 of Score and
# theirs. "batching" is the share of the Ranks' time in which a batch was being
# run: what it lacks of 1, calls waited while no batch was. Builds nothing;
# needs build/release. The machine should do nothing else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."

model='' data='' vocab='' engine=onednn dtype=fp32
threads=$(nproc) batch_threads=1 callers=8 items=100
calls=20 duration=30s keep='' score_rate=20 batch_tokens=0 short_tokens=0
token_bytes=0
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,35s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --model) model=$2 ;;
  --data) data=$2 ;;
  --vocab) vocab=$2 ;;
  --engine) engine=$2 ;;
  --dtype) dtype=$2 ;;
  --batch-threads) batch_threads=$2 ;;
  --threads) threads=$2 ;;
  --callers) callers=$2 ;;
  --items) items=$2 ;;
  --calls) calls=$2 ;;
  --score-rate) score_rate=$2 ;;
  --batch-tokens) batch_tokens=$2 ;;
  --short-tokens) short_tokens=$2 ;;
  --token-bytes) token_bytes=$2 ;;
  --duration) duration=$2 ;;
  --keep) keep=$2 ;;
  *)
    echo "unknown option $1; --help lists them" >&2
    exit 2
    ;;
  esac
  shift 2
done

bin=build/release/bin
for program in engine_bench vitrine vitrine-server vitrine-trainer; do
  [ -x "$bin/$program" ] || {
    echo "no $bin/$program: cmake --preset release && cmake --build build/release" >&2
    exit 1
  }
done
if [ -z "$data" ]; then
  folder=${VITRINE_DATA:-../shared/data}
  data=$folder/crowdflower.jsonl.gz
  [ -f "$data" ] || data=deploy/starter/shop/relevance.jsonl
fi

work=${keep:-$(mktemp -d)}
mkdir -p "$work"
server_pid=
finish() {
  [ -z "$server_pid" ] || kill -TERM "$server_pid" 2>/dev/null || true
  wait
  [ -n "$keep" ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*" >&2; }

say "pairs from $data"
/usr/bin/python3 - "$data" "$work" "$calls" "$items" <<'PYTHON'
"""Writes requests.jsonl, pairs.jsonl (the same pairs), scores.jsonl (some of
them, one by one), rows.jsonl and vocab.txt."""
import collections
import gzip
import json
import os
import re
import sys

data, work, calls, per_call = sys.argv[1:3] + [int(n) for n in sys.argv[3:5]]


def rows(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as lines:
        return [json.loads(line) for line in lines if line.strip()]


found = rows(data)
if "title" not in found[0]:  # ids of the items beside it, as the sample shop's
    titles = {item["id"]: item["title"] for item in
              rows(os.path.join(os.path.dirname(data), "items.jsonl"))}
    for row in found:
        row["title"] = titles[row["item_id"]]
by_query = collections.OrderedDict()
for row in found:
    by_query.setdefault(row["query"], []).append(row["title"])
everything = list(dict.fromkeys(row["title"] for row in found))
if len(everything) < per_call:
    sys.exit("%s: %d titles, fewer than %d" % (data, len(everything), per_call))


def write(name, lines):
    with open(os.path.join(work, name), "w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in lines)


requests, pairs, start = [], [], 0
queries = list(by_query)
for n in range(calls):
    query = queries[n % len(queries)]
    # A query's own titles first, then others, all different.
    titles = dict.fromkeys(by_query[query])
    while len(titles) < per_call:
        titles.setdefault(everything[start % len(everything)])
        start += 1
    titles = list(titles)[:per_call]
    requests.append({"context": {"query": query},
                     "items": [{"title": title} for title in titles]})
    pairs += [{"a": query, "b": title} for title in titles]
write("requests.jsonl", map(json.dumps, requests))
write("pairs.jsonl", map(json.dumps, pairs))
# From all over the calls: other pairs than the Ranks of the moment hold.
write("scores.jsonl", (json.dumps({"context": {"query": pair["a"]},
                                   "items": [{"title": pair["b"]}]})
                       for pair in pairs[::max(1, len(pairs) // 97)]))
write("rows.jsonl", (json.dumps({"query": row["query"], "title": row["title"],
                                 "grade": n % 4})
                     for n, row in enumerate(found[:200])))
# As a real vocabulary: the words that occur more than once, and letters.
count = collections.Counter(
    word for row in found
    for word in re.findall(r"[^\W_]+|[^\w\s]|_",
                           (row["query"] + " " + row["title"]).lower()))
letters = sorted({c for word in count for c in word})
pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
pieces += [word for word, n in count.most_common(20000) if n > 1] + letters
pieces += ["##" + c for c in letters]
write("vocab.txt", dict.fromkeys(pieces))
PYTHON

if [ -z "$model" ]; then
  registry=$work/registry
  model=$registry/bench/1
  if [ ! -d "$model" ]; then
    say "random model: 6 layers of 384"
    "$bin/vitrine-trainer" init --vocab "${vocab:-$work/vocab.txt}" \
      --layers 6 --hidden 384 --heads 12 --seed 1 --out "$work/encoder" >&2
    "$bin/vitrine-trainer" fit --from "$work/encoder" --task relevance \
      --data "$work/rows.jsonl" --freeze encoder --epochs 1 \
      --validation-share 0.1 --model bench --out "$work/registry" \
      >"$work/fit.log" 2>&1 || {
      cat "$work/fit.log" >&2
      exit 1
    }
  fi
else
  # Served through a registry of its own, so that --model may lie anywhere.
  registry=$work/served
  rm -rf "$registry"
  mkdir -p "$registry/bench"
  version=$(basename "$(realpath "$model")")
  case $version in
  *[!0-9]* | '') version=1 ;;
  esac
  ln -s "$(realpath "$model")" "$registry/bench/$version"
fi

# Server and tokenize cut at the same length: no field has less than the rest.
max_tokens=128
"$bin/vitrine" tokenize --model "$model" --pairs "$work/pairs.jsonl" \
  --max-tokens $max_tokens >"$work/ids.jsonl"

engine() {
  "$bin/engine_bench" --model "$model" --ids "$work/ids.jsonl" \
    --engine "$engine" --dtype "$dtype" --threads $((threads * batch_threads)) \
    --batch-tokens 2048 --rounds 3 >"$1"
  cat "$1" >&2
}

say "engine alone, $dtype"
engine "$work/engine1.json"

rm -f "$work/ports"
cat >"$work/server.textproto" <<CONFIG
registry: "$registry"
models { name: "bench" }
listen: "127.0.0.1:0"
metrics_listen: "127.0.0.1:0"
port_file: "$work/ports"
engine {
  kind: ENGINE_KIND_${engine^^} dtype: DTYPE_${dtype^^}
  batch_threads: $batch_threads inner_threads: $threads
}
batcher {
  max_batch_tokens: $batch_tokens short_call_tokens: $short_tokens
}
cache { token_bytes: $token_bytes }
limits { max_items: 1000 default_deadline { seconds: 600 } }
encoding {
  max_tokens: $max_tokens max_query_tokens: $((max_tokens / 2))
  max_title_tokens: $max_tokens
}
CONFIG
"$bin/vitrine-server" --config "$work/server.textproto" >"$work/server.log" 2>&1 &
server_pid=$!
for ((tries = 0; ; tries++)); do
  [ ! -s "$work/ports" ] || break
  if ! kill -0 "$server_pid" 2>/dev/null || [ "$tries" -ge 600 ]; then
    tail -n 20 "$work/server.log" >&2
    exit 1
  fi
  sleep 0.1
done
# gRPC's, then that of /metrics.
{ read -r port && read -r metrics_port; } <"$work/ports"

load() { # OUT METHOD REQUESTS OPTION...: a run of `vitrine bench`
  "$bin/vitrine" bench --target "127.0.0.1:$port" --method "$2" \
    --requests "$work/$3" --timeout 120s --json "${@:4}" >"$work/$1"
}
metrics() {
  /usr/bin/python3 - "$metrics_port" "$work/$1" <<'PYTHON'
import sys
import time
import urllib.request

with open(sys.argv[2], "w", encoding="utf-8") as out:
    answer = urllib.request.urlopen(
        "http://127.0.0.1:%s/metrics" % sys.argv[1], timeout=30)
    out.write(answer.read().decode())
    out.write("scraped_seconds %f\n" % time.monotonic())
PYTHON
}

say "Score of one item alone: $score_rate a second, $duration"
load alone.json Score scores.jsonl --rate "$score_rate" --warmup 3s \
  --duration "$duration"
cat "$work/alone.json" >&2

say "Rank: $callers callers, $items items a call, $duration"
load served.json Rank requests.jsonl --callers "$callers" --warmup 3s \
  --duration "$duration" &
rank_pid=$!
sleep 3
metrics before
sleep "$duration"
metrics after
wait "$rank_pid"
cat "$work/served.json" >&2

say "both at once"
# The Ranks begin before the Scores and end after them.
load beside.json Rank requests.jsonl --callers "$callers" --warmup 1s \
  --duration "$((${duration%s} + 6))s" &
rank_pid=$!
sleep 2
load loaded.json Score scores.jsonl --rate "$score_rate" --warmup 1s \
  --duration "$duration"
wait "$rank_pid"
cat "$work/loaded.json" "$work/beside.json" >&2
kill -TERM "$server_pid"
wait "$server_pid"
server_pid=

say "engine alone again"
engine "$work/engine2.json"

/usr/bin/python3 - "$work" "$dtype" "$threads" <<'PYTHON'
import json
import sys

work, dtype, threads = sys.argv[1:]


def read(name):
    with open("%s/%s" % (work, name)) as lines:
        return json.loads(lines.readline())


def rate(run):
    return run["sequences"] / run["seconds"]


def total(name):
    """What a metric's series grew by, together, while the Ranks ran."""
    def at(file):
        with open("%s/%s" % (work, file)) as lines:
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines
                       if line.split("{")[0].split(" ")[0] == name)
    return at("after") - at("before")


engines = [read("engine1.json"), read("engine2.json")]
served = read("served.json")
engine = max(map(rate, engines))
alone, loaded, beside = map(read, ["alone.json", "loaded.json", "beside.json"])
batch_seconds = total("vitrine_batch_seconds_sum")
print(json.dumps({
    "dtype": dtype, "threads": int(threads),
    "pairs": engines[0]["sequences"],
    # Alike, or the two did not do the same work.
    "engine_tokens_per_pair": round(
        engines[0]["tokens"] / engines[0]["sequences"], 2),
    "served_tokens_per_pair": round(
        total("vitrine_tokens_total") / total("vitrine_items_total"), 2),
    "callers": served["callers"],
    "engine_pairs_per_s": round(engine, 1),
    "engine_runs": [round(rate(run), 1) for run in engines],
    "served_pairs_per_s": round(served["items_per_s"], 1),
    "ratio": round(served["items_per_s"] / engine, 4),
    "batching": round(batch_seconds / total("scraped_seconds"), 4),
    "batch_ms": round(
        1e3 * batch_seconds / total("vitrine_batch_seconds_count"), 3),
    "batch_tokens": round(total("vitrine_batch_tokens_sum") /
                          total("vitrine_batch_tokens_count"), 1),
    "token_cache_hits": total("vitrine_token_cache_hits_total"),
    "token_cache_misses": total("vitrine_token_cache_misses_total"),
    "failed": sum(run["failed"] for run in (served, alone, loaded, beside)),
    "latency_ms": served["latency_ms"], "server_ms": served["server_ms"],
    "client_cores": served["client_cores"],
    "score_alone_ms": alone["latency_ms"],
    "score_beside_ranks_ms": loaded["latency_ms"],
    "score_p99_ratio": round(
        loaded["latency_ms"]["p99"] / alone["latency_ms"]["p99"], 2),
    "ranked_beside_scores_pairs_per_s": round(beside["items_per_s"], 1)}))
PYTHON
