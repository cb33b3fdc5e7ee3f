// OtherDevice where none is made up, see CMakeLists.txt.

#include <ATen/Context.h>

#include "tests/testing/other_device.h"

namespace vitrine::testing {

PassDevice OtherDevice() {
  return {at::hasCUDA() ? PassDevice::Kind::kCuda : PassDevice::Kind::kCpu};
}

}  // namespace vitrine::testing
