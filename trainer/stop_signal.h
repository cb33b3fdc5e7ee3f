#pragma once

#include <atomic>

namespace vitrine {

// Set by the first SIGINT or SIGTERM from now on; a second one ends the process
// at once.
const std::atomic<bool>& StopOnSignal();

}  // namespace vitrine
