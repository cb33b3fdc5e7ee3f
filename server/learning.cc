#include "server/learning.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "grpc/grpc.h"
#include "grpcpp/health_check_service_interface.h"
#include "server/config.h"
#include "server/listener.h"
#include "vitrine/v1/admin.grpc.pb.h"

namespace vitrine {
namespace {

// Admins are few, but an activation holds a thread while it loads.
constexpr int kAdminThreads = 4;
constexpr int kMaxAdminCalls = 64;
// Requests are small; nobody without the token should send us more.
constexpr int kMaxAdminMessageBytes = 1 << 20;
// Time for a load; callers may set another.
constexpr absl::Duration kAdminDeadline = absl::Minutes(10);

}  // namespace

LearningStore::LearningStore(std::unique_ptr<Database> database,
                             int64_t max_waiting, Metrics& metrics)
    : database_(std::move(database)),
      labels_(*database_),
      jobs_(*database_),
      writer_(labels_, max_waiting, metrics),
      actor_(absl::StrCat("server ", HostAndPid())) {}

int64_t LearningStore::NextVersion(const std::string& model) {
  const absl::StatusOr<int64_t> version = jobs_.NextForActivation(model);
  if (version.ok()) {
    error_logged_ = false;
    return *version;
  }
  if (!std::exchange(error_logged_, true)) {
    Log(LogLevel::kError, "store_not_asked",
        {{"model", model}, {"error", version.status()}});
  }
  return 0;
}

void LearningStore::OnNextVersion(const std::string& model, int64_t version,
                                  const absl::Status& status) {
  v1::AuditEvent event;
  event.set_actor(actor_);
  event.set_model(model);
  event.set_version(version);
  event.set_action(status.ok() ? "model.activated" : "model.activation_failed");
  event.set_detail(status.ok() ? "by policy" : std::string(status.message()));
  const absl::Status settled = jobs_.SettleActivation(model, version, event);
  if (!settled.ok()) {
    Log(LogLevel::kError, "activation_not_settled",
        {{"model", model}, {"version", version}, {"error", settled}});
  }
}

AdminListener::AdminListener(const std::string& token,
                             const ModelRegistry& registry,
                             ModelManager& models, LearningStore* store,
                             Metrics& metrics)
    : models_(models),
      pool_("admin", kAdminThreads, kMaxAdminCalls),
      rpc_({.max_concurrent_calls = kMaxAdminCalls,
            .default_deadline = kAdminDeadline,
            .max_message_bytes = kMaxAdminMessageBytes,
            .token = token},
           pool_, metrics),
      watchers_(store == nullptr ? nullptr : &store->jobs(), rpc_),
      service_(NewAdminService(
          {.rpc = rpc_,
           .models = models,
           .registry = registry,
           .watchers = watchers_,
           .labels = store == nullptr ? nullptr : &store->labels(),
           .jobs = store == nullptr ? nullptr : &store->jobs()})) {}

AdminListener::~AdminListener() { Stop(absl::InfinitePast()); }

absl::StatusOr<std::unique_ptr<AdminListener>> AdminListener::Start(
    const internal::AdminConfig& config, const ModelRegistry& registry,
    ModelManager& models, LearningStore* store, Metrics& metrics) {
  ASSIGN_OR_RETURN(const std::string token,
                   ReadAdminToken(config.token_file()));
  std::unique_ptr<AdminListener> admin(
      new AdminListener(token, registry, models, store, metrics));
  ASSIGN_OR_RETURN(Listener listener,
                   Listen({.name = "admin.listen",
                           .address = config.listen(),
                           .tls = config.has_tls() ? &config.tls() : nullptr,
                           .max_message_bytes = kMaxAdminMessageBytes,
                           .services = {admin->service_.get()}}));
  admin->server_ = std::move(listener.server);
  admin->port_ = listener.port;
  admin->SetServing(false);
  return admin;
}

void AdminListener::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health =
      server_->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::AdminService::service_full_name(), serving);
}

void AdminListener::Stop(absl::Time until) {
  if (server_ == nullptr) return;
  SetServing(false);
  rpc_.Stop();
  watchers_.Stop();
  models_.StopActivations();
  rpc_.AwaitAnswers(until);
  server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Milliseconds(50)));
  server_->Wait();
  server_.reset();
  pool_.Stop();
}

}  // namespace vitrine
