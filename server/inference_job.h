#pragma once

// One inference call on its way: checks, model, tokens, batcher, answer.
//
// The methods differ in what they check, which sequences they need and what
// they make of the outputs; the way is the same. A long call gives its pool
// thread back every few milliseconds, so that short ones get through.

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/batcher.h"
#include "server/model_manager.h"
#include "server/request_checks.h"
#include "server/rpc.h"
#include "server/sequence_set.h"
#include "server/token_cache.h"
#include "server/vector_cache.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// What jobs work with; outlives them.
struct InferenceParts {
  RequestChecks checks;
  double personalization_weight;
  Rpc& rpc;
  const ModelManager& models;
  Batcher& batcher;
  TokenCache& tokens;
  VectorCache& vectors;
};

// Shared by the call's next step, wherever it waits. One thread at a time.
class InferenceJob : public std::enable_shared_from_this<InferenceJob> {
 public:
  InferenceJob(const InferenceParts& parts, std::shared_ptr<Call> call)
      : parts_(parts), call_(std::move(call)) {}
  virtual ~InferenceJob() = default;

  // On a pool thread. Finishes the call, then or later.
  void Start();

 protected:
  // Checks the request, pins the model (Pin), names the head (call().head) and
  // adds the sequences that all elements share. An error ends the call.
  virtual absl::Status Prepare() = 0;
  // Items or texts.
  virtual int elements() const = 0;
  // How many items the call counts as.
  virtual int items() const { return elements(); }
  // Adds what element `i` needs; its own errors are kept for Answer.
  virtual void Encode(int i) = 0;
  // Fills in the response. `outputs` is empty where no sequence was needed.
  virtual absl::Status Answer(const Outputs& outputs) = 0;

  absl::Status Pin(const v1::ModelSpec& spec);

  Call& call() { return *call_; }
  const InferenceParts& parts() const { return parts_; }
  // After Pin.
  const ServedVersion& version() const { return *call_->version; }
  const ServableModel& model() const { return *call_->version->model; }
  SequenceSet& sequences() { return sequences_; }

  // The outputs of `head` for a sequence; an error where one is not finite.
  absl::StatusOr<absl::Span<const float>> OutputsOf(const Outputs& outputs,
                                                    int sequence,
                                                    int head) const;

  void FillModel(v1::ModelVersion* out) const;
  // The last thing that Answer does.
  void FillTimings(v1::Timings* out);
  void CountItemErrors(int errors);

 private:
  void Step();
  void Submit();
  void Finish(const absl::StatusOr<EngineResult>& result);

  const InferenceParts& parts_;
  const std::shared_ptr<Call> call_;
  SequenceSet sequences_;
  int next_ = 0;  // the element to encode next
};

// "no relevance head; it has: interest, embedding"
absl::Status MissingHead(const ServedVersion& version, absl::string_view kind);

double Sigmoid(double x);

}  // namespace vitrine
