#include "server/job_watchers.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "server/grpc_status.h"
#include "server/thread_priority.h"

namespace vitrine {
namespace {

// Often enough for a person who looks on.
constexpr absl::Duration kInterval = absl::Milliseconds(250);

}  // namespace

class JobWatchers::Watcher
    : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
      public std::enable_shared_from_this<JobWatchers::Watcher> {
 public:
  explicit Watcher(JobWatchers& watchers)
      : watchers_(watchers), arrival_(absl::Now()) {}

  // From now on job `id` is looked at.
  void Follow(int64_t id) {
    MutexLock lock(mu_);
    job_id_ = id;
  }
  // 0: none yet.
  int64_t job_id() {
    MutexLock lock(mu_);
    return job_id_;
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mu_);
      writing_ = false;
    }
    if (!ok) End(absl::CancelledError("the caller has gone"));
  }
  void OnCancel() override {
    End(absl::CancelledError("the caller cancelled"));
  }
  void OnDone() override {
    watchers_.rpc_.StreamDone();
    watchers_.Remove(shared_from_this());
  }

  void Show(const v1::TrainingJob& job) {
    // Held across the start of a write, so that none comes after Finish.
    MutexLock lock(mu_);
    if (writing_ || ended_ || job.revision() == shown_) return;
    shown_ = job.revision();
    v1::WatchTrainingJobResponse response;
    *response.mutable_job() = job;
    bool own = false;
    bytes_.Clear();  // gRPC serializes into an empty one only
    (void)grpc::SerializationTraits<google::protobuf::Message>::Serialize(
        response, &bytes_, &own);
    if (IsFinal(job.state())) {
      ended_ = true;
      Count(absl::StatusCode::kOk);
      StartWriteAndFinish(&bytes_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    }
    writing_ = true;
    StartWrite(&bytes_);
  }

  void End(const absl::Status& status) {
    {
      MutexLock lock(mu_);
      if (ended_) return;
      ended_ = true;
    }
    Count(status.code());
    Finish(ToGrpcStatus(status));
  }

 private:
  void Count(absl::StatusCode code) {
    watchers_.rpc_.StreamFinished(Method::kWatchTrainingJob, code,
                                  absl::Now() - arrival_);
  }

  JobWatchers& watchers_;
  const absl::Time arrival_;

  Mutex mu_;
  int64_t job_id_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t shown_ ABSL_GUARDED_BY(mu_) = -1;  // the revision
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ByteBuffer bytes_;  // being written
};

JobWatchers::JobWatchers(JobStore* jobs, Rpc& rpc) : jobs_(jobs), rpc_(rpc) {
  thread_ = std::thread([this] {
    SetThreadName("job-watchers");
    Work();
  });
}

JobWatchers::~JobWatchers() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* JobWatchers::Watch(
    const grpc::CallbackServerContext& context,
    const grpc::ByteBuffer& request) {
  auto watcher = std::make_shared<Watcher>(*this);
  {
    MutexLock lock(mu_);
    watchers_.push_back(watcher);
  }
  absl::Status status = rpc_.StreamArrived(Method::kWatchTrainingJob, context);
  if (status.ok() && jobs_ == nullptr) {
    status = absl::UnimplementedError("this server has no label store");
  }
  if (status.ok()) {
    v1::WatchTrainingJobRequest message;
    std::vector<BadString> bad_strings;
    status =
        ParseRequest(request, rpc_.max_message_bytes(), &message, &bad_strings);
    if (status.ok() && message.id() <= 0) {
      status = absl::InvalidArgumentError(
          absl::StrCat("id: ", message.id(), " is no job's number"));
    }
    watcher->Follow(message.id());
  }
  if (!status.ok()) {
    watcher->End(status);
  } else {
    wake_.NotifyAll();
  }
  return watcher.get();  // alive until gRPC is done with it
}

void JobWatchers::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
}

void JobWatchers::Remove(const std::shared_ptr<Watcher>& watcher) {
  MutexLock lock(mu_);
  watchers_.erase(std::remove(watchers_.begin(), watchers_.end(), watcher),
                  watchers_.end());
}

void JobWatchers::Work() {
  while (true) {
    std::vector<std::shared_ptr<Watcher>> watchers;
    bool stopping = false;
    {
      MutexLock lock(mu_);
      while (watchers_.empty() && !stopping_) wake_.Wait(mu_);
      watchers = watchers_;
      stopping = stopping_;
    }
    if (stopping) {
      for (const auto& watcher : watchers) {
        watcher->End(absl::UnavailableError("the server is stopping"));
      }
      return;
    }
    Look(watchers);
    watchers.clear();
    MutexLock lock(mu_);
    if (stopping_) continue;
    wake_.WaitUntil(mu_, std::chrono::steady_clock::now() +
                             absl::ToChronoMilliseconds(kInterval));
  }
}

void JobWatchers::Look(const std::vector<std::shared_ptr<Watcher>>& watchers) {
  std::map<int64_t, absl::StatusOr<v1::TrainingJob>> jobs;
  for (const auto& watcher : watchers) {
    const int64_t id = watcher->job_id();
    if (id == 0) continue;
    const auto [job, is_new] = jobs.try_emplace(id, absl::UnknownError(""));
    if (is_new) job->second = jobs_->Get(id);
    if (job->second.ok()) {
      watcher->Show(*job->second);
    } else if (!absl::IsUnavailable(job->second.status())) {
      // A locked database is looked at again in the next round.
      watcher->End(job->second.status());
    }
  }
}

}  // namespace vitrine
