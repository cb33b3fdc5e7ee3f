#pragma once

// vitrine.v1.FeedbackService: checks entries and hands them to the writer.

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/label_writer.h"
#include "server/model_manager.h"
#include "server/rpc.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

class FeedbackService {
 public:
  // `writer` is null where the server has no label store: then all calls are
  // answered UNIMPLEMENTED. All outlive the service and its calls.
  static std::unique_ptr<FeedbackService> Create(
      const internal::LimitsConfig& limits, Rpc& rpc,
      const ModelManager& models, LabelWriter* writer);
  virtual ~FeedbackService() = default;

  virtual grpc::Service& service() = 0;
  // Ends imports that wait for their callers; those amid a batch end after it.
  // After Rpc::Stop.
  virtual void StopStreams() = 0;
};

}  // namespace vitrine
