#pragma once

// What Prometheus clients say of their process, read from /proc at each
// scrape under the usual names: memory, CPU seconds, descriptors, start time.

#include <memory>

#include "prometheus/collectable.h"

namespace vitrine {

std::shared_ptr<prometheus::Collectable> NewProcessMetrics();

}  // namespace vitrine
