#include "model/torch_status.h"

#include <c10/util/Exception.h>

#include "absl/strings/str_cat.h"

namespace vitrine {

absl::Status TorchStatus(const std::exception& e) {
  const auto* error = dynamic_cast<const c10::Error*>(&e);
  return absl::InternalError(absl::StrCat(
      "LibTorch: ",
      error != nullptr ? error->what_without_backtrace() : e.what()));
}

}  // namespace vitrine
