#include "server/item_key.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/sha256.h"

namespace vitrine {
namespace {

void AppendNumber(size_t number, std::string* out) {
  out->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

// Lengths go first, so that no two items give the same bytes.
void AppendPart(absl::string_view part, std::string* out) {
  AppendNumber(part.size(), out);
  out->append(part.data(), part.size());
}

}  // namespace

ItemKey KeyOf(absl::string_view maker, const v1::Item& item) {
  // In one piece: the digest's overhead is per piece, and most are short.
  std::string text;
  text.reserve(512);
  AppendPart(maker, &text);
  AppendPart(item.title(), &text);
  AppendPart(item.brand(), &text);
  AppendPart(item.description(), &text);
  AppendNumber(item.categories_size(), &text);
  for (const std::string& category : item.categories()) {
    AppendPart(category, &text);
  }
  if (!item.attributes().empty()) {
    // A map has no order of its own.
    std::vector<std::pair<absl::string_view, absl::string_view>> attributes(
        item.attributes().begin(), item.attributes().end());
    std::sort(attributes.begin(), attributes.end());
    for (const auto& [key, value] : attributes) {
      AppendPart(key, &text);
      AppendPart(value, &text);
    }
  }
  Sha256Stream stream;
  stream.Add(text);
  const Sha256Stream::Digest digest = stream.Finish();
  ItemKey key;
  std::memcpy(key.data(), digest.data(), sizeof(key));
  return key;
}

}  // namespace vitrine
