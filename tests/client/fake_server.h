#pragma once

// An InferenceService in this process, on a free port, that does what a test
// says. Scores are falling with an item's place; what it was sent is kept.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {

// RESOURCE_EXHAUSTED with RetryInfo, as a full Vitrine server sends it.
inline grpc::Status FullStatus(int64_t retry_seconds) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(retry_seconds);
  google::rpc::Status details;
  details.set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
  details.set_message("the queue is full");
  details.add_details()->PackFrom(info);
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full",
                      details.SerializeAsString());
}

class FakeServer : public v1::InferenceService::Service {
 public:
  // What Rank answers call number `n` (from 0) with, before anything else.
  using Hook = std::function<grpc::Status(int n, grpc::ServerContext*)>;

  FakeServer() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    server_->GetHealthCheckService()->SetServingStatus(
        "vitrine.v1.InferenceService", true);
  }
  ~FakeServer() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  std::string target() const { return "127.0.0.1:" + std::to_string(port_); }
  grpc::Server& server() { return *server_; }

  void set_hook(Hook hook) {
    MutexLock lock(mu_);
    hook_ = std::move(hook);
  }

  std::vector<v1::RankRequest> ranked() const {
    MutexLock lock(mu_);
    return ranked_;
  }
  // The deadlines that callers gave Rank, as time left at arrival.
  std::vector<absl::Duration> time_left() const {
    MutexLock lock(mu_);
    return time_left_;
  }

  grpc::Status Rank(grpc::ServerContext* context,
                    const v1::RankRequest* request,
                    v1::RankResponse* response) override {
    Hook hook;
    int n;
    {
      MutexLock lock(mu_);
      hook = hook_;
      n = static_cast<int>(ranked_.size());
      ranked_.push_back(*request);
      time_left_.push_back(absl::FromChrono(context->deadline()) -
                           absl::FromChrono(std::chrono::system_clock::now()));
    }
    if (hook) {
      grpc::Status status = hook(n, context);
      if (!status.ok()) return status;
    }
    response->mutable_model()->set_name("fake");
    response->mutable_model()->set_version("7");
    response->mutable_timings()->mutable_compute()->set_nanos(2000000);
    for (int i = 0; i < request->items_size(); ++i) {
      v1::ScoredItem* const item = response->add_items();
      item->set_item_id(request->items(i).id());
      item->set_index(i);
      if (request->items(i).title() == "bad") {
        item->mutable_error()->set_code(3);
        item->mutable_error()->set_message("title: bad");
      } else {
        item->set_score(1.0f / static_cast<float>(i + 1));
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status Classify(grpc::ServerContext*, const v1::ClassifyRequest*,
                        v1::ClassifyResponse*) override {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no head \"mood\"");
  }

  grpc::Status Embed(grpc::ServerContext*, const v1::EmbedRequest* request,
                     v1::EmbedResponse* response) override {
    for (int i = 0; i < request->texts_size(); ++i) {
      response->add_embeddings()->add_values(1);
    }
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  mutable Mutex mu_;
  Hook hook_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::RankRequest> ranked_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Duration> time_left_ ABSL_GUARDED_BY(mu_);
};

}  // namespace vitrine
