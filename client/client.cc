#include "client/client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <utility>

#include "base/status_macros.h"
#include "client/channel.h"
#include "client/connection.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "vitrine/v1/feedback.grpc.pb.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {

struct Client::Impl {
  Impl(const ClientOptions& options, std::shared_ptr<grpc::Channel> channel)
      : connection(options, channel),
        inference(channel),
        feedback(channel),
        health(channel) {}

  template <typename... Args>
  auto Call(Args&&... args) {
    return connection.Call(std::forward<Args>(args)...);
  }

  const Connection connection;
  v1::InferenceService::Stub inference;
  v1::FeedbackService::Stub feedback;
  grpc::health::v1::Health::Stub health;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Create(
    const ClientOptions& options) {
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, NewChannel(options));
  return std::unique_ptr<Client>(
      new Client(std::make_unique<Impl>(options, std::move(channel))));
}

absl::StatusOr<v1::ScoreResponse> Client::Score(
    const v1::ScoreRequest& request, const CallOptions& options) const {
  return impl_->Call(impl_->inference, &v1::InferenceService::Stub::Score,
                     request, options);
}

absl::StatusOr<v1::RankResponse> Client::Rank(
    const v1::RankRequest& request, const CallOptions& options) const {
  return impl_->Call(impl_->inference, &v1::InferenceService::Stub::Rank,
                     request, options);
}

absl::StatusOr<v1::PredictInterestsResponse> Client::PredictInterests(
    const v1::PredictInterestsRequest& request,
    const CallOptions& options) const {
  return impl_->Call(impl_->inference,
                     &v1::InferenceService::Stub::PredictInterests, request,
                     options);
}

absl::StatusOr<v1::EmbedResponse> Client::Embed(
    const v1::EmbedRequest& request, const CallOptions& options) const {
  return impl_->Call(impl_->inference, &v1::InferenceService::Stub::Embed,
                     request, options);
}

absl::StatusOr<v1::ClassifyResponse> Client::Classify(
    const v1::ClassifyRequest& request, const CallOptions& options) const {
  return impl_->Call(impl_->inference, &v1::InferenceService::Stub::Classify,
                     request, options);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels(
    const v1::ListModelsRequest& request, const CallOptions& options) const {
  return impl_->Call(impl_->inference, &v1::InferenceService::Stub::ListModels,
                     request, options);
}

absl::StatusOr<v1::RecordFeedbackResponse> Client::RecordFeedback(
    const v1::RecordFeedbackRequest& request,
    const CallOptions& options) const {
  return impl_->Call(impl_->feedback,
                     &v1::FeedbackService::Stub::RecordFeedback, request,
                     options);
}

absl::StatusOr<v1::ImportFeedbackResponse> Client::ImportFeedback(
    const std::function<absl::StatusOr<bool>(v1::ImportFeedbackRequest*)>& next,
    const CallOptions& options) const {
  grpc::ClientContext context;
  RETURN_IF_ERROR(impl_->connection.Prepare(options, &context));
  v1::ImportFeedbackResponse response;
  const auto writer = impl_->feedback.ImportFeedback(&context, &response);
  v1::ImportFeedbackRequest request;
  while (true) {
    request.Clear();
    const absl::StatusOr<bool> more = next(&request);
    if (!more.ok()) {
      // What was sent so far stays; the server hears of the end.
      writer->WritesDone();
      (void)writer->Finish();
      return more.status();
    }
    // A write that fails: the server has ended the call, and says why.
    if (!*more || !writer->Write(request)) break;
  }
  writer->WritesDone();
  RETURN_IF_ERROR(impl_->connection.Explain(writer->Finish(), options));
  return response;
}

absl::StatusOr<Health> Client::CheckHealth(const std::string& service,
                                           const CallOptions& options) const {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  ASSIGN_OR_RETURN(
      const grpc::health::v1::HealthCheckResponse response,
      impl_->Call(impl_->health, &grpc::health::v1::Health::Stub::Check,
                  request, options));
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING
             ? Health::kServing
             : Health::kNotServing;
}

}  // namespace vitrine
