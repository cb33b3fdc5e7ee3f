#pragma once

// The server's half of learning: the label store and its writer, the admin's
// listener, activation by policy. What the configuration leaves out is not
// there.

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/thread_pool.h"
#include "grpcpp/server.h"
#include "server/admin_service.h"
#include "server/job_watchers.h"
#include "server/label_writer.h"
#include "server/metrics.h"
#include "server/model_manager.h"
#include "server/rpc.h"
#include "store/database.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "store/model_registry.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

// The database and what reads and writes it. Before the model manager, which
// asks it for versions to activate.
class LearningStore {
 public:
  // `metrics` outlives it.
  LearningStore(std::unique_ptr<Database> database, int64_t max_waiting,
                Metrics& metrics);

  LabelStore& labels() { return labels_; }
  JobStore& jobs() { return jobs_; }
  LabelWriter& writer() { return writer_; }

  // For ModelManagerOptions. A database that cannot be asked gives no version,
  // and is asked again at the next poll.
  int64_t NextVersion(const std::string& model);
  void OnNextVersion(const std::string& model, int64_t version,
                     const absl::Status& status);

 private:
  const std::unique_ptr<Database> database_;
  LabelStore labels_;
  JobStore jobs_;
  LabelWriter writer_;
  const std::string actor_;    // "server host:pid"
  bool error_logged_ = false;  // of the manager's thread
};

// AdminService on its listener.
class AdminListener {
 public:
  // `store` may be null. All outlive it.
  static absl::StatusOr<std::unique_ptr<AdminListener>> Start(
      const internal::AdminConfig& config, const ModelRegistry& registry,
      ModelManager& models, LearningStore* store, Metrics& metrics);
  ~AdminListener();

  int port() const { return port_; }
  // Health of the listener, for probes.
  void SetServing(bool serving);
  // Ends streams and takes no more calls; those under way may take until
  // `until`, then they are cancelled. Blocking.
  void Stop(absl::Time until);

 private:
  AdminListener(const std::string& token, const ModelRegistry& registry,
                ModelManager& models, LearningStore* store, Metrics& metrics);

  ModelManager& models_;
  ThreadPool pool_;
  Rpc rpc_;
  JobWatchers watchers_;
  const std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace vitrine
