#pragma once

#include <exception>

#include "absl/status/status.h"

namespace vitrine {

// kInternal: what LibTorch threw, without its page of stack.
absl::Status TorchStatus(const std::exception& e);

}  // namespace vitrine
