#include "model/tokenizer.h"

#include <algorithm>

namespace vitrine {
namespace {

// Appends at most `room` of `tokens`; false when that is not all of them.
bool AppendIds(const Tokens& tokens, size_t room, int32_t segment,
               Encoding* out) {
  const size_t count = std::min(room, tokens.ids.size());
  out->ids.insert(out->ids.end(), tokens.ids.begin(),
                  tokens.ids.begin() + count);
  out->segment_ids.insert(out->segment_ids.end(), count, segment);
  return count == tokens.ids.size();
}

void AppendId(int32_t id, int32_t segment, Encoding* out) {
  out->ids.push_back(id);
  out->segment_ids.push_back(segment);
}

size_t Room(size_t max_tokens, size_t used) {
  return max_tokens > used ? max_tokens - used : 0;
}

}  // namespace

Encoding EncodeSingle(const SpecialTokens& special, const Tokens& text,
                      size_t max_tokens) {
  Encoding out;
  const size_t room = Room(max_tokens, 2);
  const size_t size = std::min(room, text.ids.size()) + 2;
  out.ids.reserve(size);
  out.segment_ids.reserve(size);
  AppendId(special.cls, 0, &out);
  const bool whole = AppendIds(text, room, 0, &out);
  AppendId(special.sep, 0, &out);
  out.truncated = text.truncated || !whole;
  return out;
}

Encoding EncodePair(const SpecialTokens& special, const Tokens& a,
                    const Tokens& b, size_t max_tokens, int segments) {
  Encoding out;
  const int separators = special.double_separator ? 2 : 1;
  const size_t room = Room(max_tokens, separators + 2);
  const size_t size =
      std::min(room, a.ids.size() + b.ids.size()) + separators + 2;
  const int32_t second = segments > 1 ? 1 : 0;
  out.ids.reserve(size);
  out.segment_ids.reserve(size);
  AppendId(special.cls, 0, &out);
  const bool whole_a = AppendIds(a, room, 0, &out);
  for (int i = 0; i < separators; ++i) AppendId(special.sep, 0, &out);
  const bool whole_b = AppendIds(b, Room(room, a.ids.size()), second, &out);
  AppendId(special.sep, second, &out);
  out.truncated = a.truncated || b.truncated || !whole_a || !whole_b;
  return out;
}

}  // namespace vitrine
