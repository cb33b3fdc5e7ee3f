#include "model/featurizer.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "model/unicode.h"
#include "model/word_matcher.h"

namespace vitrine {
namespace {

// Special tokens of a pair, at most: <s> a </s></s> b </s>.
constexpr int kPairSpecials = 4;
constexpr int kSingleSpecials = 2;
// The least that leaves a token each to a query and an item.
constexpr int kMinTokens = kPairSpecials + 2;

constexpr int kMarkedSegments = 4;
constexpr int32_t kMatchedQuerySegment = 2;
constexpr int32_t kMatchedItemSegment = 3;

std::string_view Std(absl::string_view text) {
  return {text.data(), text.size()};
}

using Attributes = google::protobuf::Map<std::string, std::string>;

// A proto map has no order of its own, and the ids must not depend on it.
std::vector<const Attributes::value_type*> ByKey(const Attributes& attributes) {
  std::vector<const Attributes::value_type*> sorted;
  sorted.reserve(attributes.size());
  for (const auto& attribute : attributes) sorted.push_back(&attribute);
  std::sort(sorted.begin(), sorted.end(),
            [](const auto* a, const auto* b) { return a->first < b->first; });
  return sorted;
}

absl::Status InvalidUtf8(absl::string_view field, size_t offset) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": invalid UTF-8 at byte ", offset));
}

// Builds an item's ids field by field, `budget` in all. Every field that is
// read is checked to its end, whatever is left of its budget, so that an
// item's errors do not depend on its other fields.
class ItemReader {
 public:
  ItemReader(const Tokenizer& tokenizer, const v1::Item& item, size_t budget)
      : tokenizer_(tokenizer), item_(item), budget_(budget) {}

  // Each takes the field's budget; a negative one leaves the field out.
  void Title(int budget) {
    Add(item_.title(), budget, [] { return "title"; });
  }
  void Brand(int budget) {
    Add(item_.brand(), budget, [] { return "brand"; });
  }
  void Description(int budget) {
    Add(item_.description(), budget, [] { return "description"; });
  }
  void Categories(int budget) {
    if (budget < 0) return;
    for (int i = 0; i < item_.categories_size(); ++i) {
      budget -= Add(item_.categories(i), budget,
                    [i] { return absl::StrCat("categories[", i, "]"); });
    }
  }
  void Attributes(int budget) {
    if (budget < 0) return;
    for (const auto* attribute : ByKey(item_.attributes())) {
      budget -= Add(attribute->second, budget, [attribute] {
        // The key is the caller's and may be anything.
        return absl::StrCat("attributes[\"",
                            absl::CEscape(attribute->first.substr(0, 64)),
                            "\"]");
      });
    }
  }

  // Field and offset of the first invalid UTF-8.
  bool ok() const { return bad_field_.empty(); }
  const std::string& bad_field() const { return bad_field_; }
  size_t bad_offset() const { return bad_offset_; }

  Tokens Take() { return std::move(tokens_); }

 private:
  // Returns the number of ids appended. `name` is called for bad text only.
  template <typename Name>
  int Add(absl::string_view text, int budget, const Name& name) {
    if (budget < 0 || text.empty() || !ok()) return 0;
    if (const auto offset = FindInvalidUtf8(Std(text))) {
      bad_field_ = name();
      bad_offset_ = *offset;
      return 0;
    }
    const size_t room =
        std::min(static_cast<size_t>(budget), budget_ - tokens_.ids.size());
    const Tokens more = tokenizer_.Tokenize(Std(text), room);
    tokens_.ids.insert(tokens_.ids.end(), more.ids.begin(), more.ids.end());
    tokens_.truncated = tokens_.truncated || more.truncated;
    return static_cast<int>(more.ids.size());
  }

  const Tokenizer& tokenizer_;
  const v1::Item& item_;
  const size_t budget_;
  Tokens tokens_;
  std::string bad_field_;
  size_t bad_offset_ = 0;
};

// Marks in `pair`, as EncodePair made it of the two, the words that both have.
void MarkMatches(const Tokens& query, const Tokens& item, Encoding* pair) {
  const auto mark = [pair](size_t from, const Tokens& own, const Tokens& other,
                           int32_t unmarked, int32_t marked) {
    for (size_t i = 0; i < own.words.size() && from + i < pair->ids.size();
         ++i) {
      // Cut texts end early: what follows is a separator or the other text.
      if (pair->segment_ids[from + i] != unmarked) break;
      if (pair->ids[from + i] != own.ids[i]) break;
      if (own.words[i] != 0 && std::find(other.words.begin(), other.words.end(),
                                         own.words[i]) != other.words.end()) {
        pair->segment_ids[from + i] = marked;
      }
    }
  };
  const auto second = static_cast<size_t>(
      std::find(pair->segment_ids.begin(), pair->segment_ids.end(), 1) -
      pair->segment_ids.begin());
  mark(1, query, item, 0, kMatchedQuerySegment);
  mark(second, item, query, 1, kMatchedItemSegment);
}

// Of all that ItemText reads beside the item.
std::string ItemTextDigest(const Tokenizer& tokenizer,
                           const internal::EncodingOptions& options,
                           bool match_marks) {
  Sha256Stream stream;
  stream.AddField(tokenizer.digest());
  stream.AddNumber(options.max_tokens());
  stream.AddNumber(options.max_title_tokens());
  stream.AddNumber(options.max_brand_tokens());
  stream.AddNumber(options.max_categories_tokens());
  stream.AddNumber(options.max_attributes_tokens());
  stream.AddNumber(options.max_description_tokens());
  stream.AddNumber(match_marks);
  return stream.FinishHex();
}

int OrDefault(int value, int fallback) { return value == 0 ? fallback : value; }

}  // namespace

absl::StatusOr<internal::EncodingOptions> ResolveEncodingOptions(
    const internal::EncodingOptions& options, const EncoderConfig& encoder) {
  internal::EncodingOptions out = options;
  const auto limit =
      static_cast<int32_t>(std::min<int64_t>(encoder.max_tokens(), INT32_MAX));
  if (options.max_tokens() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens: ", options.max_tokens(), " is negative"));
  }
  out.set_max_tokens(std::min(OrDefault(options.max_tokens(), 128), limit));
  if (out.max_tokens() < kMinTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens: ", out.max_tokens(), " < ", kMinTokens,
        ", which special tokens, a query and an item take at the least"));
  }
  const int pair_room = out.max_tokens() - kPairSpecials;
  if (options.max_query_tokens() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_query_tokens: ", options.max_query_tokens(), " is negative"));
  }
  if (options.max_query_tokens() == 0) {
    out.set_max_query_tokens(std::min(32, pair_room / 2));
  } else if (options.max_query_tokens() >= pair_room) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_query_tokens: ", options.max_query_tokens(),
                     " leaves no room for an item in sequences of ",
                     out.max_tokens(), " tokens"));
  }
  out.set_max_title_tokens(OrDefault(options.max_title_tokens(), 48));
  out.set_max_brand_tokens(OrDefault(options.max_brand_tokens(), 8));
  out.set_max_categories_tokens(OrDefault(options.max_categories_tokens(), 12));
  out.set_max_attributes_tokens(OrDefault(options.max_attributes_tokens(), 24));
  out.set_max_description_tokens(
      OrDefault(options.max_description_tokens(), 48));
  if (out.max_title_tokens() < 0 && out.max_brand_tokens() < 0 &&
      out.max_categories_tokens() < 0 && out.max_attributes_tokens() < 0 &&
      out.max_description_tokens() < 0) {
    return absl::InvalidArgumentError(
        "encoding: every field of an item is left out");
  }
  if (options.max_history_item_tokens() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_history_item_tokens: ", options.max_history_item_tokens(),
        " is negative"));
  }
  out.set_max_history_item_tokens(
      OrDefault(options.max_history_item_tokens(), 16));
  return out;
}

Featurizer::Featurizer(const Tokenizer& tokenizer,
                       const internal::EncodingOptions& options,
                       const EncoderConfig& encoder)
    : tokenizer_(tokenizer),
      options_(options),
      segments_(encoder.type_vocab_size > 1 ? 2 : 1),
      matcher_(encoder.type_vocab_size == kMarkedSegments
                   ? std::make_unique<const WordMatcher>(tokenizer)
                   : nullptr),
      item_text_digest_(
          ItemTextDigest(tokenizer, options_, matcher_ != nullptr)) {}

Featurizer::~Featurizer() = default;

Tokens Featurizer::WithWords(Tokens tokens) const {
  if (matcher_ != nullptr) tokens.words = matcher_->WordsOf(tokens.ids);
  return tokens;
}

absl::StatusOr<Tokens> Featurizer::Query(absl::string_view query) const {
  if (const auto offset = FindInvalidUtf8(Std(query))) {
    return InvalidUtf8("query", *offset);
  }
  return WithWords(
      tokenizer_.Tokenize(Std(query), options_.max_query_tokens()));
}

absl::StatusOr<Tokens> Featurizer::ItemText(const v1::Item& item) const {
  ItemReader reader(tokenizer_, item, options_.max_tokens());
  reader.Title(options_.max_title_tokens());
  reader.Brand(options_.max_brand_tokens());
  reader.Categories(options_.max_categories_tokens());
  reader.Attributes(options_.max_attributes_tokens());
  reader.Description(options_.max_description_tokens());
  if (!reader.ok()) return InvalidUtf8(reader.bad_field(), reader.bad_offset());
  Tokens tokens = reader.Take();
  if (tokens.ids.empty()) {
    return absl::InvalidArgumentError("item: there is no text in its fields");
  }
  return WithWords(std::move(tokens));
}

Encoding Featurizer::Pair(const Tokens& query, const Tokens& item) const {
  Encoding out = EncodePair(tokenizer_.special(), query, item,
                            options_.max_tokens(), segments_);
  if (matcher_ != nullptr) MarkMatches(query, item, &out);
  return out;
}

Encoding Featurizer::Single(const Tokens& text) const {
  return EncodeSingle(tokenizer_.special(), text, options_.max_tokens());
}

absl::StatusOr<Encoding> Featurizer::History(
    absl::Span<const v1::Interaction* const> history) const {
  const size_t room = options_.max_tokens() - kSingleSpecials;
  const size_t item_budget =
      std::min<size_t>(options_.max_history_item_tokens(), room);
  Tokens out;
  bool full = false;
  for (size_t i = history.size(); i-- > 0;) {
    if (history[i]->type() == v1::INTERACTION_TYPE_SKIP) continue;
    // Events beyond what fits are read with no budget: still checked, and
    // what text they have counts as cut.
    ItemReader reader(tokenizer_, history[i]->item(), full ? 0 : item_budget);
    reader.Title(options_.max_title_tokens());
    reader.Brand(options_.max_brand_tokens());
    reader.Categories(options_.max_categories_tokens());
    if (!reader.ok()) {
      return InvalidUtf8(
          absl::StrCat("history[", i, "].item.", reader.bad_field()),
          reader.bad_offset());
    }
    const Tokens item = reader.Take();
    out.truncated = out.truncated || item.truncated;
    if (out.ids.size() + item.ids.size() > room) {
      full = true;
      out.truncated = true;
      continue;
    }
    out.ids.insert(out.ids.end(), item.ids.begin(), item.ids.end());
  }
  if (out.ids.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("history: none of its ", history.size(),
                     " events has an item with text that was not skipped"));
  }
  return Single(out);
}

absl::StatusOr<Encoding> Featurizer::Text(absl::string_view text) const {
  if (const auto offset = FindInvalidUtf8(Std(text))) {
    return InvalidUtf8("text", *offset);
  }
  return Single(
      tokenizer_.Tokenize(Std(text), options_.max_tokens() - kSingleSpecials));
}

}  // namespace vitrine
