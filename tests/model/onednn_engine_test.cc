// What is the oneDNN engine's alone: the rest is in engine_test.cc.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "model/engine.h"
#include "model/packed_product.h"
#include "tests/model/engine_fixture.h"

namespace vitrine {
namespace {

using testing::CompanyTolerance;
using testing::Distance;
using testing::EngineMode;
using testing::Has;
using ::testing::HasSubstr;
using testing::NameOf;
using testing::OnCpu;
using testing::Pack;

constexpr HeadMask kFirst = 0b1001;  // heads that read the first token
constexpr HeadMask kMean = 0b0110;   // heads that take a mean
constexpr HeadMask kAll = 0b1111;

constexpr EngineMode Mode(internal::Dtype dtype) {
  return {internal::ENGINE_KIND_ONEDNN, dtype};
}

class OneDnnEngineTest : public testing::EngineTest {
 protected:
  std::unique_ptr<Engine> Make(internal::Dtype dtype, int threads = 2) {
    return EngineTest::Make(OnCpu(Mode(dtype), threads));
  }
  std::vector<float> Values(const Engine& engine, const Batch& batch) {
    const absl::StatusOr<Outputs> outputs = engine.Run(batch);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? outputs->values : std::vector<float>();
  }
};

TEST_F(OneDnnEngineTest, IsWhatACpuGetsOfItself) {
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  const std::unique_ptr<Engine> engine = EngineTest::Make(options);
  EXPECT_EQ(engine->name(), "onednn");
  EXPECT_EQ(engine->dtype(), HasFastBf16() ? "bf16" : "fp32");
  const internal::Quantization quantization;
  options.quantization = &quantization;
  EXPECT_EQ(EngineTest::Make(options)->dtype(), "int8");
}

TEST_F(OneDnnEngineTest, RefusesWhatItHasNot) {
  const auto refusal = [this](const EngineOptions& options) {
    const absl::Status status =
        NewEngine(checkpoint_, options_.heads, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(OnCpu(Mode(internal::DTYPE_FP16))),
            "dtype FP16: CUDA only");
  EngineOptions options = OnCpu(Mode(internal::DTYPE_FP32));
  options.device = internal::DEVICE_CUDA;
  EXPECT_THAT(refusal(options), HasSubstr("device CUDA"));
  if (!Has(Mode(internal::DTYPE_BF16))) {
    EXPECT_EQ(refusal(OnCpu(Mode(internal::DTYPE_BF16))),
              "dtype BF16: this processor has no AVX-512");
  }
}

// ------------------------------------------------------------------ threads

class OneDnnThreadsTest
    : public OneDnnEngineTest,
      public ::testing::WithParamInterface<internal::Dtype> {
 protected:
  void SetUp() override {
    if (!Has(Mode(GetParam()))) {
      GTEST_SKIP() << "this processor has no products of bf16";
    }
    OneDnnEngineTest::SetUp();
  }
  float tolerance() const { return CompanyTolerance(Mode(GetParam())); }

  struct Work {
    const char* name;
    std::vector<int> lengths;
    std::vector<HeadMask> masks;  // in turn
  };
  // What threads share, by columns or by rows, since they would have unequal
  // work otherwise.
  static std::vector<Work> Shared() {
    std::vector<Work> out;
    for (const std::vector<HeadMask>& masks : {std::vector<HeadMask>{kFirst},
                                               {kMean},
                                               {kAll},
                                               {kFirst, kMean},
                                               {kMean, kFirst},
                                               {0b0001, 0b0010, 0b1000}}) {
      out.push_back({"one of 512", {512}, masks});
      out.push_back({"one of 129", {129}, masks});
      out.push_back({"one of 128", {128}, masks});
      out.push_back({"one of 33", {33}, masks});
      out.push_back({"one of 16", {16}, masks});
      out.push_back({"one of 1", {1}, masks});
      out.push_back({"three short ones", {7, 1, 12}, masks});
      out.push_back({"three of 100", {100, 100, 100}, masks});
      out.push_back({"a long one among short ones", {9, 400, 1, 17, 2}, masks});
      out.push_back({"five", {60, 61, 62, 63, 64}, masks});
    }
    return out;
  }
  Batch MakeBatch(const Work& work, uint64_t seed = 1) {
    Batch batch;
    const std::vector<Encoding> sequences = Sequences(work.lengths, seed);
    for (size_t s = 0; s < sequences.size(); ++s) {
      batch.Add(sequences[s], work.masks[s % work.masks.size()]);
    }
    return batch;
  }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, OneDnnThreadsTest,
                         ::testing::Values(internal::DTYPE_FP32,
                                           internal::DTYPE_BF16,
                                           internal::DTYPE_INT8),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(OneDnnThreadsTest, ThreadsThatShareSequencesAgreeWithOne) {
  const std::unique_ptr<Engine> alone = Make(GetParam(), 1);
  for (const int threads : {2, 3, 4}) {
    const std::unique_ptr<Engine> engine = Make(GetParam(), threads);
    for (const Work& work : Shared()) {
      const Batch batch = MakeBatch(work);
      const std::vector<float> expected = Values(*alone, batch);
      // Again and again: a thread that comes late is not waited for.
      for (int i = 0; i < 8; ++i) {
        EXPECT_LT(Distance(Values(*engine, batch), expected), tolerance())
            << work.name << ", the first one's heads " << work.masks[0] << ", "
            << threads << " threads";
      }
    }
  }
}

TEST_P(OneDnnThreadsTest, SharesOutLargeBatches) {
  const std::unique_ptr<Engine> alone = Make(GetParam(), 1);
  std::vector<int> lengths;
  for (int i = 0; i < 150; ++i) lengths.push_back(i * 7919 % 60 + 1);
  for (const std::vector<HeadMask>& masks :
       {std::vector<HeadMask>{kFirst}, {kMean}, {kFirst, kAll, kMean}}) {
    const Batch batch = MakeBatch({"", lengths, masks});
    ASSERT_GT(batch.tokens(), 4096);
    const std::vector<float> expected = Values(*alone, batch);
    for (const int threads : {2, 3}) {
      EXPECT_LT(Distance(Values(*Make(GetParam(), threads), batch), expected),
                tolerance());
    }
  }
}

TEST_P(OneDnnThreadsTest, RunsOnTheCallersThreadUntilItStartsItsOwn) {
  EngineOptions options = OnCpu(Mode(GetParam()), 4);
  options.start_threads = false;
  const std::unique_ptr<Engine> engine = EngineTest::Make(options);
  const std::unique_ptr<Engine> alone = Make(GetParam(), 1);
  std::vector<Work> works = Shared();
  works.push_back({"many", std::vector<int>(100, 12), {kFirst, kMean}});
  for (const bool started : {false, true}) {
    if (started) engine->StartThreads();
    for (const Work& work : works) {
      const Batch batch = MakeBatch(work);
      EXPECT_LT(Distance(Values(*engine, batch), Values(*alone, batch)),
                tolerance())
          << work.name << ", started " << started;
    }
  }
  engine->StartThreads();  // again: nothing
}

TEST_P(OneDnnThreadsTest, SeveralCallersShareItsThreads) {
  const std::unique_ptr<Engine> alone = Make(GetParam(), 1);
  const std::vector<Work> works = Shared();
  std::vector<Batch> batches;
  std::vector<std::vector<float>> expected;
  for (size_t w = 0; w < works.size(); ++w) {
    batches.push_back(MakeBatch(works[w], w));
    expected.push_back(Values(*alone, batches.back()));
  }
  for (const int inner_threads : {1, 2, 4}) {
    EngineOptions options = OnCpu(Mode(GetParam()), inner_threads);
    options.start_threads = false;
    const std::unique_ptr<Engine> engine = EngineTest::Make(options);
    std::vector<std::thread> callers;
    std::vector<float> worst(4, INFINITY);
    for (int t = 0; t < 4; ++t) {
      callers.emplace_back([&, t] {
        float most = 0;
        for (size_t b = 0; b < batches.size(); ++b) {
          // While others run.
          if (t == 0 && b == 2) engine->StartThreads();
          const absl::StatusOr<Outputs> outputs = engine->Run(batches[b]);
          const float distance =
              outputs.ok() ? Distance(outputs->values, expected[b]) : INFINITY;
          if (!(distance <= most)) most = distance;
        }
        worst[t] = most;
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (const float most : worst) EXPECT_LT(most, tolerance());
  }
}

// ------------------------------------------------------------------- memory

// What this process holds on its heap.
int64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

TEST_P(OneDnnThreadsTest, AllocatesNothingForBatchesNoLargerThanBefore) {
  std::vector<Batch> batches;
  for (const HeadMask mask : {kFirst, kMean, kAll}) {
    for (const std::vector<int>& lengths :
         {std::vector<int>{512, 512, 512, 512},
          std::vector<int>(200, 20),
          {300, 1, 1},
          std::vector<int>(70, 31),
          {7},
          {1, 2, 3, 500, 4}}) {
      batches.push_back(Pack(Sequences(lengths), mask));
    }
  }
  int64_t one_workspace = 0;
  for (const int threads : {1, 2}) {
    const std::unique_ptr<Engine> engine = Make(GetParam(), threads);
    const int64_t before = HeapBytes();
    for (const Batch& batch : batches) Values(*engine, batch);
    const int64_t warm = HeapBytes();
    if (threads == 1) one_workspace = warm - before;
    for (int round = 0; round < 5; ++round) {
      for (const Batch& batch : batches) Values(*engine, batch);
    }
    if (threads == 1) {
      // Buffers are of 64 bytes and more; this is the allocator's own.
      EXPECT_LE(HeapBytes() - warm, 16 << 10);
    } else {
      // Which workspace grows when is by chance, but only to the same size.
      EXPECT_LE(HeapBytes() - before, 2 * one_workspace + (256 << 10));
    }
  }
}

// ------------------------------------------------------------- quantisation

constexpr internal::Product kProducts[] = {
    internal::PRODUCT_QUERY_KEY_VALUE, internal::PRODUCT_ATTENTION_OUTPUT,
    internal::PRODUCT_INTERMEDIATE, internal::PRODUCT_OUTPUT};

class QuantizationTest : public OneDnnEngineTest {
 protected:
  std::unique_ptr<Engine> Quantized(const internal::Quantization& quantization,
                                    ActivationObserver* observer = nullptr) {
    EngineOptions options = OnCpu(Mode(internal::DTYPE_INT8));
    options.quantization = &quantization;
    options.observer = observer;
    return EngineTest::Make(options);
  }
  // Of all layers.
  internal::Quantization Keep(const std::vector<internal::Product>& products) {
    internal::Quantization out;
    for (int layer = 0; layer < options_.num_layers; ++layer) {
      for (const internal::Product product : products) {
        internal::QuantizedProduct* const q = out.add_products();
        q->set_layer(layer);
        q->set_product(product);
        q->set_keep(true);
      }
    }
    return out;
  }
  Batch Many(HeadMask mask = kAll) {
    std::vector<int> lengths;
    for (int i = 0; i < 120; ++i) lengths.push_back(i * 7919 % 40 + 1);
    return Pack(Sequences(lengths), mask);
  }
  static double RootMeanSquare(const std::vector<float>& a,
                               const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double squares = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      squares += double{a[i] - b[i]} * (a[i] - b[i]);
    }
    return std::sqrt(squares / static_cast<double>(a.size()));
  }
};

TEST_F(QuantizationTest, KeepsTheProductsThatItIsTold) {
  const Batch batch = Many();
  const std::vector<float> exact = Values(*Make(internal::DTYPE_FP32), batch);
  const double whole =
      RootMeanSquare(Values(*Make(internal::DTYPE_INT8), batch), exact);
  EXPECT_EQ(RootMeanSquare(Values(*Quantized({}), batch), exact), whole);
  for (const internal::Product product : kProducts) {
    const double kept =
        RootMeanSquare(Values(*Quantized(Keep({product})), batch), exact);
    EXPECT_LT(kept, whole) << internal::Product_Name(product);
    RecordProperty(internal::Product_Name(product),
                   absl::StrCat(kept, " of ", whole));
  }
  // All: what the rest is in.
  const std::vector<internal::Product> all(std::begin(kProducts),
                                           std::end(kProducts));
  const std::vector<float> none = Values(*Quantized(Keep(all)), batch);
  if (HasFastBf16()) {
    EXPECT_LT(Distance(none, Values(*Make(internal::DTYPE_BF16), batch)), 1e-3);
  } else {
    // Of int8 only the words are less than fp32.
    EXPECT_LT(Distance(none, exact), 2e-2);
  }
  EXPECT_LT(RootMeanSquare(none, exact), 0.5 * whole);
}

TEST_F(QuantizationTest, KeepsAProductOfOneLayer) {
  const Batch batch = Many();
  const std::vector<float> plain = Values(*Make(internal::DTYPE_INT8), batch);
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    for (const internal::Product product : kProducts) {
      internal::Quantization quantization;
      internal::QuantizedProduct* const q = quantization.add_products();
      q->set_layer(layer);
      q->set_product(product);
      q->set_keep(true);
      const float distance =
          Distance(Values(*Quantized(quantization), batch), plain);
      EXPECT_GT(distance, 1e-5);
      EXPECT_LT(distance, 0.4);
    }
  }
}

// What an engine told its observer.
class Recorder : public ActivationObserver {
 public:
  void Observe(int layer, internal::Product product, const float* maxima,
               int64_t rows) override {
    const std::lock_guard<std::mutex> lock(mu_);
    std::vector<float>& seen = seen_[{layer, product}];
    seen.insert(seen.end(), maxima, maxima + rows);
  }

  // Sorted: threads come in any order.
  std::map<std::pair<int, internal::Product>, std::vector<float>> Take() {
    for (auto& [product, maxima] : seen_) {
      std::sort(maxima.begin(), maxima.end());
    }
    return std::exchange(seen_, {});
  }

 private:
  std::mutex mu_;
  std::map<std::pair<int, internal::Product>, std::vector<float>> seen_;
};

TEST_F(QuantizationTest, TellsItsObserverOfEveryRowOfEveryProduct) {
  Recorder recorder;
  const std::unique_ptr<Engine> engine = Quantized({}, &recorder);
  for (const HeadMask mask : {kAll, kFirst}) {
    for (const Batch& batch : {Many(mask), Pack(Sequences({200}), mask),
                               Pack(Sequences({1}), mask)}) {
      Values(*engine, batch);
      const auto seen = recorder.Take();
      EXPECT_EQ(seen.size(), 4 * options_.num_layers);
      for (const auto& [at, maxima] : seen) {
        const auto& [layer, product] = at;
        // The last layer finishes first tokens only, where no head reads more.
        const bool few = mask == kFirst && layer + 1 == options_.num_layers &&
                         product != internal::PRODUCT_QUERY_KEY_VALUE;
        EXPECT_EQ(maxima.size(), few ? batch.sequences() : batch.tokens())
            << "layer " << layer << ", " << internal::Product_Name(product);
        EXPECT_GT(maxima.front(), 0);
        EXPECT_LT(maxima.back(), 100);
      }
    }
  }
}

TEST_F(QuantizationTest, ObservesWhatGoesInNotWhatIsKept) {
  Recorder recorder;
  const std::unique_ptr<Engine> engine =
      Quantized(Keep({internal::PRODUCT_OUTPUT}), &recorder);
  Values(*engine, Many());
  const auto seen = recorder.Take();
  EXPECT_EQ(seen.size(), 3 * options_.num_layers);
  EXPECT_FALSE(seen.contains({0, internal::PRODUCT_OUTPUT}));
}

TEST_F(QuantizationTest, CutsActivationsToTheirBound) {
  const Batch batch = Many();
  Recorder recorder;
  const std::vector<float> plain = Values(*Quantized({}, &recorder), batch);
  const auto unbounded = recorder.Take();
  for (const internal::Product product : kProducts) {
    const std::vector<float>& maxima = unbounded.at({1, product});
    internal::Quantization quantization;
    internal::QuantizedProduct* const q = quantization.add_products();
    q->set_layer(1);
    q->set_product(product);
    // Half of all rows reach beyond it.
    const float bound = maxima[maxima.size() / 2];
    q->set_activation_bound(bound);
    const std::vector<float> cut =
        Values(*Quantized(quantization, &recorder), batch);
    const auto bounded = recorder.Take();
    EXPECT_NEAR(bounded.at({1, product}).back(), bound, 1e-5 * bound);
    EXPECT_EQ(bounded.at({1, product}).front(), maxima.front());
    EXPECT_EQ(bounded.at({0, product}), unbounded.at({0, product}));
    EXPECT_GT(Distance(cut, plain), 1e-4) << internal::Product_Name(product);
    // One that nothing reaches.
    q->set_activation_bound(1e6f);
    EXPECT_EQ(Values(*Quantized(quantization, &recorder), batch), plain);
    EXPECT_EQ(recorder.Take(), unbounded);
  }
}

}  // namespace
}  // namespace vitrine
