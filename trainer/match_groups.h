#pragma once

// Queries with items to tell apart, from documents alone: a query is made of a
// document's own words, and its item is looked for among those of other
// documents. What the matching stage learns from instead of labels.
//
// The query is a span of one to six words of one of the document's parts, some
// of them dropped and now and then in another order; of a first part that is a
// list of names ("sofa, couch, lounge") it is often one of the names. The item
// is the document's parts one after the other, cut as the featurizer cuts an
// item's fields. By chance it keeps the query's words, loses some or all of
// them, or the part that the query is of: were every query's words in its item,
// the marks alone would tell it. The other items lose those words too, and as
// many of their own, so that gaps tell nothing.
//
// Some of the other items are hard: they have some of the query's words. One
// that has all of them is as good an answer and is no wrong one.

#include <cstdint>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "model/featurizer.h"
#include "model/tokenizer.h"
#include "model/word_matcher.h"
#include "trainer/masking.h"
#include "trainer/text_pairs.h"
#include "trainer/word_index.h"

namespace vitrine {

struct MatchGroupOptions {
  int negatives = 5;  // items of other documents beside the query's own
  int hard = 2;       // of them: with words of the query, where there are such
  // Of an item, as the featurizer that serves has them.
  internal::EncodingOptions encoding;
};

struct MatchGroup {
  // The query with each item, as the featurizer encodes them for a
  // cross-encoder; the query's own item is the first.
  std::vector<Encoding> pairs;
  int64_t tokens = 0;
};

// Immutable but for the generators that callers bring; any thread.
class MatchGroupMaker {
 public:
  // All outlive the maker; matcher and featurizer are of the tokenizer, and the
  // featurizer sets match marks. The documents are at least negatives + 1, and
  // each IsOfUse().
  MatchGroupMaker(const Featurizer& featurizer, const WordMatcher& matcher,
                  const Tokenizer& tokenizer, const PairDocuments& documents,
                  const MatchGroupOptions& options);

  // Three words at least, of which a query leaves some.
  static bool IsOfUse(const WordMatcher& matcher,
                      absl::Span<const std::vector<int32_t>> parts);

  MatchGroup Draw(int64_t document, std::mt19937_64* random) const;

  // Of a group around this document, about.
  int64_t TokensAbout(int64_t document) const;

 private:
  // A word that is text, by its ids in a part.
  struct Word {
    int32_t begin = 0, end = 0;
    uint32_t hash = 0;
  };
  struct Part {
    absl::Span<const int32_t> ids;
    std::vector<uint32_t> hashes;  // of each id's word; 0: punctuation
    std::vector<Word> words;
  };
  struct Query {
    std::vector<int32_t> ids;
    std::vector<uint32_t> words;
    int64_t part = 0;  // of its document
    bool is_name = false;
  };
  // What an item loses.
  enum class Loss { kNothing, kSomeWords, kAllWords, kPart };

  int64_t PartCount(int64_t document) const {
    return documents_.offsets[document + 1] - documents_.offsets[document];
  }
  // As the featurizer gives them for these words' text.
  Tokens TokensOf(std::vector<int32_t> ids) const;
  std::vector<uint32_t> WordsOf(absl::Span<const int32_t> ids) const {
    return matcher_.WordsOf({ids.begin(), ids.end()});
  }
  Part ReadPart(int64_t document, int64_t part) const;
  std::vector<absl::Span<const Word>> NamesOf(const Part& part) const;
  Query DrawQuery(int64_t document, std::mt19937_64* random) const;
  void AddSpan(const Part& part, std::mt19937_64* random, Query* query) const;
  Query DrawTellingQuery(int64_t document, std::mt19937_64* random) const;
  int64_t DrawOther(const Query& query, bool hard,
                    absl::Span<const int64_t> taken,
                    std::mt19937_64* random) const;
  bool HasAll(int64_t document, const Query& query) const;
  // Without the part `left_out` (-1: none) and the words of `removed`; with
  // both where hardly anything would remain.
  std::vector<int32_t> ItemIds(int64_t document, int64_t left_out,
                               absl::Span<const uint32_t> removed) const;
  int64_t Budget(int64_t document, int64_t part) const;

  const Featurizer& featurizer_;
  const WordMatcher& matcher_;
  const PairDocuments& documents_;
  const MatchGroupOptions options_;
  const WordMasker masker_;
  std::vector<bool> comma_;  // by id
  const WordIndex index_;
  double item_tokens_ = 0;  // on average
};

}  // namespace vitrine
