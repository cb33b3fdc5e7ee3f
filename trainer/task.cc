#include "trainer/task.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<std::unique_ptr<Task>> NewTask(const TaskSettings& settings,
                                              const Featurizer& featurizer,
                                              const Catalogue& catalogue,
                                              const Split& split) {
  if (split.training.size() == 0 && !settings.evaluation_only) {
    return absl::InvalidArgumentError(
        absl::StrCat("head ", settings.head.name(),
                     ": no training rows are left beside the held-out ones"));
  }
  absl::StatusOr<std::unique_ptr<Task>> task;
  switch (settings.head.kind()) {
    case internal::HEAD_KIND_RELEVANCE:
      task = NewRelevanceTask(settings, featurizer, catalogue, split);
      break;
    case internal::HEAD_KIND_RECOMMENDATION:
      task = NewRecommendationTask(settings, featurizer, catalogue, split);
      break;
    case internal::HEAD_KIND_INTEREST:
      task = NewInterestTask(settings, featurizer, catalogue, split);
      break;
    case internal::HEAD_KIND_CLASSIFICATION:
      task = NewClassificationTask(settings, featurizer, split);
      break;
    default:
      return absl::InternalError(
          absl::StrCat("head ", settings.head.name(), " has no kind"));
  }
  if (!task.ok()) {
    return Annotate(task.status(), absl::StrCat("head ", settings.head.name()));
  }
  return task;
}

absl::StatusOr<Encoding> EncodeHistory(const Featurizer& featurizer,
                                       const Catalogue& catalogue,
                                       absl::Span<const int32_t> items) {
  // As many as fit a model of 512 tokens at two tokens each.
  constexpr size_t kNewest = 256;
  if (items.size() > kNewest) items = items.subspan(items.size() - kNewest);
  std::vector<v1::Interaction> events(items.size());
  std::vector<const v1::Interaction*> pointers;
  for (size_t i = 0; i < items.size(); ++i) {
    *events[i].mutable_item() = catalogue.items[items[i]];
    pointers.push_back(&events[i]);
  }
  return featurizer.History(pointers);
}

std::vector<const Encoding*> Pointers(const std::vector<Encoding>& encodings) {
  std::vector<const Encoding*> out;
  for (const Encoding& encoding : encodings) out.push_back(&encoding);
  return out;
}

std::vector<const Encoding*> Pick(const std::vector<Encoding>& encodings,
                                  absl::Span<const int32_t> numbers) {
  std::vector<const Encoding*> out;
  for (const int32_t number : numbers) out.push_back(&encodings[number]);
  return out;
}

std::string DigestOf(const Dataset& held_out, const Catalogue& catalogue) {
  std::string all;
  const auto add = [&all](absl::string_view field) {
    absl::StrAppend(&all, field.size(), ":", field);
  };
  for (const RelevanceRow& row : held_out.relevance) {
    add(row.query);
    add(catalogue.items[row.item].id());
    add(absl::StrCat(row.grade));
  }
  for (const HistoryRow& row : held_out.histories) {
    add(row.user_id);
    for (const int32_t item : row.items) add(catalogue.items[item].id());
    for (const std::string& category : row.categories) add(category);
  }
  for (const TextRow& row : held_out.texts) {
    add(row.text);
    add(row.label);
  }
  return Sha256(all);
}

std::vector<const Encoding*> SpreadOver(const std::vector<Encoding>& encodings,
                                        size_t count) {
  count = std::min(count, encodings.size());
  std::vector<const Encoding*> out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back(&encodings[i * encodings.size() / count]);
  }
  return out;
}

}  // namespace vitrine
