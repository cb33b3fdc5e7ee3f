#include "server/feedback_service.h"

#include <atomic>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "server/feedback_checks.h"
#include "server/grpc_status.h"
#include "vitrine/v1/feedback.grpc.pb.h"

namespace vitrine {
namespace {

constexpr int64_t kMaxListedRejections = 100;

using Outcomes = std::vector<LabelStore::Outcome>;
using Entries = google::protobuf::RepeatedPtrField<v1::Feedback>;

template <typename Base>
using Raw = v1::FeedbackService::WithRawCallbackMethod_RecordFeedback<
    v1::FeedbackService::WithRawCallbackMethod_ImportFeedback<Base>>;

struct Parts {
  RequestChecks checks;
  Rpc& rpc;
  const ModelManager& models;
  LabelWriter* writer;
};

// One batch on its way: which entries are fit to be stored, and what became of
// each.
class Batch {
 public:
  // Of the whole batch: too many entries, or an invalid string outside of them.
  absl::Status Check(const Parts& parts, const Entries& entries,
                     const std::vector<BadString>& bad_strings) {
    entries_ = &entries;
    const int most = parts.checks.limits().max_feedback();
    if (entries.size() > most) {
      return absl::InvalidArgumentError(absl::StrCat(
          "feedback: ", entries.size(), " > ", most, " (limits.max_feedback)"));
    }
    errors_.resize(entries.size());
    RETURN_IF_ERROR(CheckBadStrings(bad_strings, "feedback", &errors_));
    const absl::Time now = absl::Now();
    for (int i = 0; i < entries.size(); ++i) {
      if (errors_[i].ok()) {
        errors_[i] = CheckFeedback(parts.checks, now, entries[i]);
      }
      if (errors_[i].ok()) fit_.push_back(&entries[i]);
    }
    return absl::OkStatus();
  }

  const std::vector<const v1::Feedback*>& fit() const { return fit_; }

  // Calls `visit` with the result of each entry; `outcomes` are those of fit().
  template <typename Visit>
  void Results(const Outcomes& outcomes, const Visit& visit) const {
    size_t next = 0;
    for (int i = 0; i < entries_->size(); ++i) {
      v1::FeedbackResult result;
      result.set_index(i);
      // One that is far too long would come back a hundred times in an import.
      const std::string& id = (*entries_)[i].feedback_id();
      if (id.size() <= kMaxFeedbackIdBytes) result.set_feedback_id(id);
      if (!errors_[i].ok()) {
        result.set_outcome(v1::FEEDBACK_OUTCOME_REJECTED);
        *result.mutable_error() = ToRpcStatus(errors_[i]);
      } else {
        result.set_outcome(outcomes[next++] == LabelStore::Outcome::kStored
                               ? v1::FEEDBACK_OUTCOME_STORED
                               : v1::FEEDBACK_OUTCOME_DUPLICATE);
      }
      visit(std::move(result));
    }
  }

 private:
  const Entries* entries_ = nullptr;
  std::vector<absl::Status> errors_;  // of each entry
  std::vector<const v1::Feedback*> fit_;
};

absl::Status NoStore() {
  return absl::UnimplementedError(
      "this server keeps no feedback: it has no label store");
}

class Import;

// The imports that gRPC is not done with yet; what keeps them alive.
class OpenImports {
 public:
  void Add(std::shared_ptr<Import> import) {
    MutexLock lock(mu_);
    imports_.insert(std::move(import));
  }
  void Remove(const std::shared_ptr<Import>& import) {
    MutexLock lock(mu_);
    imports_.erase(import);
  }
  std::vector<std::shared_ptr<Import>> List() {
    MutexLock lock(mu_);
    return {imports_.begin(), imports_.end()};
  }

 private:
  Mutex mu_;
  std::set<std::shared_ptr<Import>> imports_ ABSL_GUARDED_BY(mu_);
};

// A client's stream, one batch at a time: read, check on the pool, commit, then
// read on.
class Import : public grpc::ServerReadReactor<grpc::ByteBuffer>,
               public std::enable_shared_from_this<Import> {
 public:
  Import(const Parts& parts, grpc::ByteBuffer& response_bytes,
         OpenImports& open)
      : parts_(parts),
        arrival_(absl::Now()),
        response_bytes_(response_bytes),
        open_(open) {}

  void Start(const grpc::CallbackServerContext& context) {
    open_.Add(shared_from_this());
    absl::Status status =
        parts_.rpc.StreamArrived(Method::kImportFeedback, context);
    if (status.ok() && parts_.writer == nullptr) status = NoStore();
    if (!status.ok()) {
      End(status);
      return;
    }
    ReadOn();
  }

  // Ends it unless a batch of it is being checked or committed; then it ends
  // with that.
  void StopIfIdle() {
    {
      MutexLock lock(mu_);
      if (!reading_ || ended_) return;
      // At once with the look at reading_: a batch that arrives now must find
      // that it comes too late.
      ended_ = true;
    }
    Answer(Stopping());
  }

  void OnCancel() override { cancelled_ = true; }

  void OnReadDone(bool ok) override {
    {
      MutexLock lock(mu_);
      reading_ = false;
      if (ended_) return;
    }
    if (!ok) {
      // The end of the stream, or its cancellation.
      End(cancelled_ ? absl::CancelledError("the caller cancelled")
                     : absl::OkStatus());
      return;
    }
    if (!parts_.rpc.Post([this] { Process(); })) {
      End(absl::ResourceExhaustedError("too many calls wait for a thread"));
    }
  }

  void OnDone() override {
    parts_.rpc.StreamDone();
    open_.Remove(shared_from_this());
  }

 private:
  void Process() {
    const absl::Status status = Submit();
    if (!status.ok()) End(status);
  }

  absl::Status Submit() {
    std::vector<BadString> bad_strings;
    RETURN_IF_ERROR(ParseRequest(bytes_, parts_.rpc.max_message_bytes(),
                                 &request_, &bad_strings));
    if (model_.empty()) {
      ASSIGN_OR_RETURN(model_, parts_.models.ResolveName(request_.model()));
    }
    batch_ = Batch();
    RETURN_IF_ERROR(batch_.Check(parts_, request_.feedback(), bad_strings));
    if (batch_.fit().empty()) {
      Committed(Outcomes());
      return absl::OkStatus();
    }
    return parts_.writer->Submit(model_, batch_.fit(),
                                 [this](absl::StatusOr<Outcomes> outcomes) {
                                   if (!outcomes.ok()) {
                                     End(outcomes.status());
                                   } else {
                                     Committed(*outcomes);
                                   }
                                 });
  }

  void Committed(const Outcomes& outcomes) {
    batch_.Results(outcomes, [this](v1::FeedbackResult result) {
      parts_.rpc.metrics().feedback(result.outcome()).Increment();
      switch (result.outcome()) {
        case v1::FEEDBACK_OUTCOME_STORED:
          response_.set_stored(response_.stored() + 1);
          return;
        case v1::FEEDBACK_OUTCOME_DUPLICATE:
          response_.set_duplicates(response_.duplicates() + 1);
          return;
        default:
          break;
      }
      if (response_.rejected() < kMaxListedRejections) {
        result.set_index(read_ + result.index());
        *response_.add_rejections() = std::move(result);
      }
      response_.set_rejected(response_.rejected() + 1);
    });
    read_ += request_.feedback_size();
    request_.Clear();
    ReadOn();
  }

  void ReadOn() {
    const std::shared_ptr<Import> alive = shared_from_this();
    {
      // Held across the start, so that no read comes after Finish; and across
      // the look at stopping(), so that StopIfIdle finds it reading or it finds
      // the server stopping.
      MutexLock lock(mu_);
      if (ended_) return;
      if (!parts_.rpc.stopping()) {
        reading_ = true;
        StartRead(&bytes_);
        return;
      }
    }
    End(Stopping());
  }

  static absl::Status Stopping() {
    return absl::UnavailableError("the server is stopping");
  }

  void End(const absl::Status& status) {
    {
      MutexLock lock(mu_);
      if (ended_) return;
      ended_ = true;
    }
    Answer(status);
  }

  // Once, by whoever set ended_.
  void Answer(const absl::Status& status) {
    if (status.ok()) {
      bool own = false;
      (void)grpc::SerializationTraits<google::protobuf::Message>::Serialize(
          response_, &response_bytes_, &own);
    }
    parts_.rpc.StreamFinished(Method::kImportFeedback, status.code(),
                              absl::Now() - arrival_);
    // May delete this at any moment.
    Finish(ToGrpcStatus(status));
  }

  const Parts& parts_;
  const absl::Time arrival_;
  grpc::ByteBuffer& response_bytes_;  // gRPC's
  OpenImports& open_;

  std::atomic<bool> cancelled_{false};

  Mutex mu_;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;  // waits for its caller
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  // One at a time touches the rest: whoever read, checks or commits.
  grpc::ByteBuffer bytes_;
  v1::ImportFeedbackRequest request_;
  Batch batch_;
  std::string model_;
  int64_t read_ = 0;  // entries of batches before this one
  v1::ImportFeedbackResponse response_;
};

class FeedbackServiceImpl : public FeedbackService,
                            private Raw<v1::FeedbackService::Service> {
 public:
  FeedbackServiceImpl(const internal::LimitsConfig& limits, Rpc& rpc,
                      const ModelManager& models, LabelWriter* writer)
      : parts_{.checks = RequestChecks(limits),
               .rpc = rpc,
               .models = models,
               .writer = writer} {}

  grpc::Service& service() override { return *this; }

  void StopStreams() override {
    for (const auto& import : open_imports_.List()) import->StopIfIdle();
  }

 private:
  grpc::ServerUnaryReactor* RecordFeedback(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return parts_.rpc
        .Handle<v1::RecordFeedbackRequest, v1::RecordFeedbackResponse>(
            Method::kRecordFeedback, context, request, response,
            [this](const std::shared_ptr<Call>& call) {
              const absl::Status status = Record(call);
              if (!status.ok()) call->Finish(status);
            });
  }

  grpc::ServerReadReactor<grpc::ByteBuffer>* ImportFeedback(
      grpc::CallbackServerContext* context,
      grpc::ByteBuffer* response) override {
    auto import = std::make_shared<Import>(parts_, *response, open_imports_);
    import->Start(*context);
    return import.get();  // alive until gRPC is done with it
  }

  absl::Status Record(const std::shared_ptr<Call>& call) {
    if (parts_.writer == nullptr) return NoStore();
    const auto& request =
        static_cast<const v1::RecordFeedbackRequest&>(*call->request);
    if (request.feedback().empty()) {
      return absl::InvalidArgumentError("feedback: at least one is needed");
    }
    ASSIGN_OR_RETURN(const std::string model,
                     parts_.models.ResolveName(request.model()));
    auto batch = std::make_shared<Batch>();
    RETURN_IF_ERROR(
        batch->Check(parts_, request.feedback(), call->bad_strings));
    const auto answer = [this, call, batch](const Outcomes& outcomes) {
      auto& response =
          static_cast<v1::RecordFeedbackResponse&>(*call->response);
      int counts[v1::FeedbackOutcome_ARRAYSIZE] = {};
      batch->Results(outcomes, [&](v1::FeedbackResult result) {
        ++counts[result.outcome()];
        parts_.rpc.metrics().feedback(result.outcome()).Increment();
        *response.add_results() = std::move(result);
      });
      response.set_stored(counts[v1::FEEDBACK_OUTCOME_STORED]);
      response.set_duplicates(counts[v1::FEEDBACK_OUTCOME_DUPLICATE]);
      response.set_rejected(counts[v1::FEEDBACK_OUTCOME_REJECTED]);
      call->Finish(absl::OkStatus());
    };
    if (batch->fit().empty()) {
      answer({});
      return absl::OkStatus();
    }
    return parts_.writer->Submit(
        model, batch->fit(),
        [call, batch, answer](absl::StatusOr<Outcomes> outcomes) {
          if (outcomes.ok()) {
            answer(*outcomes);
          } else {
            call->Finish(outcomes.status());
          }
        });
  }

  const Parts parts_;
  OpenImports open_imports_;
};

}  // namespace

std::unique_ptr<FeedbackService> FeedbackService::Create(
    const internal::LimitsConfig& limits, Rpc& rpc, const ModelManager& models,
    LabelWriter* writer) {
  return std::make_unique<FeedbackServiceImpl>(limits, rpc, models, writer);
}

}  // namespace vitrine
