#include "trainer/match_marks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "trainer/source_model.h"

namespace vitrine {
namespace {

constexpr char kTable[] = "embeddings.token_type_embeddings.weight";
constexpr int64_t kPlainSegments = 2, kMarkedSegments = 4;

}  // namespace

absl::Status SetMatchMarks(MatchMarks marks, SourceModel* source) {
  int64_t& segments = source->checkpoint.config.type_vocab_size;
  const int64_t wanted = marks == MatchMarks::kOn ? kMarkedSegments
                         : marks == MatchMarks::kOff
                             ? std::min(segments, kPlainSegments)
                             : segments;
  if (wanted == segments) return absl::OkStatus();
  if (segments > kMarkedSegments) {
    return absl::InvalidArgumentError(
        absl::StrCat(source->folder, ": a table of ", segments,
                     " segments; match marks take one of 4 at most"));
  }
  TensorView& view = source->checkpoint.encoder[kTable];
  ASSIGN_OR_RETURN(std::vector<float> rows, ToFloats(view));
  const int64_t width = source->checkpoint.config.hidden_size;
  rows.resize(wanted * width);
  for (int64_t row = segments; row < wanted; ++row) {
    // Segment 2 marks words of the first text, 3 those of the second.
    const int64_t from = std::min(row % 2, segments - 1);
    std::copy_n(rows.begin() + from * width, width, rows.begin() + row * width);
  }
  segments = wanted;
  source->imported.push_back(
      {kTable, TensorType::kF32, {wanted, width}, std::move(rows)});
  const NamedTensor& table = source->imported.back();
  view.type = TensorType::kF32;
  view.shape = table.shape;
  view.bytes = {reinterpret_cast<const char*>(table.values.data()),
                table.values.size() * sizeof(float)};
  return absl::OkStatus();
}

}  // namespace vitrine
