#pragma once

// A channel with the deadline of its calls; what clients of one service each
// are made of.

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "client/channel.h"
#include "client/client.h"

namespace vitrine {

class Connection {
 public:
  // `token`: sent as a bearer token with each call, unless empty.
  Connection(const ClientOptions& options,
             std::shared_ptr<grpc::Channel> channel, std::string token = "");

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Sets deadline and token. kInvalidArgument: no finite, positive deadline.
  absl::Status Prepare(const CallOptions& options,
                       grpc::ClientContext* context) const;

  // The status as callers see it: no connection is told from a slow answer.
  absl::Status Explain(const grpc::Status& status,
                       const CallOptions& options) const;

  // `method` is a stub's blocking call.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      Stub& stub,
      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                   Response*),
      const Request& request, const CallOptions& options) const {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(options, &context));
    Response response;
    RETURN_IF_ERROR(
        Explain((stub.*method)(&context, request, &response), options));
    return response;
  }

 private:
  absl::Duration LimitOf(const CallOptions& options) const;

  const std::string target_;
  const absl::Duration timeout_;
  const std::string token_;
  const std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace vitrine
