#pragma once

// Sends prepared calls to a server and measures what comes back.
//
// Closed loop: N callers, each sends its next call when the last is answered.
// Open loop: calls start at a rate, whatever the server does, and latency
// counts from the instant at which a call was due, so that a stalled server
// (or generator) cannot hide the calls that it kept from starting.
//
// Requests are serialized once, before the run, and two threads at most do the
// work, so that a generator on the server's own machine costs it little.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/histogram.h"
#include "client/input.h"

namespace vitrine {

struct LoadOptions {
  ClientOptions client;
  int connections = 1;
  int callers = 8;                // closed loop
  double rate = 0;                // calls a second; above 0: open loop
  bool poisson = true;            // else evenly spaced
  int max_outstanding = 1 << 14;  // open loop: more wait, their clock runs
  uint64_t seed = 1;              // of the Poisson arrivals
  absl::Duration warmup = absl::Seconds(1);  // sent, not measured
  absl::Duration duration = absl::Seconds(10);
  int64_t max_calls = 0;  // above 0: so many measured calls, not `duration`
};

struct LoadReport {
  absl::Duration window = absl::ZeroDuration();  // measured time
  // Calls due in the window. Latencies are of those that were answered OK.
  int64_t ok = 0;
  std::map<absl::StatusCode, int64_t> errors;
  int64_t not_started = 0;  // open loop: due, but max_outstanding held them
  int64_t item_errors = 0;
  absl::Status first_error;
  Histogram latency;
  Histogram start_lag;  // open loop: from due to sent
  // OK calls and their items in the window; one across its edge counts by the
  // share of its time inside, so that long calls do not make it jump.
  double calls = 0;
  double items = 0;
  // Means over the OK calls, by the server's own clock.
  absl::Duration server_queue, server_tokenize, server_compute, server_total;
  double client_cores = 0;  // processor seconds of this process per second
  std::string model_name;
  std::string model_version;
};

struct LoadProgress {
  absl::Duration elapsed;  // in the window; negative during the warm-up
  int64_t ok;
  int64_t errors;
  double calls_per_second;
  absl::Duration p50;
  absl::Duration p99;
};

class LoadGenerator {
 public:
  virtual ~LoadGenerator() = default;

  // Blocking; once. `stop` is asked ten times a second: true ends the run at
  // once, calls in flight are cancelled and not counted. `progress` (may be
  // null) is told once a second. kUnavailable when no connection comes about.
  virtual absl::StatusOr<LoadReport> Run(
      const std::function<bool()>& stop,
      const std::function<void(const LoadProgress&)>& progress) = 0;
};

// Call number n sends requests[n % size]. kInvalidArgument names the option
// that is wrong.
absl::StatusOr<std::unique_ptr<LoadGenerator>> NewLoadGenerator(
    const std::vector<AnyRequest>& requests, const LoadOptions& options);

// Items, texts or histories that a request brings: what items/s counts.
int ItemsOf(const google::protobuf::Message& request);

}  // namespace vitrine
