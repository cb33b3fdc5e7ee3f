#include "client/client.h"

#include <grpcpp/client_context.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "client/channel.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {

struct Client::Impl {
  Impl(const ClientOptions& options, std::shared_ptr<grpc::Channel> channel)
      : target(options.target),
        timeout(options.timeout),
        channel(channel),
        inference(channel),
        health(channel) {}

  // `method` is a stub's blocking call.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      Stub& stub,
      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                   Response*),
      const Request& request, const CallOptions& options) {
    const absl::Duration limit =
        options.timeout == absl::ZeroDuration() ? timeout : options.timeout;
    if (limit <= absl::ZeroDuration() || limit == absl::InfiniteDuration()) {
      return absl::InvalidArgumentError(
          absl::StrCat("timeout: ", absl::FormatDuration(limit),
                       " is not finite and positive"));
    }
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + limit));
    Response response;
    const absl::Status status =
        ToAbslStatus((stub.*method)(&context, request, &response));
    if (status.ok()) return response;
    // The deadline can end the wait while the channel tries to connect, or
    // between two tries. That is no slow server but none.
    const grpc_connectivity_state state = channel->GetState(false);
    if (absl::IsDeadlineExceeded(status) &&
        (state == GRPC_CHANNEL_TRANSIENT_FAILURE ||
         state == GRPC_CHANNEL_CONNECTING)) {
      return absl::UnavailableError(absl::StrCat(
          target, ": no connection within ", absl::FormatDuration(limit)));
    }
    return status;
  }

  const std::string target;
  const absl::Duration timeout;
  const std::shared_ptr<grpc::Channel> channel;
  v1::InferenceService::Stub inference;
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
