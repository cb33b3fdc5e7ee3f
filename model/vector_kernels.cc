#include "model/vector_kernels.h"

namespace vitrine {

extern const VectorKernels kPlainKernels;
#if defined(__x86_64__)
extern const VectorKernels kAvx2Kernels;
extern const VectorKernels kAvx512Kernels;
extern const VectorKernels kAvx512Bf16Kernels;
#endif

int64_t AttentionScratch(int64_t length, int64_t head_width) {
  // Scores and weights of eight queries, keys, values: see HeadScratch. 16
  // lanes are the most that a length is rounded up to.
  const int64_t padded = (length + 15) / 16 * 16;
  return (2 * 8 + 2 * head_width) * padded;
}

const VectorKernels& VectorKernelsFor(CpuIsa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case CpuIsa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
    case CpuIsa::kAvx512:
      return kAvx512Kernels;
    case CpuIsa::kAvx2:
      return kAvx2Kernels;
#endif
    default:
      return kPlainKernels;
  }
}

CpuIsa BestCpuIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? CpuIsa::kAvx512Bf16
                                                : CpuIsa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return CpuIsa::kAvx2;
  }
#endif
  return CpuIsa::kPlain;
}

}  // namespace vitrine
