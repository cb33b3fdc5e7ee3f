#pragma once

// A FeedbackService and an AdminService in this process, on a free port, that
// keep what they were sent.

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "vitrine/v1/admin.grpc.pb.h"
#include "vitrine/v1/feedback.grpc.pb.h"

namespace vitrine {

class FakeLearningServer : public v1::FeedbackService::Service,
                           public v1::AdminService::Service {
 public:
  FakeLearningServer() {
    // Keeps gRPC for the life of the process: to shut it down between tests can
    // take seconds, until a thread of its own looks up.
    grpc_init();
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(static_cast<v1::FeedbackService::Service*>(this));
    builder.RegisterService(static_cast<v1::AdminService::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~FakeLearningServer() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  std::string target() const { return "127.0.0.1:" + std::to_string(port_); }

  // What imports are ended with after so many batches.
  void EndImportsAfter(size_t batches, grpc::Status status) {
    MutexLock lock(mu_);
    most_batches_ = batches;
    import_status_ = std::move(status);
  }
  // What StartTraining is answered with.
  void set_start_status(grpc::Status status) {
    MutexLock lock(mu_);
    start_status_ = std::move(status);
  }

  // The numbers of entries of each batch that came.
  std::vector<int> batches() const {
    MutexLock lock(mu_);
    return batches_;
  }
  // The metadata "authorization" of each call of AdminService.
  std::vector<std::string> tokens() const {
    MutexLock lock(mu_);
    return tokens_;
  }
  // Whether the last watcher left before the end.
  bool watch_cancelled() const {
    MutexLock lock(mu_);
    return watch_cancelled_;
  }

  grpc::Status RecordFeedback(grpc::ServerContext*,
                              const v1::RecordFeedbackRequest* request,
                              v1::RecordFeedbackResponse* response) override {
    response->set_stored(request->feedback_size());
    return grpc::Status::OK;
  }

  grpc::Status ImportFeedback(
      grpc::ServerContext*,
      grpc::ServerReader<v1::ImportFeedbackRequest>* reader,
      v1::ImportFeedbackResponse* response) override {
    v1::ImportFeedbackRequest request;
    while (reader->Read(&request)) {
      MutexLock lock(mu_);
      batches_.push_back(request.feedback_size());
      response->set_stored(response->stored() + request.feedback_size());
      if (batches_.size() >= most_batches_) return import_status_;
    }
    return grpc::Status::OK;
  }

  grpc::Status StartTraining(grpc::ServerContext* context,
                             const v1::StartTrainingRequest* request,
                             v1::StartTrainingResponse* response) override {
    KeepToken(*context);
    response->mutable_job()->set_id(7);
    response->mutable_job()->set_idempotency_key(request->idempotency_key());
    MutexLock lock(mu_);
    return start_status_;
  }

  // Job 1 runs and succeeds; job 2 runs until nobody looks on.
  grpc::Status WatchTrainingJob(
      grpc::ServerContext* context, const v1::WatchTrainingJobRequest* request,
      grpc::ServerWriter<v1::WatchTrainingJobResponse>* writer) override {
    KeepToken(*context);
    if (request->id() > 2) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such job");
    }
    v1::WatchTrainingJobResponse response;
    response.mutable_job()->set_state(v1::TRAINING_JOB_STATE_RUNNING);
    writer->Write(response);
    if (request->id() == 1) {
      response.mutable_job()->set_state(v1::TRAINING_JOB_STATE_SUCCEEDED);
      writer->Write(response);
      return grpc::Status::OK;
    }
    while (writer->Write(response)) {
    }
    MutexLock lock(mu_);
    watch_cancelled_ = true;
    return grpc::Status::CANCELLED;
  }

 private:
  void KeepToken(const grpc::ServerContext& context) {
    const auto it = context.client_metadata().find("authorization");
    MutexLock lock(mu_);
    tokens_.push_back(it == context.client_metadata().end()
                          ? ""
                          : std::string(it->second.data(), it->second.size()));
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  mutable Mutex mu_;
  size_t most_batches_ ABSL_GUARDED_BY(mu_) = SIZE_MAX;
  grpc::Status import_status_ ABSL_GUARDED_BY(mu_);
  grpc::Status start_status_ ABSL_GUARDED_BY(mu_);
  std::vector<int> batches_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> tokens_ ABSL_GUARDED_BY(mu_);
  bool watch_cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace vitrine
