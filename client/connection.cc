#include "client/connection.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace vitrine {

Connection::Connection(const ClientOptions& options,
                       std::shared_ptr<grpc::Channel> channel,
                       std::string token)
    : target_(options.target),
      timeout_(options.timeout),
      token_(std::move(token)),
      channel_(std::move(channel)) {}

absl::Duration Connection::LimitOf(const CallOptions& options) const {
  return options.timeout == absl::ZeroDuration() ? timeout_ : options.timeout;
}

absl::Status Connection::Prepare(const CallOptions& options,
                                 grpc::ClientContext* context) const {
  const absl::Duration limit = LimitOf(options);
  if (limit <= absl::ZeroDuration() || limit == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("timeout: ", absl::FormatDuration(limit),
                     " is not finite and positive"));
  }
  context->set_deadline(absl::ToChronoTime(absl::Now() + limit));
  if (!token_.empty()) {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", token_));
  }
  return absl::OkStatus();
}

absl::Status Connection::Explain(const grpc::Status& answered,
                                 const CallOptions& options) const {
  const absl::Status status = ToAbslStatus(answered);
  // The deadline can end the wait while the channel tries to connect, or
  // between two tries. That is no slow server but none.
  const grpc_connectivity_state state = channel_->GetState(false);
  if (absl::IsDeadlineExceeded(status) &&
      (state == GRPC_CHANNEL_TRANSIENT_FAILURE ||
       state == GRPC_CHANNEL_CONNECTING)) {
    return absl::UnavailableError(
        absl::StrCat(target_, ": no connection within ",
                     absl::FormatDuration(LimitOf(options))));
  }
  return status;
}

}  // namespace vitrine
