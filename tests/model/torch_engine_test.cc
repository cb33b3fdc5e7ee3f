// What is LibTorch's engine's alone: the rest is in engine_test.cc.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "model/engine.h"
#include "tests/model/engine_fixture.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;
using testing::OnCpu;

using TorchEngineTest = testing::EngineTest;

EngineOptions Options(internal::Dtype dtype) {
  return OnCpu({internal::ENGINE_KIND_TORCH, dtype});
}

TEST_F(TorchEngineTest, TakesBf16OfItselfWhereTheProcessorMultipliesIt) {
  std::ifstream file("/proc/cpuinfo");
  std::string cpu;
  for (std::string line; std::getline(file, line);) cpu += line;
  const bool fast =
      cpu.find("amx_bf16") != cpu.npos || cpu.find("avx512_bf16") != cpu.npos;
  EXPECT_EQ(Make(Options(internal::DTYPE_AUTO))->dtype(),
            fast ? "bf16" : "fp32");
}

TEST_F(TorchEngineTest, RefusesWhatTheMachineHasNot) {
  for (const auto& [dtype, message] :
       {std::pair{internal::DTYPE_FP16, "dtype FP16: CUDA only"},
        std::pair{internal::DTYPE_INT8, "dtype INT8: oneDNN's engine only"}}) {
    const absl::Status status =
        NewEngine(checkpoint_, options_.heads, Options(dtype)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace vitrine
