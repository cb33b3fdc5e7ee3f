#include "server/inference_job.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

// How long a call may keep a pool thread while others wait, and how many
// elements pass between two looks at the clock.
constexpr absl::Duration kSlice = absl::Milliseconds(2);
constexpr int kLookEvery = 16;

}  // namespace

void InferenceJob::Start() {
  const absl::Time start = absl::Now();
  const absl::Status status = Prepare();
  call_->times.tokenize += absl::Now() - start;
  if (!status.ok()) {
    call_->Finish(status);
    return;
  }
  parts_.rpc.metrics().items(call_->method()).Increment(items());
  Step();
}

void InferenceJob::Step() {
  absl::Time start = absl::Now();
  while (next_ < elements()) {
    if (next_ % kLookEvery == 0) {
      const absl::Status alive = call_->Alive();
      if (!alive.ok()) {
        call_->Finish(alive);
        return;
      }
      const absl::Time now = absl::Now();
      if (now - start > kSlice) {
        call_->times.tokenize += now - start;
        start = now;
        if (parts_.rpc.Post([self = shared_from_this(), now] {
              self->call_->times.queue += absl::Now() - now;
              self->Step();
            })) {
          return;
        }
      }
    }
    Encode(next_++);
  }
  call_->times.tokenize += absl::Now() - start;
  if (sequences_.empty()) {
    Finish(EngineResult());
  } else {
    Submit();
  }
}

void InferenceJob::Submit() {
  const VersionMetrics* metrics = version().metrics.get();
  if (metrics != nullptr) {
    metrics->tokens().Increment(sequences_.tokens());
    metrics->truncations().Increment(sequences_.truncated());
  }
  EngineCall work;
  work.engine =
      std::shared_ptr<const Engine>(call_->version, &model().engine());
  work.sequences = sequences_.TakeSequences();
  work.heads = sequences_.heads();
  work.deadline = call_->deadline();
  work.cancelled = call_->cancelled();
  const absl::Status submitted = parts_.batcher.Submit(
      std::move(work),
      [self = shared_from_this()](absl::StatusOr<EngineResult> result) {
        self->Finish(result);
      });
  if (submitted.ok()) return;
  if (absl::IsResourceExhausted(submitted)) {
    parts_.rpc.metrics().rejected(Rejection::kQueueFull).Increment();
  } else if (absl::IsUnavailable(submitted)) {
    parts_.rpc.metrics().rejected(Rejection::kStopping).Increment();
  }
  call_->Finish(submitted);
}

void InferenceJob::Finish(const absl::StatusOr<EngineResult>& result) {
  absl::Status status = result.status();
  if (status.ok()) {
    call_->times.queue += result->queue;
    call_->times.compute = result->compute;
    status = Answer(result->outputs);
  } else if (!absl::IsCancelled(status) && !absl::IsDeadlineExceeded(status) &&
             !absl::IsUnavailable(status)) {
    Log(LogLevel::kError, "batch_failed",
        {{"method", MethodName(call_->method())},
         {"model", version().name},
         {"version", version().version},
         {"error", status}});
    // Whatever the engine refuses, the caller did not build the batch.
    status = absl::InternalError(
        absl::StrCat("the model could not run: ", status.message()));
  }
  call_->Finish(status);
}

absl::Status InferenceJob::Pin(const v1::ModelSpec& spec) {
  ASSIGN_OR_RETURN(call_->version, parts_.models.Pin(spec));
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const float>> InferenceJob::OutputsOf(
    const Outputs& outputs, int sequence, int head) const {
  const absl::Span<const float> values =
      sequences_.Of(outputs, model().engine(), sequence, head);
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return absl::InternalError(
          absl::StrCat("the model's output is not finite: ", value));
    }
  }
  return values;
}

void InferenceJob::FillModel(v1::ModelVersion* out) const {
  out->set_name(version().name);
  out->set_version(version().version);
}

void InferenceJob::FillTimings(v1::Timings* out) {
  const CallTimes& times = call_->times;
  *out->mutable_queue() = ToProtoDuration(times.queue);
  *out->mutable_tokenize() = ToProtoDuration(times.tokenize);
  *out->mutable_compute() = ToProtoDuration(times.compute);
  *out->mutable_total() = ToProtoDuration(absl::Now() - call_->arrival());
}

void InferenceJob::CountItemErrors(int errors) {
  if (errors > 0) {
    parts_.rpc.metrics().item_errors(call_->method()).Increment(errors);
  }
}

absl::Status MissingHead(const ServedVersion& version, absl::string_view kind) {
  std::string names;
  for (const internal::Head& head : version.model->heads()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", head.name());
  }
  return absl::NotFoundError(absl::StrCat("model ", version.name, " version ",
                                          version.version, " has no ", kind,
                                          " head; it has: ", names));
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace vitrine
