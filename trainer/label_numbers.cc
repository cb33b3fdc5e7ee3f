#include "trainer/label_numbers.h"

namespace vitrine {

LabelNumbers AddLabels(const std::set<std::string>& names,
                       internal::Head* head) {
  LabelNumbers numbers;
  for (const std::string& label : head->labels()) {
    numbers.emplace(label, static_cast<int32_t>(numbers.size()));
  }
  for (const std::string& name : names) {
    if (numbers.emplace(name, static_cast<int32_t>(numbers.size())).second) {
      head->add_labels(name);
    }
  }
  return numbers;
}

}  // namespace vitrine
