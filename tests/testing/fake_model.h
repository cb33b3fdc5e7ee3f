#pragma once

// A servable model of real text parts over a FakeEngine.

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "model/cooccurrence.h"
#include "model/load_tokenizer.h"
#include "model/servable_model.h"
#include "tests/testing/fake_engine.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {

struct FakeModelOptions {
  std::vector<internal::Head> heads = testing::AllHeads();
  std::string name = "shop";
  int64_t version = 1;
  // Null: something that differs from text to text; unit vectors where the
  // head wants them.
  FakeEngine::Value value;
  // Of heads[h], as ServableModel takes them.
  std::vector<HeadTables> tables;
};

inline constexpr int kFakeVectorSize = 4;

struct FakeModel {
  std::shared_ptr<const ServableModel> model;
  FakeEngine* engine;  // the model's own
};

inline FakeModel NewFakeModel(FakeModelOptions options = {}) {
  std::vector<internal::Head> heads = options.heads;
  internal::Head embedding;
  embedding.set_name("embedding");
  embedding.set_kind(internal::HEAD_KIND_RECOMMENDATION);
  heads.push_back(embedding);
  std::vector<int> widths;
  for (const internal::Head& head : heads) {
    switch (head.kind()) {
      case internal::HEAD_KIND_RECOMMENDATION:
        widths.push_back(kFakeVectorSize);
        break;
      case internal::HEAD_KIND_RELEVANCE:
        widths.push_back(1);
        break;
      default:
        widths.push_back(head.labels_size());
    }
  }
  if (options.value == nullptr) {
    options.value = [heads](absl::Span<const int32_t> ids, int head, int k) {
      int sum = 0;
      for (size_t i = 0; i < ids.size(); ++i) sum += ids[i] * (i % 7 + 1);
      if (heads[head].kind() != internal::HEAD_KIND_RECOMMENDATION) {
        return static_cast<float>((sum + 5 * k) % 17 - 8) / 4;
      }
      const float angle = static_cast<float>(sum % 300) / 100;
      return k == 0 ? std::cos(angle) : k == 1 ? std::sin(angle) : 0.0f;
    };
  }
  auto engine = std::make_unique<FakeEngine>(widths, options.value);
  FakeEngine* const fake = engine.get();
  auto tokenizer =
      NewWordPieceTokenizer(absl::StrJoin(testing::TinyVocabulary(), "\n"), {});
  if (!tokenizer.ok()) std::abort();
  const EncoderConfig encoder = testing::TinyConfig();
  auto encoding = ResolveEncodingOptions({}, encoder);
  if (!encoding.ok()) std::abort();
  internal::Manifest manifest;
  manifest.set_model(options.name);
  manifest.set_version(options.version);
  return {std::make_shared<const ServableModel>(
              manifest, *std::move(tokenizer), encoder, *encoding,
              std::move(heads), std::move(engine), options.tables),
          fake};
}

}  // namespace vitrine
