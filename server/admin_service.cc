#include "server/admin_service.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"
#include "server/request_checks.h"
#include "server/training_checks.h"
#include "vitrine/v1/admin.grpc.pb.h"

namespace vitrine {
namespace {

constexpr int kDefaultPage = 100;
constexpr int kMaxPage = 1000;

// The service with all methods raw, as Rpc takes them, one after another.
using Service = v1::AdminService;
using Raw1 = Service::WithRawCallbackMethod_StartTraining<Service::Service>;
using Raw2 = Service::WithRawCallbackMethod_GetTrainingJob<Raw1>;
using Raw3 = Service::WithRawCallbackMethod_ListTrainingJobs<Raw2>;
using Raw4 = Service::WithRawCallbackMethod_WatchTrainingJob<Raw3>;
using Raw5 = Service::WithRawCallbackMethod_CancelTrainingJob<Raw4>;
using Raw6 = Service::WithRawCallbackMethod_ListModelVersions<Raw5>;
using Raw7 = Service::WithRawCallbackMethod_GetModelVersion<Raw6>;
using Raw8 = Service::WithRawCallbackMethod_ActivateModelVersion<Raw7>;
using Raw9 = Service::WithRawCallbackMethod_RollbackModel<Raw8>;
using RawService = Service::WithRawCallbackMethod_ListAuditEvents<Raw9>;

absl::StatusOr<int> PageSize(int asked) {
  if (asked < 0 || asked > kMaxPage) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size: ", asked, " is not in [0, ", kMaxPage, "]"));
  }
  return asked == 0 ? kDefaultPage : asked;
}

std::string Actor(const Call& call) {
  return absl::StrCat("admin ", call.peer());
}

// All but what only the manifest's readers know: current, serving.
v1::RegisteredVersion ToVersion(const internal::Manifest& manifest,
                                bool whole) {
  v1::RegisteredVersion out;
  out.set_model(manifest.model());
  out.set_version(manifest.version());
  out.set_parent(manifest.parent());
  *out.mutable_created() = manifest.created();
  out.set_created_by(manifest.created_by());
  out.set_description(manifest.description());
  int64_t bytes = 0;
  for (const internal::FileDigest& file : manifest.files()) {
    bytes += file.size_bytes();
  }
  out.set_size_bytes(bytes);
  for (const internal::Head& head : manifest.heads()) {
    out.add_heads(head.name());
  }
  out.set_job(manifest.job());
  out.set_label_watermark(manifest.label_watermark());
  out.set_data_digest(manifest.data_digest());
  out.set_seed(manifest.seed());
  out.set_recipe(manifest.recipe());
  if (!whole) return out;
  for (const internal::Metric& metric : manifest.metrics()) {
    v1::EvaluationMetric& to = *out.add_metrics();
    to.set_head(metric.head());
    to.set_name(metric.name());
    to.set_value(metric.value());
    to.set_lower_is_better(metric.lower_is_better());
    if (!std::isnan(metric.before())) to.set_before(metric.before());
    if (metric.has_change_low()) to.set_change_low(metric.change_low());
    if (metric.has_change_high()) to.set_change_high(metric.change_high());
  }
  for (const internal::LabelScore& score : manifest.label_scores()) {
    v1::LabelReport& to = *out.add_label_reports();
    to.set_head(score.head());
    to.set_label(score.label());
    to.set_precision(score.precision());
    to.set_recall(score.recall());
    to.set_f1(score.f1());
    to.set_rows(score.rows());
  }
  return out;
}

class AdminService : public RawService {
 public:
  explicit AdminService(const AdminParts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* StartTraining(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override {
    return Run(Method::kStartTraining, &AdminService::Start, context, request,
               response);
  }
  grpc::ServerUnaryReactor* GetTrainingJob(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kGetTrainingJob, &AdminService::GetJob, context, request,
               response);
  }
  grpc::ServerUnaryReactor* ListTrainingJobs(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kListTrainingJobs, &AdminService::ListJobs, context,
               request, response);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchTrainingJob(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override {
    return parts_.watchers.Watch(*context, *request);
  }
  grpc::ServerUnaryReactor* CancelTrainingJob(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kCancelTrainingJob, &AdminService::CancelJob, context,
               request, response);
  }
  grpc::ServerUnaryReactor* ListModelVersions(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kListModelVersions, &AdminService::ListVersions, context,
               request, response);
  }
  grpc::ServerUnaryReactor* GetModelVersion(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kGetModelVersion, &AdminService::GetVersion, context,
               request, response);
  }
  grpc::ServerUnaryReactor* ActivateModelVersion(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kActivateModelVersion, &AdminService::Activate, context,
               request, response);
  }
  grpc::ServerUnaryReactor* RollbackModel(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override {
    return Run(Method::kRollbackModel, &AdminService::Rollback, context,
               request, response);
  }
  grpc::ServerUnaryReactor* ListAuditEvents(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run(Method::kListAuditEvents, &AdminService::ListEvents, context,
               request, response);
  }

 private:
  // `method` may block: the admin's pool is its own.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Run(Method number,
                                absl::Status (AdminService::*method)(
                                    const Call&, const Request&, Response*),
                                grpc::CallbackServerContext* context,
                                const grpc::ByteBuffer* request,
                                grpc::ByteBuffer* response) {
    return parts_.rpc.Handle<Request, Response>(
        number, context, request, response,
        [this, method](const std::shared_ptr<Call>& call) {
          absl::Status status = CheckBadStrings(call->bad_strings, "", nullptr);
          if (status.ok()) {
            status =
                (this->*method)(*call, static_cast<Request&>(*call->request),
                                static_cast<Response*>(call->response));
          }
          call->Finish(status);
        });
  }

  absl::StatusOr<JobStore*> Jobs() const {
    if (parts_.jobs != nullptr) return parts_.jobs;
    return absl::UnimplementedError(
        "this server has no label store (store in its configuration)");
  }

  // The version of `model` that serves.
  absl::StatusOr<int64_t> Serving(const std::string& model) const {
    v1::ModelSpec spec;
    spec.set_name(model);
    ASSIGN_OR_RETURN(const auto served, parts_.models.Pin(spec));
    int64_t version = 0;
    if (!absl::SimpleAtoi(served->version, &version)) {
      return absl::InternalError(
          absl::StrCat("version ", Quoted(served->version), " is no number"));
    }
    return version;
  }

  absl::Status CheckVersion(const std::string& model, int64_t version) const {
    ASSIGN_OR_RETURN(const std::vector<int64_t> versions,
                     parts_.registry.ListVersions(model));
    if (std::find(versions.begin(), versions.end(), version) !=
        versions.end()) {
      return absl::OkStatus();
    }
    return absl::NotFoundError(
        absl::StrCat("model ", model, " has no version ", version));
  }

  absl::Status Start(const Call& call, const v1::StartTrainingRequest& request,
                     v1::StartTrainingResponse* response) {
    ASSIGN_OR_RETURN(JobStore* const jobs, Jobs());
    RETURN_IF_ERROR(CheckTraining(request));
    v1::TrainingJob job;
    ASSIGN_OR_RETURN(*job.mutable_model(),
                     parts_.models.ResolveName(request.model()));
    *job.mutable_recipe() = request.recipe();
    job.set_dry_run(request.dry_run());
    job.set_idempotency_key(request.idempotency_key());
    job.set_created_by(Actor(call));
    RETURN_IF_ERROR(FillInOpen(request, &job));
    ASSIGN_OR_RETURN(JobStore::Created created, jobs->Create(job, &request));
    *response->mutable_job() = std::move(created.job);
    response->set_existed(created.existed);
    return absl::OkStatus();
  }

  absl::Status FillInOpen(const v1::StartTrainingRequest& request,
                          v1::TrainingJob* job) {
    if (request.base_version() > 0) {
      RETURN_IF_ERROR(Annotate(
          CheckVersion(job->model(), request.base_version()), "base_version"));
      job->set_base_version(request.base_version());
    } else {
      ASSIGN_OR_RETURN(const int64_t serving, Serving(job->model()));
      job->set_base_version(serving);
    }
    ASSIGN_OR_RETURN(const int64_t newest,
                     parts_.labels->Watermark(job->model()));
    if (request.label_watermark() > newest) {
      return absl::InvalidArgumentError(absl::StrCat(
          "label_watermark: ", request.label_watermark(),
          " lies in the future; the newest label is number ", newest));
    }
    job->set_label_watermark(
        request.label_watermark() > 0 ? request.label_watermark() : newest);
    return absl::OkStatus();
  }

  absl::Status GetJob(const Call&, const v1::GetTrainingJobRequest& request,
                      v1::GetTrainingJobResponse* response) {
    ASSIGN_OR_RETURN(JobStore* const jobs, Jobs());
    ASSIGN_OR_RETURN(*response->mutable_job(), jobs->Get(request.id()));
    return absl::OkStatus();
  }

  absl::Status ListJobs(const Call&, const v1::ListTrainingJobsRequest& request,
                        v1::ListTrainingJobsResponse* response) {
    ASSIGN_OR_RETURN(JobStore* const jobs, Jobs());
    ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
    int64_t before = 0;
    if (!request.page_token().empty() &&
        (!absl::SimpleAtoi(request.page_token(), &before) || before <= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("page_token: ", Quoted(request.page_token()),
                       " is not of an answer of this server"));
    }
    ASSIGN_OR_RETURN(std::vector<v1::TrainingJob> found,
                     jobs->List(request.model(), before, size));
    for (v1::TrainingJob& job : found) *response->add_jobs() = std::move(job);
    if (response->jobs_size() == size && response->jobs(size - 1).id() > 1) {
      response->set_next_page_token(
          absl::StrCat(response->jobs(size - 1).id()));
    }
    return absl::OkStatus();
  }

  absl::Status CancelJob(const Call& call,
                         const v1::CancelTrainingJobRequest& request,
                         v1::CancelTrainingJobResponse* response) {
    ASSIGN_OR_RETURN(JobStore* const jobs, Jobs());
    ASSIGN_OR_RETURN(*response->mutable_job(),
                     jobs->Cancel(request.id(), Actor(call)));
    return absl::OkStatus();
  }

  absl::Status ListVersions(const Call&,
                            const v1::ListModelVersionsRequest& request,
                            v1::ListModelVersionsResponse* response) {
    ASSIGN_OR_RETURN(const std::string model,
                     parts_.models.ResolveName(request.model()));
    ASSIGN_OR_RETURN(std::vector<int64_t> versions,
                     parts_.registry.ListVersions(model));
    std::sort(versions.rbegin(), versions.rend());
    for (const int64_t version : versions) {
      absl::StatusOr<v1::RegisteredVersion> read =
          ReadVersion(model, version, /*whole=*/false);
      v1::RegisteredVersion& listed = *response->add_versions();
      if (read.ok()) {
        listed = *std::move(read);
        continue;
      }
      // One that is damaged must not hide the others.
      listed.set_model(model);
      listed.set_version(version);
      listed.set_description(
          absl::StrCat("cannot be read: ", read.status().message()));
    }
    return absl::OkStatus();
  }

  absl::Status GetVersion(const Call&,
                          const v1::GetModelVersionRequest& request,
                          v1::GetModelVersionResponse* response) {
    ASSIGN_OR_RETURN(const std::string model,
                     parts_.models.ResolveName(request.model()));
    int64_t version = request.version();
    if (version == 0) {
      ASSIGN_OR_RETURN(version, Serving(model));
    }
    RETURN_IF_ERROR(CheckVersion(model, version));
    ASSIGN_OR_RETURN(*response->mutable_version(),
                     ReadVersion(model, version, /*whole=*/true));
    return absl::OkStatus();
  }

  absl::StatusOr<v1::RegisteredVersion> ReadVersion(const std::string& model,
                                                    int64_t version,
                                                    bool whole) {
    ASSIGN_OR_RETURN(const internal::Manifest manifest,
                     parts_.registry.ReadManifest(model, version));
    v1::RegisteredVersion out = ToVersion(manifest, whole);
    const absl::StatusOr<int64_t> current = parts_.registry.ReadCurrent(model);
    out.set_current(current.ok() && *current == version);
    ASSIGN_OR_RETURN(const int64_t serving, Serving(model));
    out.set_serving(serving == version);
    return out;
  }

  absl::Status Activate(const Call& call,
                        const v1::ActivateModelVersionRequest& request,
                        v1::ActivateModelVersionResponse* response) {
    if (request.version() <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("version: ", request.version(), " is no version"));
    }
    return Swap(call, "model.activated", request.model(), request.version(),
                response);
  }

  absl::Status Rollback(const Call& call,
                        const v1::RollbackModelRequest& request,
                        v1::RollbackModelResponse* response) {
    ASSIGN_OR_RETURN(const std::string model,
                     parts_.models.ResolveName(request.model()));
    ASSIGN_OR_RETURN(const int64_t serving, Serving(model));
    ASSIGN_OR_RETURN(const internal::Manifest manifest,
                     parts_.registry.ReadManifest(model, serving));
    if (manifest.parent() == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "model ", model, ": version ", serving, " has no parent"));
    }
    return Swap(call, "model.rolled_back", model, manifest.parent(), response);
  }

  template <typename Response>
  absl::Status Swap(const Call& call, const std::string& action,
                    const std::string& name, int64_t version,
                    Response* response) {
    ASSIGN_OR_RETURN(const std::string model, parts_.models.ResolveName(name));
    const absl::StatusOr<ModelManager::Activated> activated =
        parts_.models.Activate(model, version);
    v1::AuditEvent event;
    event.set_actor(Actor(call));
    event.set_model(model);
    event.set_version(version);
    event.set_action(activated.ok() ? action : "model.activation_failed");
    event.set_detail(activated.ok()
                         ? absl::StrCat("was ", activated->previous)
                         : std::string(activated.status().message()));
    Log(activated.ok() ? LogLevel::kInfo : LogLevel::kError, "admin",
        {{"action", event.action()},
         {"actor", event.actor()},
         {"model", model},
         {"version", version},
         {"detail", event.detail()}});
    if (parts_.jobs != nullptr) {
      const absl::Status audited =
          activated.ok() ? parts_.jobs->SettleActivations(model, event)
                         : parts_.jobs->Audit(event);
      if (!audited.ok()) {
        // The swap is done; to answer otherwise would be a lie.
        Log(LogLevel::kError, "audit_not_written", {{"error", audited}});
      }
    }
    RETURN_IF_ERROR(activated.status());
    response->set_model(model);
    response->set_version(activated->version);
    response->set_previous(activated->previous);
    *response->mutable_took() = ToProtoDuration(activated->took);
    return absl::OkStatus();
  }

  absl::Status ListEvents(const Call&,
                          const v1::ListAuditEventsRequest& request,
                          v1::ListAuditEventsResponse* response) {
    ASSIGN_OR_RETURN(JobStore* const jobs, Jobs());
    ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
    if (request.after() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("after: ", request.after(), " is negative"));
    }
    ASSIGN_OR_RETURN(
        std::vector<v1::AuditEvent> events,
        jobs->ListAudit(request.model(),
                        request.has_after() ? request.after() : -1, size));
    for (v1::AuditEvent& event : events) {
      *response->add_events() = std::move(event);
    }
    return absl::OkStatus();
  }

  const AdminParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewAdminService(const AdminParts& parts) {
  return std::make_unique<AdminService>(parts);
}

}  // namespace vitrine
