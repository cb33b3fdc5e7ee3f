#pragma once

// Calls AdminService of a Vitrine server: trains, activates, rolls back.
// As Client, but for callers with the admin's token; calls are tried once.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

class AdminClient {
 public:
  // `token`: the first line of the file that the server was given.
  static absl::StatusOr<std::unique_ptr<AdminClient>> Create(
      const ClientOptions& options, const std::string& token);
  ~AdminClient();
  AdminClient(const AdminClient&) = delete;
  AdminClient& operator=(const AdminClient&) = delete;

  // Blocking; see admin.proto for what they do and their codes.
  absl::StatusOr<v1::StartTrainingResponse> StartTraining(
      const v1::StartTrainingRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::GetTrainingJobResponse> GetTrainingJob(
      const v1::GetTrainingJobRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::ListTrainingJobsResponse> ListTrainingJobs(
      const v1::ListTrainingJobsRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::CancelTrainingJobResponse> CancelTrainingJob(
      const v1::CancelTrainingJobRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::ListModelVersionsResponse> ListModelVersions(
      const v1::ListModelVersionsRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::GetModelVersionResponse> GetModelVersion(
      const v1::GetModelVersionRequest& request,
      const CallOptions& options = {}) const;
  // Takes as long as the version takes to load: give it minutes.
  absl::StatusOr<v1::ActivateModelVersionResponse> ActivateModelVersion(
      const v1::ActivateModelVersionRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::RollbackModelResponse> RollbackModel(
      const v1::RollbackModelRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::ListAuditEventsResponse> ListAuditEvents(
      const v1::ListAuditEventsRequest& request,
      const CallOptions& options = {}) const;

  // Calls `on_change` with the job as it is and at every change, until it has
  // ended (OK), `on_change` returns false (OK), or the deadline passes.
  absl::Status WatchTrainingJob(
      const v1::WatchTrainingJobRequest& request,
      const std::function<bool(const v1::TrainingJob&)>& on_change,
      const CallOptions& options = {}) const;

 private:
  struct Impl;
  explicit AdminClient(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace vitrine
