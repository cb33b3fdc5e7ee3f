#!/usr/bin/env bash
# The CPU engine's tests with Intel AMX, on a processor with AVX-512 but without
# AMX, whose tile instructions tests/amx/amx_trap.cc emulates.
#
#   tests/amx.sh            the engine's, the products' and the kernels' tests,
#                           but those of the largest shapes: some 5 minutes
#   tests/amx.sh --all      these, too: three times as long
#   tests/amx.sh --filter F  tests of build/release/bin/model_tests that match F
#
# A copy of oneDNN is told that it is on a Sapphire Rapids. The tests' summary
# is followed by how many products of tiles were made; none is a failure. What
# AMX is worth in time this cannot say. Needs build/release and objdump.
set -euo pipefail
cd "$(dirname "$0")/.."

tests='*onednn*:*OneDnn*:*Quantiz*:*Packed*:*CpuIsa*:*VectorKernels*'
large='*bert_base*:*minilm*:*AllocatesNothing*:*ThreadsThatShare*:*RunsOnTheCallers*:*SeveralCallers*'
filter="$tests-$large"
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,14s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --all) filter=$tests ;;
  --filter)
    [ $# -ge 2 ] || {
      echo "--filter: its value is missing" >&2
      exit 2
    }
    filter=$2
    shift
    ;;
  *)
    echo "unknown option $1; --help lists them" >&2
    exit 2
    ;;
  esac
  shift
done

program=build/release/bin/model_tests
[ -x "$program" ] || {
  echo "no $program: cmake --preset release && cmake --build build/release" >&2
  exit 1
}
grep -qw avx512f /proc/cpuinfo || {
  echo "this processor has no AVX-512: what goes with AMX cannot run" >&2
  exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
g++ -std=c++20 -O2 -march=native -Wall -Wextra -shared -fPIC \
  -ftls-model=initial-exec -Wl,-z,initfirst tests/amx/amx_trap.cc \
  -o "$work/amx_trap.so"

library=$(ldd "$program" | awk '/libdnnl\.so/ { print $3 }')
copy=$work/$(basename "$library")
cp "$library" "$copy"
# 0F A2 becomes 06 A2. The code's addresses are its offsets in the file.
sites=$(objdump -d --no-show-raw-insn "$copy" |
  awk '$2 == "cpuid" { sub(":", "", $1); print $1 }')
[ -n "$sites" ] || {
  echo "$library: no CPUID instruction found" >&2
  exit 1
}
for site in $sites; do
  at=$((16#$site))
  [ "$(od -An -tx1 -j $at -N 2 "$copy")" = ' 0f a2' ] || {
    echo "$library: no CPUID instruction at $site" >&2
    exit 1
  }
  printf '\x06' | dd of="$copy" bs=1 seek=$at conv=notrunc status=none
done

status=0
GOMP_SPINCOUNT=0 LD_PRELOAD=$work/amx_trap.so LD_LIBRARY_PATH=$work \
  "$program" --gtest_filter="$filter" 2>"$work/stderr" || status=$?
cat "$work/stderr" >&2
grep -q 'amx_trap: [1-9].* in bf16, [1-9]' "$work/stderr" || {
  echo "not one product of tiles in bf16 and in int8: oneDNN did not use AMX" >&2
  exit 1
}
exit "$status"
