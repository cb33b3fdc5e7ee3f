#include "server/warm_up.h"

#include <limits.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "base/status_macros.h"

namespace vitrine {
namespace {

// What is worth running of `shapes`, cut to `most` tokens each.
std::vector<std::vector<int>> WorthRunning(
    const std::vector<std::vector<int>>& shapes, int most) {
  std::map<int, std::vector<int>, std::greater<>> by_tokens;
  for (const std::vector<int>& shape : shapes) {
    std::vector<int> lengths;
    int tokens = 0;
    for (const int length : shape) {
      if (!lengths.empty() && length > most - tokens) break;
      lengths.push_back(length);
      tokens += length;
    }
    if (!lengths.empty()) by_tokens[tokens] = std::move(lengths);
  }
  std::vector<std::vector<int>> out;
  int last = INT_MAX;
  for (auto& [tokens, lengths] : by_tokens) {
    if (tokens > last / 2) continue;
    last = tokens;
    out.push_back(std::move(lengths));
  }
  return out;
}

}  // namespace

absl::Status WarmUpOn(const ServableModel& model,
                      const std::vector<std::vector<int>>& shapes) {
  const SpecialTokens& special = model.tokenizer().special();
  const int longest = model.encoding().max_tokens();
  const auto heads = static_cast<int>(model.heads().size());
  const HeadMask all =
      heads == kMaxHeads ? ~HeadMask{0} : (HeadMask{1} << heads) - 1;
  const int most =
      model.engine().device() == "cpu" ? kMaxWarmUpTokens : INT_MAX;
  for (const std::vector<int>& lengths : WorthRunning(shapes, most)) {
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
