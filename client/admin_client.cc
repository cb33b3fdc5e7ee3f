#include "client/admin_client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <utility>

#include "base/status_macros.h"
#include "client/channel.h"
#include "client/connection.h"
#include "vitrine/v1/admin.grpc.pb.h"

namespace vitrine {

using Stub = v1::AdminService::Stub;

struct AdminClient::Impl {
  Impl(const ClientOptions& options, std::shared_ptr<grpc::Channel> channel,
       const std::string& token)
      : connection(options, std::move(channel), token),
        stub(connection.channel()) {}

  const Connection connection;
  Stub stub;
};

AdminClient::AdminClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AdminClient::~AdminClient() = default;

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Create(
    const ClientOptions& options, const std::string& token) {
  // To start or activate once more is for the caller to decide.
  ClientOptions once = options;
  once.retry.max_attempts = 1;
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, NewChannel(once));
  return std::unique_ptr<AdminClient>(new AdminClient(
      std::make_unique<Impl>(options, std::move(channel), token)));
}

// Each is the stub's method of its name.
#define VITRINE_ADMIN_CALL(method)                                            \
  absl::StatusOr<v1::method##Response> AdminClient::method(                   \
      const v1::method##Request& request, const CallOptions& options) const { \
    return impl_->connection.Call(impl_->stub, &Stub::method, request,        \
                                  options);                                   \
  }
VITRINE_ADMIN_CALL(StartTraining)
VITRINE_ADMIN_CALL(GetTrainingJob)
VITRINE_ADMIN_CALL(ListTrainingJobs)
VITRINE_ADMIN_CALL(CancelTrainingJob)
VITRINE_ADMIN_CALL(ListModelVersions)
VITRINE_ADMIN_CALL(GetModelVersion)
VITRINE_ADMIN_CALL(ActivateModelVersion)
VITRINE_ADMIN_CALL(RollbackModel)
VITRINE_ADMIN_CALL(ListAuditEvents)
#undef VITRINE_ADMIN_CALL

absl::Status AdminClient::WatchTrainingJob(
    const v1::WatchTrainingJobRequest& request,
    const std::function<bool(const v1::TrainingJob&)>& on_change,
    const CallOptions& options) const {
  grpc::ClientContext context;
  RETURN_IF_ERROR(impl_->connection.Prepare(options, &context));
  const auto reader = impl_->stub.WatchTrainingJob(&context, request);
  v1::WatchTrainingJobResponse response;
  while (reader->Read(&response)) {
    if (on_change(response.job())) continue;
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    (void)reader->Finish();
    return absl::OkStatus();
  }
  return impl_->connection.Explain(reader->Finish(), options);
}

}  // namespace vitrine
