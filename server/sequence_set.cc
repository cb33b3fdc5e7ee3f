#include "server/sequence_set.h"

#include <cstdint>
#include <utility>

namespace vitrine {
namespace {

void AppendBytes(const std::vector<int32_t>& numbers, std::string* out) {
  out->append(reinterpret_cast<const char*>(numbers.data()),
              numbers.size() * sizeof(int32_t));
}

}  // namespace

int SequenceSet::Add(Encoding encoding, int head) {
  const HeadMask mask = HeadMask{1} << head;
  // The two vectors have one length, so that their bytes end to end are
  // unambiguous.
  std::string key;
  key.reserve(2 * encoding.ids.size() * sizeof(int32_t));
  AppendBytes(encoding.ids, &key);
  AppendBytes(encoding.segment_ids, &key);
  const auto [it, added] = index_.try_emplace(std::move(key), size());
  if (!added) {
    heads_[it->second] |= mask;
    return it->second;
  }
  tokens_ += static_cast<int64_t>(encoding.ids.size());
  truncated_ += encoding.truncated ? 1 : 0;
  sequences_.push_back(std::move(encoding));
  heads_.push_back(mask);
  return it->second;
}

absl::Span<const float> SequenceSet::Of(const Outputs& outputs,
                                        const Engine& engine, int sequence,
                                        int head) const {
  const HeadMask before = heads_[sequence] & ((HeadMask{1} << head) - 1);
  size_t offset = 0;
  for (HeadMask mask = before; mask != 0; mask &= mask - 1) {
    offset += engine.width(__builtin_ctz(mask));
  }
  return outputs.Of(sequence).subspan(offset, engine.width(head));
}

}  // namespace vitrine
