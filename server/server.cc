#include "server/server.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "grpc/grpc.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "server/batcher.h"
#include "server/config.h"
#include "server/feedback_service.h"
#include "server/inference_service.h"
#include "server/learning.h"
#include "server/listener.h"
#include "server/metrics.h"
#include "server/metrics_http.h"
#include "server/process_metrics.h"
#include "server/rpc.h"
#include "server/token_cache.h"
#include "server/vector_cache.h"
#include "server/version.h"
#include "server/warm_up.h"
#include "store/database.h"
#include "vitrine/v1/feedback.grpc.pb.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {
namespace {

// For the last answers to reach their callers, once they are out of our hands,
// and for the last word on our health.
constexpr absl::Duration kGoodbye = absl::Seconds(1);
constexpr absl::Duration kShortGoodbye = absl::Milliseconds(50);

// `batcher` is asked once it serves.
ModelManagerOptions ManagerOptions(const ServerOptions& options,
                                   LearningStore* store,
                                   const Batcher& batcher) {
  const internal::ServerConfig& config = options.config;
  ModelManagerOptions out;
  out.registry = config.registry();
  out.models.assign(config.models().begin(), config.models().end());
  out.default_model = config.default_model();
  out.servable.engine.device = config.engine().device();
  out.servable.engine.dtype = config.engine().dtype();
  out.servable.engine.kind = config.engine().kind();
  out.servable.engine.inner_threads = config.engine().inner_threads();
  out.servable.encoding = config.encoding();
  out.poll_interval = FromProtoDuration(config.poll_interval());
  out.load = options.load;
  out.warm_up = [&batcher](const ServableModel& model) {
    return WarmUpOn(model, batcher.RecentShapes());
  };
  if (store != nullptr) {
    out.next_version = [store](const std::string& model) {
      return store->NextVersion(model);
    };
    out.on_next_version = [store](const std::string& model, int64_t version,
                                  const absl::Status& status) {
      store->OnNextVersion(model, version, status);
    };
  }
  return out;
}

BatcherOptions MakeBatcherOptions(const internal::ServerConfig& config,
                                  const Metrics& metrics) {
  BatcherOptions out;
  out.max_batch_tokens = config.batcher().max_batch_tokens();
  out.max_queue_tokens = config.batcher().max_queue_tokens();
  out.threads = config.engine().batch_threads();
  out.max_short_tokens = config.batcher().short_call_tokens();
  out.metrics = metrics.batcher();
  return out;
}

class ServerImpl : public Server {
 public:
  // `database` is null where the configuration has no store.
  ServerImpl(const ServerOptions& options, std::unique_ptr<Database> database)
      : config_(options.config),
        registry_(config_.registry()),
        store_(database == nullptr
                   ? nullptr
                   : std::make_unique<LearningStore>(
                         std::move(database), config_.store().max_waiting(),
                         metrics_)),
        process_metrics_(NewProcessMetrics()),
        tokens_(config_.cache().token_bytes(), metrics_.token_cache()),
        vectors_(config_.cache().item_vector_bytes(),
                 metrics_.item_vector_cache()),
        batcher_(MakeBatcherOptions(config_, metrics_)),
        models_(ManagerOptions(options, store_.get(), batcher_), metrics_),
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
            rpc_, models_, batcher_, tokens_, vectors_)),
        feedback_(FeedbackService::Create(
            config_.limits(), rpc_, models_,
            store_ == nullptr ? nullptr : &store_->writer())) {}

  ~ServerImpl() override { Stop(); }

  absl::Status Run() {
    RETURN_IF_ERROR(ListenForCalls());
    RETURN_IF_ERROR(ListenForMetrics());
    RETURN_IF_ERROR(ListenForAdmins());
    RETURN_IF_ERROR(models_.LoadAll());
    models_.StartPolling();
    SetHealth(true);
    if (admin_ != nullptr) admin_->SetServing(true);
    if (!config_.port_file().empty()) {
      RETURN_IF_ERROR(WriteFileAtomically(
          config_.port_file(),
          absl::StrCat(port_, "\n", metrics_port_, "\n", admin_port(), "\n")));
    }
    Log(LogLevel::kInfo, "serving",
        {{"listen", config_.listen()},
         {"port", port_},
         {"metrics_port", metrics_port_},
         {"admin_port", admin_port()},
         {"tls", config_.has_tls()},
         {"batch_threads", config_.engine().batch_threads()},
         {"inner_threads", config_.engine().inner_threads()},
         {"pool_threads", config_.pool_threads()}});
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int metrics_port() const override { return metrics_port_; }
  int admin_port() const override {
    return admin_ == nullptr ? 0 : admin_->port();
  }
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
      feedback_->StopStreams();
      if (admin_ != nullptr) admin_->Stop(until);
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
    if (store_ != nullptr) store_->writer().Stop();
    metrics_http_.reset();
    Log(LogLevel::kInfo, "stopped");
  }

 private:
  absl::Status ListenForCalls() {
    ASSIGN_OR_RETURN(
        Listener listener,
        Listen({.name = "listen",
                .address = config_.listen(),
                .tls = config_.has_tls() ? &config_.tls() : nullptr,
                .max_message_bytes = config_.limits().max_message_bytes(),
                .services = {service_.get(), &feedback_->service()}}));
    server_ = std::move(listener.server);
    port_ = listener.port;
    SetHealth(false);
    return absl::OkStatus();
  }

  absl::Status ListenForAdmins() {
    if (!config_.has_admin()) return absl::OkStatus();
    ASSIGN_OR_RETURN(admin_,
                     AdminListener::Start(config_.admin(), registry_, models_,
                                          store_.get(), metrics_));
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
    health->SetServingStatus(v1::FeedbackService::service_full_name(),
                             serving && store_ != nullptr);
  }

  // In the order of their needs: each uses only those above it, and the
  // destructor goes the other way.
  const internal::ServerConfig config_;
  const ModelRegistry registry_;
  Metrics metrics_;
  const std::unique_ptr<LearningStore> store_;  // null: none
  const std::shared_ptr<prometheus::Collectable> process_metrics_;
  TokenCache tokens_;
  VectorCache vectors_;
  Batcher batcher_;
  ModelManager models_;
  ThreadPool pool_;
  Rpc rpc_;
  const std::unique_ptr<grpc::Service> service_;
  const std::unique_ptr<FeedbackService> feedback_;
  std::unique_ptr<AdminListener> admin_;  // null: none
  std::unique_ptr<MetricsHttp> metrics_http_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  int metrics_port_ = 0;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  std::unique_ptr<Database> database;
  if (options.config.has_store()) {
    const internal::StoreConfig& store = options.config.store();
    ASSIGN_OR_RETURN(database,
                     Database::Open({.url = store.url(),
                                     .lock_timeout = FromProtoDuration(
                                         store.lock_timeout())}));
    Log(LogLevel::kInfo, "store_opened", {{"store", database->Describe()}});
  }
  auto server = std::make_unique<ServerImpl>(options, std::move(database));
  RETURN_IF_ERROR(server->Run());
  return server;
}

}  // namespace vitrine
