#pragma once

// vitrine.v1.AdminService: training jobs, versions, the audit trail.

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/job_watchers.h"
#include "server/model_manager.h"
#include "server/rpc.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "store/model_registry.h"

namespace vitrine {

// What the service works with; outlives it and its calls.
struct AdminParts {
  Rpc& rpc;  // with the token
  ModelManager& models;
  const ModelRegistry& registry;
  JobWatchers& watchers;
  // Null where there is no store: then nothing about labels, jobs and events
  // can be asked, and activations are only logged.
  LabelStore* labels = nullptr;
  JobStore* jobs = nullptr;
};

std::unique_ptr<grpc::Service> NewAdminService(const AdminParts& parts);

}  // namespace vitrine
