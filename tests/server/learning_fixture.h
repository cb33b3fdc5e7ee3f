#pragma once

// The whole server with a label store and an admin's listener.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "store/database.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "tests/server/server_fixture.h"
#include "vitrine/v1/admin.grpc.pb.h"
#include "vitrine/v1/feedback.grpc.pb.h"

namespace vitrine {

// Waits for what another thread or process is about to do; false when that
// takes far too long.
template <typename Condition>
bool Eventually(const Condition& condition) {
  for (int i = 0; i < 6000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

// The RetryInfo of an error; zero where it has none.
inline double RetrySeconds(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::RetryInfo info;
  if (!details.ParseFromString(status.error_details()) ||
      details.details_size() != 1 || !details.details(0).UnpackTo(&info)) {
    return 0;
  }
  return static_cast<double>(info.retry_delay().seconds()) +
         info.retry_delay().nanos() * 1e-9;
}

inline v1::Feedback Judgement(const std::string& id, float grade = 1) {
  v1::Feedback feedback;
  feedback.set_feedback_id(id);
  feedback.mutable_relevance()->set_query("red sofa");
  *feedback.mutable_relevance()->mutable_item() = Item("s1", "Sofa, red");
  feedback.mutable_relevance()->set_grade(grade);
  return feedback;
}

class LearningTest : public ServerTest {
 protected:
  static constexpr char kToken[] = "0123456789abcdef";

  // `store` and `admin` are more of those fields.
  void StartLearning(absl::string_view config = "",
                     absl::string_view store = "") {
    ASSERT_TRUE(WriteFile(folder_.File("token"), kToken).ok());
    Start(absl::StrCat("store { url: '", url(), "' ", store,
                       " } admin { listen: '127.0.0.1:0' token_file: '",
                       folder_.File("token"), "' } ", config));
    ASSERT_NE(server_, nullptr);
    feedback_ = v1::FeedbackService::NewStub(channel_);
    admin_channel_ =
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->admin_port()),
                            grpc::InsecureChannelCredentials());
    admin_ = v1::AdminService::NewStub(admin_channel_);
  }

  std::string url() const { return "sqlite:" + folder_.File("store.db"); }

  // The database as another process sees it.
  std::unique_ptr<Database> OpenStore() {
    auto database = Database::Open({.url = url()});
    EXPECT_TRUE(database.ok()) << database.status();
    return database.ok() ? *std::move(database) : nullptr;
  }

  // What is on disk.
  std::vector<v1::Feedback> Stored() {
    const std::unique_ptr<Database> database = OpenStore();
    std::vector<v1::Feedback> out;
    if (database == nullptr) return out;
    EXPECT_TRUE(LabelStore(*database)
                    .Read("shop", 0, INT64_MAX,
                          [&out](const StoredLabel& label) {
                            out.push_back(label.feedback);
                            return absl::OkStatus();
                          })
                    .ok());
    return out;
  }
  std::vector<std::string> StoredIds() {
    std::vector<std::string> out;
    for (const v1::Feedback& feedback : Stored()) {
      out.push_back(feedback.feedback_id());
    }
    return out;
  }

  grpc::Status Record(const std::vector<v1::Feedback>& entries,
                      v1::RecordFeedbackResponse* response,
                      const std::string& model = "") {
    v1::RecordFeedbackRequest request;
    request.set_model(model);
    for (const v1::Feedback& entry : entries) *request.add_feedback() = entry;
    grpc::ClientContext context;
    response->Clear();
    return feedback_->RecordFeedback(&context, request, response);
  }

  // A call of the admin's: Admin(&Stub::GetTrainingJob, request, &response).
  template <typename Request, typename Response>
  grpc::Status Admin(grpc::Status (v1::AdminService::Stub::*method)(
                         grpc::ClientContext*, const Request&, Response*),
                     const Request& request, Response* response) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", absl::StrCat("Bearer ", kToken));
    response->Clear();
    return (*admin_.*method)(&context, request, response);
  }

  TempFolder folder_;
  std::unique_ptr<v1::FeedbackService::Stub> feedback_;
  std::shared_ptr<grpc::Channel> admin_channel_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace vitrine
