#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test of Vitrine.
#
#   tests/run.sh          all stages below
#   tests/run.sh --quick  build and release only: every test, once
#   tests/run.sh --help   this text
#
# Stages:
#   build    build/release, compiled first so that an error shows at once
#   asan     AddressSanitizer and UndefinedBehaviorSanitizer over all test
#            binaries (build/asan)
#   tsan     ThreadSanitizer over pools, batcher, model manager and label writer
#            (build/tsan)
#   fuzz     each fuzzer for some seconds (build/fuzz)
#   release  every test of build/release; its summary ends the output
#
# A failed stage does not stop the others; the exit status is 1 if any failed.
# Logs and JUnit files are kept in build/test-reports. ccache is used where it
# is installed. With real data in ../shared/data, or in the folder that
# VITRINE_DATA names, the end-to-end test on real data runs too.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/progress.sh

quick=''
for argument in "$@"; do
  case $argument in
  --quick) quick=1 ;;
  -h | --help)
    sed -n '2,21s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *)
    complain "unknown option $argument; --help lists them"
    exit 2
    ;;
  esac
done

trap 'stop_running' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

reports=$PWD/build/test-reports
mkdir -p "$reports"
rm -f "$reports"/*.log "$reports"/*.xml
jobs=$(nproc)
if [ -z "${VITRINE_DATA:-}" ] && [ -d ../shared/data ]; then
  VITRINE_DATA=$(cd ../shared/data && pwd)
fi
if [ -n "${VITRINE_DATA:-}" ]; then
  export VITRINE_DATA
fi

failed=()
summary=()
# stage NAME COMMAND...: runs it, remembers how it ended.
stage() {
  local name=$1 start=$SECONDS status=0
  shift
  heading "$name"
  "$@" || status=$?
  # An interrupted command ends the run.
  [ "$status" -lt 130 ] || exit "$status"
  if [ "$status" -eq 0 ]; then
    summary+=("$name: passed in $(minutes $((SECONDS - start)))")
  else
    summary+=("$name: FAILED after $(minutes $((SECONDS - start)))")
    failed+=("$name")
  fi
}

# build PRESET [TARGET...]
build() {
  local preset=$1 targets=()
  shift
  [ $# -eq 0 ] || targets=(--target "$@")
  run_logged "configuring $preset" "$reports/$preset-configure.log" \
    cmake --preset "$preset" &&
    run_logged "compiling $preset" "$reports/$preset-build.log" \
      env NINJA_STATUS='[%f/%t] ' cmake --build "build/$preset" "${targets[@]}"
}

# check PRESET [CTEST OPTION...]
check() {
  local preset=$1
  shift
  ctest --preset "$preset" -j "$jobs" --no-tests=error \
    --output-junit "$reports/$preset.xml" --output-log "$reports/$preset.log" \
    "$@"
}

asan() {
  build asan &&
    ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 \
      LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0 \
      UBSAN_OPTIONS=print_stacktrace=1 check asan
}

# gRPC and LibTorch are not built for ThreadSanitizer and flood it with false
# reports: what has locks of ours runs without them, as TSAN_FILTER in
# tests/*/CMakeLists.txt has it.
tsan() {
  build tsan base_tests server_tests &&
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
      check tsan -R '^(base|server)$'
}

fuzzers() { build fuzz && check fuzz; }

heading "packages"
deploy/install-packages.sh
stage build build release
if [ -z "$quick" ]; then
  stage asan asan
  stage tsan tsan
  stage fuzz fuzzers
fi

heading "so far"
printf '%s\n' "${summary[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  complain "failed: ${failed[*]}"
fi
if [ -n "${VITRINE_DATA:-}" ]; then
  note "real data: $VITRINE_DATA"
else
  note "no real data: its end-to-end test is skipped (set VITRINE_DATA)"
fi

# Last, so that ctest's summary of every test ends the output.
heading "release"
status=0
check release || status=$?
[ ${#failed[@]} -eq 0 ] && [ "$status" -eq 0 ]
