#include "server/server.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "grpc/grpc.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/batcher.h"
#include "server/config.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "server/metrics_http.h"
#include "server/process_metrics.h"
#include "server/rpc.h"
#include "server/vector_cache.h"
#include "server/version.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;
// Clients may ping this often to keep idle connections open.
constexpr int kMinPingIntervalMs = 10000;
// How often clients are pinged, and how long they may take to answer.
constexpr int kKeepaliveMs = 60000;
constexpr int kKeepaliveTimeoutMs = 20000;
// For the last answers to reach their callers, once they are out of our hands,
// and for the last word on our health.
constexpr absl::Duration kGoodbye = absl::Seconds(1);
constexpr absl::Duration kShortGoodbye = absl::Milliseconds(50);

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(
    const internal::ServerConfig& config) {
  if (!config.has_tls()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options;
  if (!config.tls().client_ca_file().empty()) {
    ASSIGN_OR_RETURN(options.pem_root_certs,
                     ReadFile(config.tls().client_ca_file(), kMaxPemBytes));
    options.client_certificate_request =
        GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ASSIGN_OR_RETURN(pair.private_key,
                   ReadFile(config.tls().key_file(), kMaxPemBytes));
  ASSIGN_OR_RETURN(pair.cert_chain,
                   ReadFile(config.tls().certificate_file(), kMaxPemBytes));
  options.pem_key_cert_pairs.push_back(std::move(pair));
  return grpc::SslServerCredentials(options);
}

ModelManagerOptions ManagerOptions(const ServerOptions& options) {
  const internal::ServerConfig& config = options.config;
  ModelManagerOptions out;
  out.registry = config.registry();
  out.models.assign(config.models().begin(), config.models().end());
  out.default_model = config.default_model();
  out.servable.engine.device = config.engine().device();
  out.servable.engine.dtype = config.engine().dtype();
  out.servable.engine.inner_threads = config.engine().inner_threads();
  out.servable.encoding = config.encoding();
  out.poll_interval = FromProtoDuration(config.poll_interval());
  out.load = options.load;
  return out;
}

BatcherOptions MakeBatcherOptions(const internal::ServerConfig& config,
                                  const Metrics& metrics) {
  BatcherOptions out;
  out.max_batch_tokens = config.batcher().max_batch_tokens();
  out.max_queue_tokens = config.batcher().max_queue_tokens();
  out.threads = config.engine().batch_threads();
  out.metrics = metrics.batcher();
  return out;
}

class ServerImpl : public Server {
 public:
  explicit ServerImpl(const ServerOptions& options)
      : config_(options.config),
        process_metrics_(NewProcessMetrics()),
        vectors_(config_.cache().item_vector_bytes(),
                 {.hits = &metrics_.cache_hits(),
                  .misses = &metrics_.cache_misses(),
                  .bytes = &metrics_.cache_bytes()}),
        models_(ManagerOptions(options), metrics_),
        batcher_(MakeBatcherOptions(config_, metrics_)),
        // Every admitted call has at most one task in the queue.
        pool_("pool", config_.pool_threads(),
              config_.limits().max_concurrent_calls()),
        rpc_({.max_concurrent_calls = config_.limits().max_concurrent_calls(),
              .default_deadline =
                  FromProtoDuration(config_.limits().default_deadline()),
              .max_message_bytes =
                  static_cast<size_t>(config_.limits().max_message_bytes())},
             pool_, metrics_),
        service_(NewInferenceService(
            {.limits = config_.limits(),
             .personalization_weight = config_.personalization_weight()},
            rpc_, models_, batcher_, vectors_)) {}

  ~ServerImpl() override { Stop(); }

  absl::Status Run() {
    RETURN_IF_ERROR(Listen());
    RETURN_IF_ERROR(ListenForMetrics());
    RETURN_IF_ERROR(models_.LoadAll());
    models_.StartPolling();
    SetHealth(true);
    if (!config_.port_file().empty()) {
      RETURN_IF_ERROR(WriteFileAtomically(
          config_.port_file(), absl::StrCat(port_, "\n", metrics_port_, "\n")));
    }
    Log(LogLevel::kInfo, "serving",
        {{"listen", config_.listen()},
         {"port", port_},
         {"metrics_port", metrics_port_},
         {"tls", config_.has_tls()},
         {"batch_threads", config_.engine().batch_threads()},
         {"inner_threads", config_.engine().inner_threads()},
         {"pool_threads", config_.pool_threads()}});
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int metrics_port() const override { return metrics_port_; }
  ModelManager& models() override { return models_; }
  Metrics& metrics() override { return metrics_; }

  void Stop() override {
    if (stopped_) return;
    stopped_ = true;
    const absl::Time until =
        absl::Now() + FromProtoDuration(config_.drain_timeout());
    Log(LogLevel::kInfo, "stopping",
        {{"calls_in_flight", metrics_.calls_in_flight().Value()}});
    if (server_ != nullptr) {
      SetHealth(false);
      rpc_.Stop();
      // Says goodbye on every connection, waits for calls in flight, cancels
      // what is left at the deadline, and waits for their handlers.
      std::thread shutdown(
          [&] { server_->Shutdown(absl::ToChronoTime(until)); });
      // What holds it up once all calls are answered is nobody's work: someone
      // watching our health, a connection that never spoke.
      const bool busy = !rpc_.AwaitAnswers(absl::Now());
      rpc_.AwaitAnswers(until);
      absl::SleepFor(
          std::min(busy ? kGoodbye : kShortGoodbye, until - absl::Now()));
      grpc_server_cancel_all_calls(server_->c_server());
      shutdown.join();
      server_->Wait();
    }
    pool_.Stop();
    batcher_.Stop(absl::InfinitePast());
    metrics_http_.reset();
    Log(LogLevel::kInfo, "stopped");
  }

 private:
  absl::Status Listen() {
    ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                     Credentials(config_));
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int bound = 0;
    builder.AddListeningPort(config_.listen(), credentials, &bound);
    builder.RegisterService(service_.get());
    builder.SetMaxReceiveMessageSize(config_.limits().max_message_bytes());
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
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || bound == 0) {
      server_.reset();
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot listen on ", config_.listen(),
          config_.has_tls()
              ? ": the address is in use or not this machine's, or the TLS "
                "files are no certificate with its key"
              : ": the address is in use or not this machine's"));
    }
    port_ = bound;
    SetHealth(false);
    return absl::OkStatus();
  }

  absl::Status ListenForMetrics() {
    if (config_.metrics_listen() == "off") return absl::OkStatus();
    ASSIGN_OR_RETURN(const HostPort address,
                     ParseHostPort(config_.metrics_listen()));
    ASSIGN_OR_RETURN(
        metrics_http_,
        MetricsHttp::Start(address, {metrics_.registry(), process_metrics_}));
    metrics_port_ = metrics_http_->port();
    return absl::OkStatus();
  }

  void SetHealth(bool serving) {
    grpc::HealthCheckServiceInterface* health =
        server_->GetHealthCheckService();
    if (health == nullptr) return;
    health->SetServingStatus("", serving);
    health->SetServingStatus(v1::InferenceService::service_full_name(),
                             serving);
  }

  // In the order of their needs: each uses only those above it, and the
  // destructor goes the other way.
  const internal::ServerConfig config_;
  Metrics metrics_;
  const std::shared_ptr<prometheus::Collectable> process_metrics_;
  VectorCache vectors_;
  ModelManager models_;
  Batcher batcher_;
  ThreadPool pool_;
  Rpc rpc_;
  const std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<MetricsHttp> metrics_http_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  int metrics_port_ = 0;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  auto server = std::make_unique<ServerImpl>(options);
  RETURN_IF_ERROR(server->Run());
  return server;
}

}  // namespace vitrine
