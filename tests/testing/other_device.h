#pragma once

// A device that is not the CPU: a GPU where LibTorch sees one, else one made up
// for tests. That computes what a CPU does, but refuses what a GPU refuses: its
// memory can be touched by LibTorch's operators alone (others crash), and the
// CPU's tensors do not mix with its own (operators throw). It has no random
// numbers and no autocast.

#include "trainer/pass_device.h"

namespace vitrine::testing {

PassDevice OtherDevice();

}  // namespace vitrine::testing
