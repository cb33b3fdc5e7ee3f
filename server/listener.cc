#include "server/listener.h"

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace vitrine {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;
// Clients may ping this often to keep idle connections open.
constexpr int kMinPingIntervalMs = 10000;
// How often clients are pinged, and how long they may take to answer.
constexpr int kKeepaliveMs = 60000;
constexpr int kKeepaliveTimeoutMs = 20000;

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(
    const internal::TlsConfig* tls) {
  if (tls == nullptr) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options;
  if (!tls->client_ca_file().empty()) {
    ASSIGN_OR_RETURN(options.pem_root_certs,
                     ReadFile(tls->client_ca_file(), kMaxPemBytes));
    options.client_certificate_request =
        GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ASSIGN_OR_RETURN(pair.private_key, ReadFile(tls->key_file(), kMaxPemBytes));
  ASSIGN_OR_RETURN(pair.cert_chain,
                   ReadFile(tls->certificate_file(), kMaxPemBytes));
  options.pem_key_cert_pairs.push_back(std::move(pair));
  return grpc::SslServerCredentials(options);
}

}  // namespace

absl::StatusOr<Listener> Listen(const ListenerOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                   Credentials(options.tls));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  Listener listener;
  builder.AddListeningPort(options.address, credentials, &listener.port);
  for (grpc::Service* const service : options.services) {
    builder.RegisterService(service);
  }
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  // Messages come as they were sent, and only in what Gunzip knows.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  // Two servers on one port would share its calls by chance.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A client whose machine is gone would hold its calls for ever.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      kMinPingIntervalMs);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || listener.port == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.name, ": cannot listen on ", options.address,
        ": the address is in use or not this machine's",
        options.tls == nullptr
            ? ""
            : ", or the TLS files are no certificate with its key"));
  }
  return listener;
}

}  // namespace vitrine
