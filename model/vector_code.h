#pragma once

// What the vector code of cpu_kernels.cc and of the trainer is made of: inline
// functions that become part of each version of a kernel. Include it in .cc
// files that hold such kernels only.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "model/cpu_kernels.h"

// A version per generation of processor. Not under sanitizers, which
// instrument the code that chooses and then fail before they have started.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VITRINE_MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VITRINE_MULTIVERSION
#endif
// What the versions are made of has to become part of them.
#define VITRINE_INLINE inline __attribute__((always_inline))

namespace vitrine {

VITRINE_INLINE float Load(const float& x) { return x; }
VITRINE_INLINE float Load(const Bf16& x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

VITRINE_INLINE void Store(float value, float* x) { *x = value; }
// To nearest, ties to even. NaN may become infinity: neither has a place here.
VITRINE_INLINE void Store(float value, Bf16* x) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  x->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e^x within 2e-7, relatively; x is cut to where the result is normal.
VITRINE_INLINE float Exp(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  // Adding 1.5 * 2^23 rounds to a whole number without a call.
  constexpr float kMagic = 12582912.0f;
  const float shifted = x * 1.44269504f + kMagic;
  const float whole = shifted - kMagic;
  // x - whole * ln 2, its two halves apart for precision.
  const float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  memcpy(&power, &exponent, sizeof(power));
  return p * power;
}

}  // namespace vitrine
