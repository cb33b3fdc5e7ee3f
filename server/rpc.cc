#include "server/rpc.h"

#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "openssl/crypto.h"
#include "server/grpc_status.h"
#include "server/gunzip.h"

namespace vitrine {
namespace {

// How long a caller should stay away when there are too many at once: about
// the time in which some of them are answered.
constexpr absl::Duration kBusyRetryDelay = absl::Milliseconds(100);

absl::Time DeadlineOf(const grpc::CallbackServerContext& context,
                      absl::Time arrival, absl::Duration fallback) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return arrival + fallback;
  }
  return absl::FromChrono(deadline);
}

// The same bytes in a block of their own.
std::string ToString(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!bytes.Dump(&slices).ok()) return out;
  out.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

}  // namespace

std::string PeerHost(const std::string& peer) {
  const size_t kind = peer.find(':');
  if (kind == std::string::npos || peer.compare(0, 2, "ip") != 0) return peer;
  std::string address = peer.substr(kind + 1, peer.rfind(':') - kind - 1);
  // gRPC escapes the brackets of IPv6: "%5B::1%5D".
  absl::string_view host = address;
  for (const absl::string_view open : {"[", "%5B"}) {
    absl::ConsumePrefix(&host, open);
  }
  for (const absl::string_view close : {"]", "%5D"}) {
    absl::ConsumeSuffix(&host, close);
  }
  return std::string(host);
}

absl::Status ParseRequest(const grpc::ByteBuffer& bytes, size_t max_bytes,
                          google::protobuf::Message* message,
                          std::vector<BadString>* bad_strings) {
  {
    grpc::ByteBuffer copy(bytes);  // of references; the reader wants its own
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) {
      return absl::OkStatus();
    }
  }
  message->Clear();
  std::string serialized = ToString(bytes);
  if (IsGzip(serialized)) {
    ASSIGN_OR_RETURN(serialized, Gunzip(serialized, max_bytes));
    if (message->ParseFromString(serialized)) return absl::OkStatus();
    message->Clear();
  }
  ASSIGN_OR_RETURN(*bad_strings,
                   RepairUtf8(*message->GetDescriptor(), &serialized));
  if (!message->ParseFromString(serialized)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "malformed message: not a ", message->GetDescriptor()->full_name()));
  }
  return absl::OkStatus();
}

// Holds the call until gRPC is done with it.
class Call::Reactor : public grpc::ServerUnaryReactor {
 public:
  explicit Reactor(std::shared_ptr<Call> call) : call_(std::move(call)) {}

  void OnCancel() override { *call_->cancelled_ = true; }
  void OnDone() override {
    --call_->rpc_.unanswered_;
    delete this;
  }

 private:
  const std::shared_ptr<Call> call_;
};

Call::Call(Rpc& rpc, Method method, grpc::CallbackServerContext& context,
           grpc::ByteBuffer& response_bytes)
    : rpc_(rpc),
      method_(method),
      arrival_(absl::Now()),
      deadline_(DeadlineOf(context, arrival_, rpc.options_.default_deadline)),
      peer_(PeerHost(context.peer())),
      response_bytes_(response_bytes),
      cancelled_(std::make_shared<std::atomic<bool>>(false)) {}

Call::~Call() = default;

absl::Status Call::Alive() const {
  if (*cancelled_) return absl::CancelledError("the caller cancelled");
  if (absl::Now() >= deadline_) {
    return absl::DeadlineExceededError(
        "the deadline passed before the work was done");
  }
  return absl::OkStatus();
}

void Call::Finish(const absl::Status& status) {
  if (finished_.exchange(true)) return;
  absl::Status sent = status;
  if (sent.ok() && response != nullptr) {
    bool own = false;
    const grpc::Status serialized =
        grpc::SerializationTraits<google::protobuf::Message>::Serialize(
            *response, &response_bytes_, &own);
    if (!serialized.ok()) {
      sent = absl::InternalError("the answer could not be serialized");
    }
  }
  times.total = absl::Now() - arrival_;
  const CallSeries* series = nullptr;
  if (version != nullptr && version->metrics != nullptr) {
    series = version->metrics->Find(method_, head);
  }
  if (series == nullptr) series = &rpc_.metrics_.unversioned(method_);
  series->Observe(times);
  rpc_.metrics_.CountRequest(method_, sent.code());
  --rpc_.in_flight_;
  rpc_.metrics_.calls_in_flight().Decrement();
  // From here on the reactor may be gone at any moment.
  reactor_->Finish(ToGrpcStatus(sent));
}

Rpc::Rpc(const RpcOptions& options, ThreadPool& pool, Metrics& metrics)
    : options_(options), pool_(pool), metrics_(metrics) {}

bool Rpc::AwaitAnswers(absl::Time until) const {
  while (unanswered_ > 0) {
    if (absl::Now() >= until) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

absl::Status Rpc::CheckToken(const grpc::CallbackServerContext& context) const {
  constexpr absl::string_view kScheme = "bearer ";  // in any case, says HTTP
  const auto& metadata = context.client_metadata();
  const auto header = metadata.find("authorization");
  if (header == metadata.end()) {
    return absl::UnauthenticatedError(
        "no token; send metadata \"authorization: Bearer TOKEN\"");
  }
  absl::string_view given(header->second.data(), header->second.size());
  if (!absl::StartsWithIgnoreCase(given, kScheme)) {
    return absl::UnauthenticatedError("authorization: not a bearer token");
  }
  given.remove_prefix(kScheme.size());
  // Digests: of equal length whatever was sent, so that the time taken tells
  // nothing of the token, not even its length.
  const std::string expected = Sha256(options_.token);
  const std::string actual = Sha256(given);
  if (CRYPTO_memcmp(expected.data(), actual.data(), expected.size()) != 0) {
    return absl::UnauthenticatedError("authorization: a wrong token");
  }
  return absl::OkStatus();
}

absl::Status Rpc::StreamArrived(Method method,
                                const grpc::CallbackServerContext& context) {
  ++in_flight_;
  ++unanswered_;
  metrics_.calls_in_flight().Increment();
  return Admit(method, context);
}

void Rpc::StreamFinished(Method method, absl::StatusCode code,
                         absl::Duration took) {
  metrics_.unversioned(method).Observe({.total = took});
  metrics_.CountRequest(method, code);
  --in_flight_;
  metrics_.calls_in_flight().Decrement();
}

absl::Status Rpc::Admit(Method method,
                        const grpc::CallbackServerContext& context) {
  if (!options_.token.empty()) RETURN_IF_ERROR(CheckToken(context));
  if (stopping_) {
    metrics_.rejected(Rejection::kStopping).Increment();
    return absl::UnavailableError("the server is stopping");
  }
  // What a probe asks costs nothing, and a busy server is not an ill one.
  if (method == Method::kListModels) return absl::OkStatus();
  // Callers that do not take their answers hold memory, too.
  if (in_flight_ > options_.max_concurrent_calls ||
      unanswered_ > 2 * options_.max_concurrent_calls) {
    metrics_.rejected(Rejection::kTooManyCalls).Increment();
    return WithRetryDelay(absl::ResourceExhaustedError(absl::StrCat(
                              "more than ", options_.max_concurrent_calls,
                              " calls at once (limits.max_concurrent_calls)")),
                          kBusyRetryDelay);
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* Rpc::Start(
    Method method, grpc::CallbackServerContext& context,
    const grpc::ByteBuffer& request, grpc::ByteBuffer& response,
    const google::protobuf::Message& request_type,
    const google::protobuf::Message& response_type, Handler handler) {
  auto call = std::make_shared<Call>(*this, method, context, response);
  grpc::ServerUnaryReactor* const reactor = new Call::Reactor(call);
  call->reactor_ = reactor;
  ++in_flight_;
  ++unanswered_;
  metrics_.calls_in_flight().Increment();
  const absl::Status admitted = Admit(method, context);
  if (!admitted.ok()) {
    call->Finish(admitted);
    return reactor;
  }
  const bool posted =
      pool_.Post([this, call, &request, &request_type, &response_type,
                  handler = std::move(handler)] {
        call->times.queue = absl::Now() - call->arrival();
        absl::Status status = call->Alive();
        if (status.ok()) {
          call->request = request_type.New(&call->arena_);
          call->response = response_type.New(&call->arena_);
          // gRPC keeps the bytes until the call is finished.
          status = ParseRequest(request, options_.max_message_bytes,
                                call->request, &call->bad_strings);
        }
        if (!status.ok()) {
          call->Finish(status);
          return;
        }
        handler(call);
      });
  if (!posted) {
    metrics_.rejected(Rejection::kPoolFull).Increment();
    call->Finish(WithRetryDelay(
        absl::ResourceExhaustedError("too many calls wait for a thread"),
        kBusyRetryDelay));
  }
  return reactor;
}

}  // namespace vitrine
