#include "trainer/bm25.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "model/unicode.h"

namespace vitrine {

std::vector<std::string> Bm25Words(absl::string_view text) {
  const std::string_view in(text.data(), text.size());
  std::vector<std::string> words;
  std::string word;
  const auto finish = [&words, &word] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (size_t offset = 0; offset < in.size();) {
    const size_t start = offset;
    const char32_t c = NextCodePoint(in, &offset);
    if (c < 0x80) {
      if (absl::ascii_isalnum(static_cast<unsigned char>(c))) {
        word.push_back(absl::ascii_tolower(static_cast<unsigned char>(c)));
      } else {
        finish();
      }
    } else if (IsCjk(c)) {
      finish();
      words.emplace_back(in.substr(start, offset - start));
    } else if (IsWhitespace(c) || IsPunctuation(c) || IsControl(c)) {
      finish();
    } else {
      word.append(in.substr(start, offset - start));
    }
  }
  finish();
  return words;
}

Bm25::Bm25(const std::vector<std::string>& documents, size_t scored)
    : documents_(documents.size()) {
  double length = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    const std::vector<std::string> words = Bm25Words(documents[i]);
    if (i + scored >= documents.size()) length += words.size();
    const absl::flat_hash_set<std::string> distinct(words.begin(), words.end());
    for (const std::string& word : distinct) ++frequency_[word];
  }
  if (length > 0) mean_length_ = length / scored;
}

double Bm25::Score(absl::string_view query, absl::string_view document) const {
  const std::vector<std::string> words = Bm25Words(document);
  absl::flat_hash_map<std::string, int> counts;
  for (const std::string& word : words) ++counts[word];
  double score = 0;
  for (const std::string& word : Bm25Words(query)) {
    const auto it = counts.find(word);
    if (it == counts.end()) continue;
    const auto found = frequency_.find(word);
    const double df = found == frequency_.end() ? 0 : found->second;
    const double idf = std::log(1 + (documents_ - df + 0.5) / (df + 0.5));
    score += idf * it->second * 2.2 /
             (it->second + 1.2 * (0.25 + 0.75 * words.size() / mean_length_));
  }
  return score;
}

}  // namespace vitrine
