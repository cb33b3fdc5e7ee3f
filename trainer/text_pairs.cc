#include "trainer/text_pairs.h"

#include <algorithm>

namespace vitrine {
namespace {

constexpr double kShortestCrop = 0.2, kLongestCrop = 0.6;
// Of words; a shorter crop says too little.
constexpr int64_t kMinCrop = 3;

}  // namespace

PairMaker::PairMaker(const Tokenizer& tokenizer, int max_tokens)
    : max_tokens_(max_tokens),
      special_(tokenizer.special()),
      words_(tokenizer, {}) {}

bool PairMaker::CanCrop(Ids ids) const {
  return ids.size() >= kMinCropWords &&
         words_.WordStarts(ids).size() >= kMinCropWords;
}

int PairMaker::Ways(absl::Span<const std::vector<int32_t>> parts) const {
  if (parts.empty()) return 0;
  const auto longest = std::max_element(
      parts.begin(), parts.end(),
      [](const auto& a, const auto& b) { return a.size() < b.size(); });
  return static_cast<int>(parts.size()) - 1 + CanCrop(*longest);
}

int64_t PairMaker::LongestPart(const PairDocuments& documents,
                               int64_t document) const {
  int64_t longest = documents.offsets[document];
  for (int64_t p = longest; p < documents.offsets[document + 1]; ++p) {
    if (documents.parts.length(p) > documents.parts.length(longest)) {
      longest = p;
    }
  }
  return longest;
}

TextPair PairMaker::Draw(const PairDocuments& documents, int64_t document,
                         std::mt19937_64* random) const {
  const int64_t first = documents.offsets[document];
  const int64_t others = documents.offsets[document + 1] - first - 1;
  const Ids longest = documents.parts[LongestPart(documents, document)];
  const auto way = static_cast<int64_t>(
      (*random)() % static_cast<uint64_t>(others + CanCrop(longest)));
  if (way < others) {
    return {Encode(documents.parts[first]),
            Encode(documents.parts[first + 1 + way])};
  }
  const std::vector<int32_t> starts = words_.WordStarts(longest);
  TextPair pair;
  pair.left = Encode(Crop(longest, starts, random));
  pair.right = Encode(Crop(longest, starts, random));
  return pair;
}

int64_t PairMaker::MaxTokens(const PairDocuments& documents,
                             int64_t document) const {
  const auto tokens = [&](int64_t part) {
    return std::min<int64_t>(documents.parts.length(part) + 2, max_tokens_);
  };
  const int64_t first = documents.offsets[document];
  const int64_t longest = LongestPart(documents, document);
  int64_t most = CanCrop(documents.parts[longest]) ? 2 * tokens(longest) : 0;
  for (int64_t p = first + 1; p < documents.offsets[document + 1]; ++p) {
    most = std::max(most, tokens(first) + tokens(p));
  }
  return most;
}

PairMaker::Ids PairMaker::Crop(Ids ids, const std::vector<int32_t>& starts,
                               std::mt19937_64* random) const {
  const auto words = static_cast<int64_t>(starts.size());
  const auto below = [random](int64_t n) {
    return static_cast<int64_t>((*random)() % static_cast<uint64_t>(n));
  };
  const auto shortest =
      std::max(kMinCrop, static_cast<int64_t>(kShortestCrop * words));
  const auto longest =
      std::max(shortest, static_cast<int64_t>(kLongestCrop * words));
  const int64_t size = shortest + below(longest - shortest + 1);
  const int64_t first = below(words - size + 1);
  const size_t begin = starts[first];
  const size_t end = first + size < words ? starts[first + size] : ids.size();
  return ids.subspan(begin, end - begin);
}

Encoding PairMaker::Encode(Ids ids) const {
  Tokens tokens;
  tokens.ids.assign(ids.begin(), ids.end());
  return EncodeSingle(special_, tokens, max_tokens_);
}

}  // namespace vitrine
