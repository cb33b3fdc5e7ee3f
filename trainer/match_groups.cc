#include "trainer/match_groups.h"

#include <algorithm>
#include <string_view>

#include "trainer/batches.h"

namespace vitrine {
namespace {

constexpr int64_t kLongestQuery = 6;  // words
constexpr int64_t kLongestName = 4;   // words of a name in a list of names
constexpr size_t kMinWords = 3;       // of a document
constexpr size_t kMinItemWords = 2;   // that a loss leaves
constexpr double kFirstPart = 0.5;    // of the queries are of the first part
constexpr double kAName = 0.6;        // of those of a list of names
constexpr double kDropping = 0.3, kDropped = 0.3;  // queries; their words
constexpr double kFrequentDropped = 0.75;
constexpr double kShuffled = 0.2;
constexpr int kTries = 8;

double Uniform(std::mt19937_64* random) {
  return static_cast<double>((*random)() >> 11) * 0x1p-53;
}

int64_t Below(int64_t n, std::mt19937_64* random) {
  return static_cast<int64_t>((*random)() % static_cast<uint64_t>(n));
}

bool Contains(absl::Span<const uint32_t> words, uint32_t word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::vector<bool> CommasOf(const Tokenizer& tokenizer) {
  std::vector<bool> comma(tokenizer.vocab_size());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string piece = tokenizer.Piece(id);
    comma[id] = piece == "," || piece == "##," || piece == "\xE2\x96\x81," ||
                piece == ";";
  }
  return comma;
}

}  // namespace

MatchGroupMaker::MatchGroupMaker(const Featurizer& featurizer,
                                 const WordMatcher& matcher,
                                 const Tokenizer& tokenizer,
                                 const PairDocuments& documents,
                                 const MatchGroupOptions& options)
    : featurizer_(featurizer),
      matcher_(matcher),
      documents_(documents),
      options_(options),
      masker_(tokenizer, {}),
      comma_(CommasOf(tokenizer)),
      index_(documents.size(), [&](int64_t document) {
        std::vector<uint32_t> words;
        for (int64_t p = documents.offsets[document];
             p < documents.offsets[document + 1]; ++p) {
          const absl::Span<const int32_t> ids = documents.parts[p];
          const std::vector<uint32_t> more = WordsOf(ids);
          words.insert(words.end(), more.begin(), more.end());
        }
        return words;
      }) {
  for (int64_t d = 0; d < documents.size(); ++d) {
    int64_t tokens = 0;
    for (int64_t p = 0; p < PartCount(d); ++p) tokens += Budget(d, p);
    item_tokens_ += static_cast<double>(std::min<int64_t>(
                        tokens, options_.encoding.max_tokens())) /
                    static_cast<double>(documents.size());
  }
}

Tokens MatchGroupMaker::TokensOf(std::vector<int32_t> ids) const {
  Tokens tokens;
  tokens.words = matcher_.WordsOf(ids);
  tokens.ids = std::move(ids);
  return tokens;
}

bool MatchGroupMaker::IsOfUse(const WordMatcher& matcher,
                              absl::Span<const std::vector<int32_t>> parts) {
  size_t words = 0;
  for (const std::vector<int32_t>& part : parts) {
    uint32_t last = 0;
    for (const uint32_t word : matcher.WordsOf(part)) {
      words += word != 0 && word != last;
      last = word;
    }
  }
  return words >= kMinWords;
}

int64_t MatchGroupMaker::Budget(int64_t document, int64_t part) const {
  const int64_t length =
      documents_.parts.length(documents_.offsets[document] + part);
  if (PartCount(document) == 1) return length;
  return std::min<int64_t>(
      length, part == 0 ? options_.encoding.max_title_tokens()
                        : options_.encoding.max_description_tokens());
}

int64_t MatchGroupMaker::TokensAbout(int64_t document) const {
  constexpr double kQueryTokens = 4, kSpecials = 3;
  double item = 0;
  for (int64_t p = 0; p < PartCount(document); ++p) item += Budget(document, p);
  const double most = options_.encoding.max_tokens();
  const auto pair = [most](double tokens) {
    return std::min(most, tokens + kQueryTokens + kSpecials);
  };
  return static_cast<int64_t>(pair(item) +
                              options_.negatives * pair(item_tokens_));
}

MatchGroupMaker::Part MatchGroupMaker::ReadPart(int64_t document,
                                                int64_t part) const {
  Part out;
  out.ids = documents_.parts[documents_.offsets[document] + part];
  out.hashes = WordsOf(out.ids);
  const std::vector<int32_t> starts = masker_.WordStarts(out.ids);
  size_t next = 0;  // of starts
  for (size_t i = 0; i < out.ids.size(); ++i) {
    const bool starts_word = next < starts.size() && starts[next] == i;
    next += starts_word;
    const uint32_t hash = out.hashes[i];
    if (hash == 0) continue;
    const auto at = static_cast<int32_t>(i);
    if (starts_word || i == 0 || out.hashes[i - 1] != hash) {
      out.words.push_back({at, at, hash});
    }
    out.words.back().end = at + 1;
  }
  return out;
}

// None: it is no list of names.
std::vector<absl::Span<const MatchGroupMaker::Word>> MatchGroupMaker::NamesOf(
    const Part& part) const {
  std::vector<absl::Span<const Word>> names;
  const absl::Span<const Word> words(part.words);
  size_t first = 0;
  const auto end_name = [&](size_t end) {
    if (end > first) names.push_back(words.subspan(first, end - first));
    first = end;
  };
  size_t word = 0;
  for (size_t i = 0; i < part.ids.size(); ++i) {
    while (word < words.size() && words[word].begin <= i) ++word;
    if (comma_[part.ids[i]]) end_name(word);
  }
  end_name(words.size());
  const auto is_long = [](absl::Span<const Word> name) {
    return name.size() > kLongestName;
  };
  if (names.size() < 2 || std::any_of(names.begin(), names.end(), is_long)) {
    names.clear();
  }
  return names;
}

// Adds a span's words, but those that are dropped.
void MatchGroupMaker::AddSpan(const Part& part, std::mt19937_64* random,
                              Query* query) const {
  const auto count = static_cast<int64_t>(part.words.size());
  const int64_t size = 1 + Below(std::min(kLongestQuery, count), random);
  const int64_t first = Below(count - size + 1, random);
  std::vector<Word> words(part.words.begin() + first,
                          part.words.begin() + first + size);
  const bool dropping = Uniform(random) < kDropping;
  const auto is_dropped = [&](const Word& word) {
    const double chance = Uniform(random);
    return index_.IsFrequent(word.hash) ? chance < kFrequentDropped
                                        : dropping && chance < kDropped;
  };
  std::vector<Word> kept;
  for (const Word& word : words) {
    if (!is_dropped(word)) kept.push_back(word);
  }
  if (kept.empty()) kept.push_back(words[Below(size, random)]);
  if (Uniform(random) < kShuffled) Shuffle(&kept, random);
  for (const Word& word : kept) {
    query->ids.insert(query->ids.end(), part.ids.begin() + word.begin,
                      part.ids.begin() + word.end);
    query->words.push_back(word.hash);
  }
}

MatchGroupMaker::Query MatchGroupMaker::DrawQuery(
    int64_t document, std::mt19937_64* random) const {
  const int64_t parts = PartCount(document);
  Query query;
  // Parts of signs alone have no words: another one has.
  Part part;
  query.part = Uniform(random) < kFirstPart ? 0 : Below(parts, random);
  for (int64_t i = 0; i < parts; ++i) {
    part = ReadPart(document, query.part);
    if (!part.words.empty()) break;
    query.part = (query.part + 1) % parts;
  }
  if (query.part == 0 && Uniform(random) < kAName) {
    const std::vector<absl::Span<const Word>> names = NamesOf(part);
    if (!names.empty()) {
      query.is_name = true;
      const auto n = static_cast<int64_t>(names.size());
      for (const Word& word : names[Below(n, random)]) {
        query.ids.insert(query.ids.end(), part.ids.begin() + word.begin,
                         part.ids.begin() + word.end);
        query.words.push_back(word.hash);
      }
    }
  }
  if (query.words.empty()) AddSpan(part, random, &query);
  const auto most = static_cast<size_t>(options_.encoding.max_query_tokens());
  if (query.ids.size() > most) query.ids.resize(most);
  return query;
}

// "of the" asks for nothing.
MatchGroupMaker::Query MatchGroupMaker::DrawTellingQuery(
    int64_t document, std::mt19937_64* random) const {
  Query query;
  for (int i = 0; i < kTries; ++i) {
    query = DrawQuery(document, random);
    if (std::any_of(
            query.words.begin(), query.words.end(),
            [this](uint32_t word) { return !index_.IsFrequent(word); })) {
      break;
    }
  }
  return query;
}

bool MatchGroupMaker::HasAll(int64_t document, const Query& query) const {
  std::vector<uint32_t> words;
  for (int64_t p = 0; p < PartCount(document); ++p) {
    const absl::Span<const int32_t> ids =
        documents_.parts[documents_.offsets[document] + p];
    const std::vector<uint32_t> more = WordsOf(ids);
    words.insert(words.end(), more.begin(), more.end());
  }
  return std::all_of(query.words.begin(), query.words.end(),
                     [&words](uint32_t word) { return Contains(words, word); });
}

int64_t MatchGroupMaker::DrawOther(const Query& query, bool hard,
                                   absl::Span<const int64_t> taken,
                                   std::mt19937_64* random) const {
  const auto is_taken = [taken](int64_t document) {
    return std::find(taken.begin(), taken.end(), document) != taken.end();
  };
  const auto words = static_cast<int64_t>(query.words.size());
  // All documents with a query's only word have all of its words.
  for (int i = 0; hard && words > 1 && i < kTries; ++i) {
    const absl::Span<const int32_t> with =
        index_.With(query.words[Below(words, random)]);
    const auto count = static_cast<int64_t>(with.size());
    const int64_t other = with[Below(count, random)];
    if (!is_taken(other) && !HasAll(other, query)) return other;
  }
  int64_t other = 0;
  for (int i = 0; i < kTries; ++i) {
    other = Below(documents_.size(), random);
    if (!is_taken(other) && !HasAll(other, query)) return other;
  }
  while (is_taken(other)) other = (other + 1) % documents_.size();
  return other;
}

std::vector<int32_t> MatchGroupMaker::ItemIds(
    int64_t document, int64_t left_out,
    absl::Span<const uint32_t> removed) const {
  std::vector<int32_t> ids;
  size_t words = 0;
  for (int64_t p = 0; p < PartCount(document); ++p) {
    if (p == left_out) continue;
    const absl::Span<const int32_t> all =
        documents_.parts[documents_.offsets[document] + p].subspan(
            0, Budget(document, p));
    const std::vector<uint32_t> hashes = WordsOf(all);
    const size_t begin = ids.size();
    for (size_t i = 0; i < all.size(); ++i) {
      if (hashes[i] != 0 && Contains(removed, hashes[i])) continue;
      // A name that is gone takes its comma along.
      if (comma_[all[i]] && (ids.size() == begin || comma_[ids.back()])) {
        continue;
      }
      words += hashes[i] != 0 && (i == 0 || hashes[i] != hashes[i - 1]);
      ids.push_back(all[i]);
    }
  }
  if (words >= kMinItemWords || (left_out < 0 && removed.empty())) return ids;
  return ItemIds(document, -1, {});
}

MatchGroup MatchGroupMaker::Draw(int64_t document,
                                 std::mt19937_64* random) const {
  const Query query = DrawTellingQuery(document, random);
  const double chance = Uniform(random);
  Loss loss;
  if (query.is_name) {
    loss = chance < 0.3 ? Loss::kNothing : Loss::kAllWords;
  } else {
    loss = chance < 0.4    ? Loss::kNothing
           : chance < 0.65 ? Loss::kSomeWords
           : chance < 0.85 ? Loss::kAllWords
                           : Loss::kPart;
  }
  if (loss == Loss::kPart && PartCount(document) == 1) loss = Loss::kAllWords;

  const auto lost_of = [&](const Query& of) {
    if (loss == Loss::kAllWords) return of.words;
    std::vector<uint32_t> lost;
    for (const uint32_t word : of.words) {
      if (loss == Loss::kSomeWords && Uniform(random) < 0.5) {
        lost.push_back(word);
      }
    }
    return lost;
  };
  const std::vector<uint32_t> lost = lost_of(query);

  std::vector<int64_t> items = {document};
  while (items.size() <= options_.negatives) {
    const bool hard = items.size() <= options_.hard;
    items.push_back(DrawOther(query, hard, items, random));
  }
  const Tokens asked = TokensOf(query.ids);
  MatchGroup group;
  for (const int64_t item : items) {
    std::vector<uint32_t> removed = lost;
    int64_t left_out = loss == Loss::kPart ? query.part : -1;
    if (item != document && loss != Loss::kNothing) {
      // As if it were asked for itself.
      const Query own = DrawQuery(item, random);
      const std::vector<uint32_t> more = lost_of(own);
      removed.insert(removed.end(), more.begin(), more.end());
      if (loss == Loss::kPart) left_out = own.part;
    }
    group.pairs.push_back(
        featurizer_.Pair(asked, TokensOf(ItemIds(item, left_out, removed))));
    group.tokens += static_cast<int64_t>(group.pairs.back().ids.size());
  }
  return group;
}

}  // namespace vitrine
