#include "server/vector_cache.h"

#include "absl/strings/str_cat.h"

namespace vitrine {

std::string VectorMaker(absl::string_view model, absl::string_view version,
                        absl::string_view head) {
  // Lengths, so that no two triples give the same text.
  return absl::StrCat(model.size(), ":", model, version.size(), ":", version,
                      head);
}

}  // namespace vitrine
