#pragma once

// vitrine.v1.InferenceService: what inference.proto promises, over the model
// manager, the batcher and the caches of what items gave.

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/batcher.h"
#include "server/model_manager.h"
#include "server/request_checks.h"
#include "server/rpc.h"
#include "server/token_cache.h"
#include "server/vector_cache.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

struct InferenceOptions {
  internal::LimitsConfig limits;
  double personalization_weight = 0.5;
};

// All arguments outlive the service and its calls.
std::unique_ptr<grpc::Service> NewInferenceService(
    const InferenceOptions& options, Rpc& rpc, const ModelManager& models,
    Batcher& batcher, TokenCache& tokens, VectorCache& vectors);

}  // namespace vitrine
