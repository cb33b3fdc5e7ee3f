#pragma once

// GET /metrics over HTTP/1.1, for Prometheus.
//
// Not prometheus-cpp's own exposer: its web server gives each thread a stack
// of 100 KB, and glibc takes static thread-local storage out of that, of which
// LibTorch and what it brings have more.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/collectable.h"
#include "server/config.h"

namespace vitrine {

// One thread, one request at a time, each on a connection of its own: for a
// few scrapers, which are cut off when they dawdle. Owns its thread.
class MetricsHttp {
 public:
  // kFailedPrecondition says why the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsHttp>> Start(
      const HostPort& address,
      std::vector<std::shared_ptr<prometheus::Collectable>> collectables);
  virtual ~MetricsHttp() = default;  // stops and joins

  virtual int port() const = 0;
};

}  // namespace vitrine
