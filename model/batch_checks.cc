#include "model/batch_checks.h"

#include "absl/strings/str_cat.h"

namespace vitrine {

absl::Status CheckBatch(const Batch& batch, const EncoderConfig& config,
                        size_t heads) {
  const int sequences = batch.sequences();
  if (batch.segment_ids.size() != batch.ids.size() ||
      batch.offsets.size() != batch.heads.size() + 1 ||
      batch.offsets.front() != 0 || batch.offsets.back() != batch.tokens()) {
    return absl::InvalidArgumentError("a batch whose parts do not fit");
  }
  for (int s = 0; s < sequences; ++s) {
    const auto bad = [s](auto... parts) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence ", s, ": ", parts...));
    };
    const int64_t length =
        int64_t{batch.offsets[s + 1]} - int64_t{batch.offsets[s]};
    if (length < 1) return bad("it is empty");
    if (length > config.max_tokens()) {
      return bad(length, " tokens > ", config.max_tokens());
    }
    const HeadMask mask = batch.heads[s];
    if (mask == 0) return bad("no head");
    if (heads < kMaxHeads && mask >> heads != 0) {
      return bad("a head that is not there: mask ", mask, ", ", heads,
                 " heads");
    }
    // Here the offsets so far have risen, so they may be followed.
    for (int32_t i = batch.offsets[s]; i < batch.offsets[s + 1]; ++i) {
      if (i >= batch.tokens()) return bad("its offsets leave the batch");
      if (batch.ids[i] < 0 || batch.ids[i] >= config.vocab_size) {
        return bad("token id ", batch.ids[i], " is not in the vocabulary of ",
                   config.vocab_size);
      }
      if (batch.segment_ids[i] < 0 ||
          batch.segment_ids[i] >= config.type_vocab_size) {
        return bad("segment id ", batch.segment_ids[i],
                   " >= ", config.type_vocab_size);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace vitrine
