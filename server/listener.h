#pragma once

// One gRPC listener: address, credentials, the settings that all have.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

struct ListenerOptions {
  std::string name;     // of the field in the configuration, for errors
  std::string address;  // host:port
  const internal::TlsConfig* tls = nullptr;  // null: plain text
  int max_message_bytes = 0;
  std::vector<grpc::Service*> services;  // outlive the listener
};

struct Listener {
  std::unique_ptr<grpc::Server> server;
  int port = 0;  // that was bound
};

// Health checks and reflection come with it. kFailedPrecondition names an
// address that cannot be bound.
absl::StatusOr<Listener> Listen(const ListenerOptions& options);

}  // namespace vitrine
