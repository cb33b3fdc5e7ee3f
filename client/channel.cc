#include "client/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace vitrine {
namespace {

constexpr int kMaxPemBytes = 1 << 20;
// gRPC keeps a request for another try only while it fits this; its own
// default, 256 KiB, is less than a large Rank.
constexpr int kRetryBufferBytes = 16 << 20;
constexpr int kMaxAttempts = 5;  // gRPC silently takes no more

absl::Status CheckOptions(const ClientOptions& options) {
  const RetryPolicy& retry = options.retry;
  if (options.target.empty()) {
    return absl::InvalidArgumentError("target: empty");
  }
  if (options.timeout <= absl::ZeroDuration() ||
      options.timeout == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("timeout: ", absl::FormatDuration(options.timeout),
                     " is not finite and positive"));
  }
  if (retry.max_attempts < 1 || retry.max_attempts > kMaxAttempts) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.max_attempts: ", retry.max_attempts,
                     " is not between 1 and ", kMaxAttempts));
  }
  if (retry.initial_backoff < absl::Milliseconds(1) ||
      retry.max_backoff < retry.initial_backoff ||
      retry.max_backoff == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "retry: back-offs from ", absl::FormatDuration(retry.initial_backoff),
        " to ", absl::FormatDuration(retry.max_backoff),
        " are not at least 1ms, rising and finite"));
  }
  if (!(retry.multiplier >= 1 && retry.multiplier <= 100)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "retry.multiplier: ", retry.multiplier, " is not between 1 and 100"));
  }
  if (options.max_response_bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_response_bytes: ", options.max_response_bytes,
                     " is not positive"));
  }
  if (options.certificate_file.empty() != options.key_file.empty()) {
    return absl::InvalidArgumentError(
        "certificate_file and key_file: one without the other");
  }
  if (!options.tls &&
      !(options.ca_file.empty() && options.certificate_file.empty())) {
    return absl::InvalidArgumentError(
        "ca_file or certificate_file given without tls");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> NewCredentials(
    const ClientOptions& options) {
  if (!options.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  const std::pair<const std::string*, std::string*> files[] = {
      {&options.ca_file, &ssl.pem_root_certs},
      {&options.certificate_file, &ssl.pem_cert_chain},
      {&options.key_file, &ssl.pem_private_key}};
  for (const auto& [path, pem] : files) {
    if (path->empty()) continue;
    ASSIGN_OR_RETURN(*pem, ReadFile(*path, kMaxPemBytes));
  }
  return grpc::SslCredentials(ssl);
}

// "0.1s", as the JSON form of google.protobuf.Duration wants it.
std::string JsonDuration(absl::Duration duration) {
  return absl::StrFormat("%.9gs", absl::ToDoubleSeconds(duration));
}

}  // namespace

std::string RetryServiceConfig(const RetryPolicy& policy) {
  // retryThrottling: while more than one call in ten or so fails, no second
  // tries, so that clients do not keep a struggling server down.
  return absl::StrCat(
      R"({"methodConfig":[{"name":[{"service":")", kInferenceService,
      R"("},{"service":")", kFeedbackService,
      R"("}],"retryPolicy":{"maxAttempts":)", policy.max_attempts,
      R"(,"initialBackoff":")", JsonDuration(policy.initial_backoff),
      R"(","maxBackoff":")", JsonDuration(policy.max_backoff),
      R"(","backoffMultiplier":)", policy.multiplier,
      R"(,"retryableStatusCodes":["UNAVAILABLE","RESOURCE_EXHAUSTED"]}}],)",
      R"("retryThrottling":{"maxTokens":100,"tokenRatio":0.1}})");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(
    const ClientOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::ChannelCredentials> credentials,
                   NewCredentials(options));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(options.max_response_bytes);
  arguments.SetMaxSendMessageSize(-1);  // the server knows its limit
  if (options.retry.max_attempts > 1) {
    arguments.SetServiceConfigJSON(RetryServiceConfig(options.retry));
    arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kRetryBufferBytes);
  } else {
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  }
  if (options.compress) {
    arguments.SetCompressionAlgorithm(GRPC_COMPRESS_GZIP);
  }
  if (!options.server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.server_name);
  }
  arguments.SetUserAgentPrefix("vitrine-client");
  return grpc::CreateCustomChannel(options.target, credentials, arguments);
}

absl::Status ToAbslStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()),
                   status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      out.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return out;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const absl::optional<absl::Cord> payload =
      status.GetPayload("type.googleapis.com/google.rpc.RetryInfo");
  google::rpc::RetryInfo info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload)) ||
      !info.has_retry_delay()) {
    return std::nullopt;
  }
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

}  // namespace vitrine
