#!/usr/bin/env bash
# Checks the GPU engine and the trainer wherever a GPU turns up: builds what needs
# no gRPC against the machine's own PyTorch and runs its tests there. Compares
# logits with a reference and with Hugging Face transformers, and training with
# the CPU's; times the engine beside transformers and the device's matrix
# products, and pre-training beside plain PyTorch.
#
#   deploy/gpu_check.sh --pack      on Debian, with deploy/apt-packages.txt:
#                                   build/gpu_check/pack.tar.gz
#   deploy/gpu_check.sh [OPTION...]
#
#   --cpu          small models on the CPU, to see that all of this works
#   --quick        fewer sequences and rounds
#   --keep FOLDER  build and make models there, and use them again
#
# A GPU machine needs Python with PyTorch and NumPy, a C++ compiler, CMake, and
# the pack where Debian's packages are not installed; no network. PYTHON names
# another python3, CUDA_HOME another CUDA than is found. Where transformers
# cannot be imported its rows are left out. Prints tables and a JSON line a row;
# fails where a result is off.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "gpu_check: $*" >&2
  exit 1
}

device=cuda quick='' keep='' only_pack=''
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help)
    sed -n '2,21s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  --pack) only_pack=1 ;;
  --cpu) device=cpu ;;
  --quick) quick=--quick ;;
  --keep)
    keep=${2:?--keep FOLDER}
    shift
    ;;
  *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done

# Headers and libraries, and what protoc makes of our own files.
pack=build/gpu_check/pack.tar.gz
make_pack() {
  local stage libs
  libs=/usr/lib/$(g++ -print-multiarch)
  stage=$(mktemp -d)
  mkdir -p "$stage/include/google" "$stage/lib" "$stage/gen" build/gpu_check
  cp -r /usr/include/{absl,CLI,fmt,gmock,gtest,nlohmann,openssl,spdlog} \
    "$stage/include/"
  cp /usr/include/{sentencepiece_processor,utf8proc,zconf,zlib}.h \
    "$stage/include/"
  cp -r /usr/include/google/protobuf "$stage/include/google/"
  # Debian keeps the headers that differ between processors apart.
  cp "/usr/include/$(g++ -print-multiarch)/openssl/"* "$stage/include/openssl/"
  cp "$libs"/libabsl_*.a \
    "$libs"/lib{crypto,gmock,gtest,gtest_main,protobuf,utf8proc,z}.a \
    "$stage/lib/"
  /usr/bin/python3 cmake/hide_bundled_protobuf.py "$libs/libsentencepiece.so" \
    "$stage/lib/libsentencepiece.so.0"
  (cd proto && protoc -I. --cpp_out="$stage/gen" google/rpc/status.proto \
    vitrine/internal/*.proto vitrine/v1/*.proto)
  tar -C "$stage" -czf "$pack" include lib gen
  rm -r "$stage"
  echo "$pack: $(du -h "$pack" | cut -f1)" >&2
}
can_pack() {
  command -v protoc >/dev/null && [ -d /usr/include/absl ] &&
    [ -d /usr/include/spdlog ] && [ -d /usr/include/gmock ] &&
    [ -f /usr/include/sentencepiece_processor.h ] &&
    [ -f /usr/include/utf8proc.h ]
}
if [ -n "$only_pack" ]; then
  can_pack || fail "--pack needs the packages of deploy/apt-packages.txt"
  make_pack
  exit 0
fi
# One that was brought along is taken, unless a message has changed since.
if [ -f "$pack" ] && [ -z "$(find proto -name '*.proto' -newer "$pack")" ]; then
  :
elif can_pack; then
  make_pack
elif [ ! -f "$pack" ]; then
  fail "no $pack: make it with deploy/gpu_check.sh --pack on Debian, bring it along"
fi

python=$(command -v "${PYTHON:-python3}") || fail "no python3"
command -v cmake >/dev/null || fail "no cmake (pip has one)"
facts=$("$python" - <<'PY'
import os
import torch

root = os.path.dirname(torch.__file__)
print(torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI),
      torch.version.cuda or "-", int(torch.cuda.is_available()), root)
PY
) || fail "$python cannot import torch"
read -r version abi cuda available root <<<"$facts"
[ "$abi" = 1 ] || fail "PyTorch $version has the C++ ABI from before GCC 5, which \
the pack's libraries do not have: take a PyTorch of 2.6 or later"
if [ $device = cuda ] && [ "$available" != 1 ]; then
  fail "PyTorch $version (CUDA $cuda) sees no GPU; --cpu runs without"
fi
include=$root/include lib=$root/lib
[ -f "$lib/libtorch_cpu.so" ] || lib=/usr/lib/$(g++ -print-multiarch)

cuda_include=''
if [ "$cuda" != - ]; then
  nvcc=$(command -v nvcc || true)
  for folder in ${CUDA_HOME:+"$CUDA_HOME/include"} \
    ${nvcc:+"$(dirname "$(dirname "$(realpath "$nvcc")")")/include"} \
    "/usr/local/cuda-$cuda/include" /usr/local/cuda/include /usr/include \
    "$root"/../nvidia/cu*/include "$root"/../nvidia/cuda_runtime/include; do
    if [ -f "$folder/cuda_runtime_api.h" ]; then
      cuda_include=$folder
      break
    fi
  done
  [ -n "$cuda_include" ] ||
    echo "gpu_check: no cuda_runtime_api.h: building without CUDA graphs" >&2
fi

if [ -n "$keep" ]; then
  mkdir -p "$keep"
  work=$(realpath "$keep")
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
if [ -z "${CMAKE_GENERATOR:-}" ] && command -v ninja >/dev/null; then
  export CMAKE_GENERATOR=Ninja
fi
rm -rf "$work/pack" && mkdir "$work/pack"
tar -C "$work/pack" -xzf "$pack"
{
  cmake -S tests/bench/gpu_check -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
    -DPACK="$work/pack" -DTORCH_INCLUDE="$include" -DTORCH_LIB="$lib" \
    -DCUDA_INCLUDE="$cuda_include" -DPYTHON="$python"
  cmake --build "$work/build" -j "$(nproc)" --target engine
} >"$work/build.log" 2>&1 || {
  tail -40 "$work/build.log" >&2
  fail "the build against PyTorch $version failed"
}
# Without it the engine is checked all the same.
cmake --build "$work/build" -j "$(nproc)" --target trainer \
  >"$work/build-trainer.log" 2>&1 || {
  tail -40 "$work/build-trainer.log" >&2
  echo "gpu_check: the trainer's build against PyTorch $version failed" >&2
}
if [ $device = cpu ]; then
  # Small products, and maybe a busy machine: threads would wait for each other.
  export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
fi
"$python" tests/bench/gpu_check/gpu_check.py --bin "$work/build" \
  --work "$work" --device $device $quick
