#pragma once

// Callers that follow a training job, WatchTrainingJob's other half. One thread
// looks at the jobs of all of them, so that a watcher costs no thread and the
// database is asked once for each job and round.
//
// Owned by the server; thread-safe.

#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "server/rpc.h"
#include "store/job_store.h"

namespace vitrine {

class JobWatchers {
 public:
  // All outlive it. `jobs` is null where there is no store.
  JobWatchers(JobStore* jobs, Rpc& rpc);
  // Ends what is still open and joins.
  ~JobWatchers();
  JobWatchers(const JobWatchers&) = delete;
  JobWatchers& operator=(const JobWatchers&) = delete;

  // On a gRPC thread.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(
      const grpc::CallbackServerContext& context,
      const grpc::ByteBuffer& request);

  // Ends all with kUnavailable, soon. After Rpc::Stop.
  void Stop();

 private:
  class Watcher;

  void Work();
  void Look(const std::vector<std::shared_ptr<Watcher>>& watchers);
  void Remove(const std::shared_ptr<Watcher>& watcher);

  JobStore* const jobs_;
  Rpc& rpc_;

  Mutex mu_;
  CondVar wake_;
  std::vector<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;  // last: it uses the rest
};

}  // namespace vitrine
