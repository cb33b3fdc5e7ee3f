#include "server/warm_up.h"

#include <algorithm>

#include "base/status_macros.h"

namespace vitrine {

absl::Status WarmUpOn(const ServableModel& model,
                      const std::vector<std::vector<int>>& shapes) {
  const SpecialTokens& special = model.tokenizer().special();
  const int longest = model.encoding().max_tokens();
  const auto heads = static_cast<int>(model.heads().size());
  const HeadMask all =
      heads == kMaxHeads ? ~HeadMask{0} : (HeadMask{1} << heads) - 1;
  for (const std::vector<int>& lengths : shapes) {
    Batch batch;
    for (const int length : lengths) {
      Encoding encoding;
      encoding.ids.assign(std::clamp(length, 1, longest), special.sep);
      encoding.ids[0] = special.cls;
      encoding.segment_ids.resize(encoding.ids.size());
      batch.Add(encoding, all);
    }
    RETURN_IF_ERROR(model.engine().Run(batch).status());
  }
  return absl::OkStatus();
}

}  // namespace vitrine
