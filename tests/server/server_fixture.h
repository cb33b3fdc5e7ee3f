#pragma once

// The whole server in this process, over a fake engine and a real connection.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "grpcpp/generic/generic_stub.h"
#include "server/config.h"
#include "server/server.h"
#include "tests/testing/fake_model.h"
#include "tests/testing/temp_folder.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {

inline v1::Item Item(const std::string& id, const std::string& title) {
  v1::Item item;
  item.set_id(id);
  item.set_title(title);
  return item;
}

inline v1::Interaction Event(
    const std::string& title,
    v1::InteractionType type = v1::INTERACTION_TYPE_VIEW) {
  v1::Interaction event;
  *event.mutable_item() = Item("", title);
  event.set_type(type);
  return event;
}

inline v1::RankRequest RankOf(const std::string& query,
                              const std::vector<std::string>& titles) {
  v1::RankRequest request;
  request.mutable_context()->set_query(query);
  for (size_t i = 0; i < titles.size(); ++i) {
    *request.add_items() = Item(absl::StrCat("id", i), titles[i]);
  }
  return request;
}

inline std::vector<std::string> ManyTitles(int count) {
  const std::vector<std::string> words = {"red",  "sofa", "lamp", "oak",
                                          "desk", "rug",  "blue", "chair"};
  std::vector<std::string> titles;
  for (int i = 0; i < count; ++i) {
    titles.push_back(absl::StrCat(words[i % 8], " ", words[i / 8 % 8], " ", i));
  }
  return titles;
}

class ServerTest : public ::testing::Test {
 protected:
  // `config` in text; ports, registry and polling are set here.
  void Start(absl::string_view config = "", FakeModelOptions model = {}) {
    ASSERT_TRUE(MakeFolders(registry_.File("shop/1")).ok());
    const std::string manifest = registry_.File("shop/1/manifest.textproto");
    if (!PathExists(manifest)) {
      ASSERT_TRUE(WriteFile(manifest, "").ok());
    }
    ServerOptions options;
    const absl::Status parsed =
        ParseTextProto(config, "config", &options.config);
    ASSERT_TRUE(parsed.ok()) << parsed;
    options.config.set_registry(registry_.path());
    options.config.set_listen("127.0.0.1:0");
    options.config.set_metrics_listen("127.0.0.1:0");
    options.config.mutable_poll_interval()->set_seconds(-1);
    const absl::Status resolved = ResolveServerConfig(&options.config);
    ASSERT_TRUE(resolved.ok()) << resolved;
    options.load = [this, model](const std::string& folder,
                                 const ServableOptions&)
        -> absl::StatusOr<std::shared_ptr<const ServableModel>> {
      FakeModelOptions made = model;
      made.version = std::stoll(folder.substr(folder.rfind('/') + 1));
      if (on_load_ != nullptr) RETURN_IF_ERROR(on_load_(made.version));
      const FakeModel fake = NewFakeModel(made);
      engine_ = fake.engine;
      return fake.model;
    };
    auto server = Server::Start(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::InferenceService::NewStub(channel_);
  }

  void TearDown() override {
    if (server_ != nullptr) {
      if (engine_ != nullptr) engine_->Release();
      server_->Stop();
    }
  }

  grpc::Status Rank(const v1::RankRequest& request, v1::RankResponse* out) {
    grpc::ClientContext context;
    return stub_->Rank(&context, request, out);
  }
  grpc::Status Score(const v1::ScoreRequest& request, v1::ScoreResponse* out) {
    grpc::ClientContext context;
    return stub_->Score(&context, request, out);
  }

  // What a request is refused with.
  grpc::Status Refusal(const v1::RankRequest& request) {
    v1::RankResponse response;
    return Rank(request, &response);
  }

  // Any bytes to any method.
  static grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                              const std::string& service,
                              const std::string& method,
                              const std::string& bytes,
                              grpc::ClientContext* context,
                              grpc::ByteBuffer* response) {
    grpc::GenericStub stub(channel);
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::Status status;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(
        context, absl::StrCat("/", service, "/", method), request, &queue);
    call->StartCall();
    call->Finish(response, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    return status;
  }

  // Any bytes to a method, and its answer.
  grpc::Status Raw(const std::string& method, const std::string& bytes,
                   google::protobuf::Message* out,
                   const std::string& service = "vitrine.v1.InferenceService") {
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    const grpc::Status status =
        CallRaw(channel_, service, method, bytes, &context, &response);
    if (status.ok()) {
      std::vector<grpc::Slice> slices;
      (void)response.Dump(&slices);
      std::string text;
      for (const grpc::Slice& s : slices) {
        text.append(reinterpret_cast<const char*>(s.begin()), s.size());
      }
      EXPECT_TRUE(out->ParseFromString(text));
    }
    return status;
  }

  double Counter(Method method, absl::StatusCode code) {
    for (const auto& family : server_->metrics().registry()->Collect()) {
      if (family.name != "vitrine_requests_total") continue;
      for (const auto& metric : family.metric) {
        std::map<std::string, std::string> labels;
        for (const auto& label : metric.label) labels[label.name] = label.value;
        if (labels["method"] == MethodName(method) &&
            labels["code"] == absl::StatusCodeToString(code)) {
          return metric.counter.value;
        }
      }
    }
    return -1;
  }

  TempFolder registry_;
  // Called before a version is loaded; an error is the load's.
  std::function<absl::Status(int64_t version)> on_load_;
  FakeEngine* engine_ = nullptr;  // of the version that was loaded last
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

}  // namespace vitrine
