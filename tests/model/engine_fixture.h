#pragma once

// What the tests of the engines share.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/packed_product.h"
#include "tests/testing/reference.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine::testing {

// An engine on a CPU and what it multiplies in.
struct EngineMode {
  internal::EngineKind kind;
  internal::Dtype dtype;
};

inline constexpr EngineMode kEngineModes[] = {
    {internal::ENGINE_KIND_TORCH, internal::DTYPE_FP32},
    {internal::ENGINE_KIND_TORCH, internal::DTYPE_BF16},
    {internal::ENGINE_KIND_ONEDNN, internal::DTYPE_FP32},
    {internal::ENGINE_KIND_ONEDNN, internal::DTYPE_BF16},
    {internal::ENGINE_KIND_ONEDNN, internal::DTYPE_INT8},
};

// As Engine's own name() and dtype() have it.
inline std::string NameOf(internal::EngineKind kind) {
  return kind == internal::ENGINE_KIND_TORCH ? "torch" : "onednn";
}
inline std::string NameOf(internal::Dtype dtype) {
  return dtype == internal::DTYPE_FP32   ? "fp32"
         : dtype == internal::DTYPE_BF16 ? "bf16"
                                         : "int8";
}

// False where oneDNN has no products of bf16: from AVX-512 on, it has.
inline bool Has(const EngineMode& mode) {
  return mode.kind != internal::ENGINE_KIND_ONEDNN ||
         mode.dtype != internal::DTYPE_BF16 ||
         EffectiveCpuIsa() >= CpuIsa::kAvx512;
}

inline EngineOptions OnCpu(const EngineMode& mode, int threads = 2) {
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.kind = mode.kind;
  options.dtype = mode.dtype;
  options.inner_threads = threads;
  return options;
}

inline Batch Pack(const std::vector<Encoding>& sequences, HeadMask mask = 1) {
  Batch batch;
  for (const Encoding& sequence : sequences) batch.Add(sequence, mask);
  return batch;
}

// NaN where there is one.
inline float Distance(absl::Span<const float> a, absl::Span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float most = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float distance = std::abs(a[i] - b[i]);
    if (!(distance <= most)) most = distance;
    if (std::isnan(most)) break;
  }
  return most;
}

// How far a sequence's outputs may be from those that it has without company.
inline float CompanyTolerance(const EngineMode& mode) {
  if (mode.dtype == internal::DTYPE_FP32) return 2e-5f;
  if (mode.kind == internal::ENGINE_KIND_TORCH) return 3e-2f;
  // Sums of whole numbers are the same in any order.
  return mode.dtype == internal::DTYPE_BF16 ? 1e-3f : 2e-5f;
}

// A small model with a head of each kind.
class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    // Heads of 16, so that none of the sizes is a whole number of vectors.
    options_.hidden_size = 80;
    options_.num_heads = 5;
    options_.intermediate_size = 200;
    options_.max_positions = 512;
    options_.heads = AllHeads();
  }
  void SetUp() override {
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options_).ok());
    absl::StatusOr<Checkpoint> checkpoint =
        LoadCheckpoint(folder_.path(), options_.heads);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }
  std::unique_ptr<Engine> Make(const EngineOptions& options) {
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        NewEngine(checkpoint_, options_.heads, options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  std::vector<Encoding> Sequences(const std::vector<int>& lengths,
                                  uint64_t seed = 1) {
    return RandomSequences(checkpoint_.config, lengths, seed);
  }
  // Each sequence on its own.
  static std::vector<std::vector<float>> RunAlone(
      const Engine& engine, const std::vector<Encoding>& sequences,
      const std::vector<HeadMask>& masks) {
    std::vector<std::vector<float>> out;
    for (size_t s = 0; s < sequences.size(); ++s) {
      absl::StatusOr<Outputs> outputs =
          engine.Run(Pack({sequences[s]}, masks[s]));
      EXPECT_TRUE(outputs.ok()) << outputs.status();
      out.push_back(outputs.ok() ? outputs->values : std::vector<float>());
    }
    return out;
  }

  TempFolder folder_;
  TinyModelOptions options_;
  Checkpoint checkpoint_;
};

}  // namespace vitrine::testing
