#pragma once

// What benches of a running server share: a vitrine-server in a process of its
// own, with a model of random weights, and closed-loop callers of Rank.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/load_generator.h"

namespace vitrine {

struct BenchModel {
  std::string name = "bench";
  int layers = 4;
  int hidden = 256;
};

// Versions of `model` in the folder `registry`, each with its own weights.
absl::Status MakeRegistry(const std::string& registry, const BenchModel& model,
                          const std::vector<int64_t>& versions);

// The vitrine-server beside this program; stops with the object.
class BenchServer {
 public:
  BenchServer() = default;
  ~BenchServer();
  BenchServer(const BenchServer&) = delete;
  BenchServer& operator=(const BenchServer&) = delete;

  // Waits until it serves `model` of `registry`. Its files go to `folder`, its
  // log to the file `log`; `config` (text) is added to its configuration.
  absl::Status Start(const std::string& registry, const std::string& model,
                     const std::string& folder, const std::string& log,
                     const std::string& config = "");

  const std::string& target() const { return target_; }
  const std::string& admin() const { return admin_; }
  static const char* token();
  double ResidentMiB() const;

 private:
  pid_t pid_ = 0;
  std::string target_, admin_;
};

struct BenchLoad {
  int callers = 8;
  int items = 20;  // in a call of Rank
};

// Until `stop` says so, or for `duration`.
absl::StatusOr<LoadReport> RunLoad(
    const std::string& target, const BenchLoad& load, absl::Duration duration,
    const std::function<bool()>& stop = [] { return false; });

// Calls and items that came to nothing.
int64_t Failed(const LoadReport& report);

}  // namespace vitrine
