#pragma once

// The one wrapper around every handler.
//
// gRPC's callback threads are few, so a handler runs on the thread pool: Rpc
// counts the call in, refuses it when the server is full or stopping, hops to
// the pool, parses (and repairs bad UTF-8, see utf8_repair.h), sets the
// deadline, calls the handler and, when the call is finished from whatever
// thread, sends the answer and counts what happened.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/thread_pool.h"
#include "google/protobuf/arena.h"
#include "google/protobuf/message.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/metrics.h"
#include "server/model_manager.h"
#include "server/utf8_repair.h"

namespace vitrine {

class Rpc;

// One call between its arrival and its answer. Shared by whoever still works
// for it; any thread may ask whether it is alive and finish it.
class Call {
 public:
  Call(Rpc& rpc, Method method, grpc::CallbackServerContext& context,
       grpc::ByteBuffer& response_bytes);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Method method() const { return method_; }
  absl::Time arrival() const { return arrival_; }
  absl::Time deadline() const { return deadline_; }
  // The caller's address without its port: "10.0.0.7".
  const std::string& peer() const { return peer_; }

  // kCancelled or kDeadlineExceeded once nobody waits for the answer.
  absl::Status Alive() const;
  // For EngineCall; keeps nothing alive.
  const std::shared_ptr<std::atomic<bool>>& cancelled() const {
    return cancelled_;
  }

  // The caller's message and the answer, on the call's arena.
  google::protobuf::Message* request = nullptr;
  google::protobuf::Message* response = nullptr;
  // Strings of the request that were not UTF-8.
  std::vector<BadString> bad_strings;

  // For the metrics: set once known.
  CallTimes times;
  std::shared_ptr<const ServedVersion> version;
  std::string head;

  // Sends `response`, or the error. The first call counts, later ones do
  // nothing.
  void Finish(const absl::Status& status);

 private:
  friend class Rpc;
  class Reactor;

  Rpc& rpc_;
  const Method method_;
  const absl::Time arrival_;
  const absl::Time deadline_;
  const std::string peer_;
  grpc::ByteBuffer& response_bytes_;  // gRPC's; until Finish
  const std::shared_ptr<std::atomic<bool>> cancelled_;
  google::protobuf::Arena arena_;

  std::atomic<bool> finished_{false};
  grpc::ServerUnaryReactor* reactor_ = nullptr;  // deletes itself when done
};

struct RpcOptions {
  int max_concurrent_calls = 1024;
  absl::Duration default_deadline = absl::Seconds(30);
  size_t max_message_bytes = 16 << 20;
  // Not empty: callers must send "authorization: Bearer <token>".
  std::string token;
};

// Owned by the server; outlives all calls.
class Rpc {
 public:
  using Handler = std::function<void(std::shared_ptr<Call>)>;

  Rpc(const RpcOptions& options, ThreadPool& pool, Metrics& metrics);

  // On a gRPC thread. Request and Response are messages of the method.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Handle(Method method,
                                   grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response,
                                   Handler handler) {
    return Start(method, *context, *request, *response,
                 Request::default_instance(), Response::default_instance(),
                 std::move(handler));
  }

  // Of a streaming call, which has a reactor of its own: when it arrives,
  // whether it may go on; when it is finished; when gRPC has let it go. Each
  // once, in this order.
  absl::Status StreamArrived(Method method,
                             const grpc::CallbackServerContext& context);
  void StreamFinished(Method method, absl::StatusCode code,
                      absl::Duration took);
  void StreamDone() { --unanswered_; }

  // From now on every new call is refused with kUnavailable. Streams are to
  // look at stopping() now and then.
  void Stop() { stopping_ = true; }
  bool stopping() const { return stopping_; }

  // Returns when gRPC has sent the answer of every call, or at `until`; whether
  // all are sent.
  bool AwaitAnswers(absl::Time until) const;

  // Runs `task` on the pool. False, and the task is not taken, when that is
  // full.
  [[nodiscard]] bool Post(absl::AnyInvocable<void()>&& task) {
    return pool_.Post(std::move(task));
  }

  Metrics& metrics() { return metrics_; }
  size_t max_message_bytes() const { return options_.max_message_bytes; }

 private:
  friend class Call;

  grpc::ServerUnaryReactor* Start(
      Method method, grpc::CallbackServerContext& context,
      const grpc::ByteBuffer& request, grpc::ByteBuffer& response,
      const google::protobuf::Message& request_type,
      const google::protobuf::Message& response_type, Handler handler);
  absl::Status Admit(Method method, const grpc::CallbackServerContext& context);
  absl::Status CheckToken(const grpc::CallbackServerContext& context) const;

  const RpcOptions options_;
  ThreadPool& pool_;
  Metrics& metrics_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> in_flight_{0};   // not finished yet
  std::atomic<int> unanswered_{0};  // not let go by gRPC yet
};

// The caller's address as gRPC gives it, "ipv4:10.0.0.7:5123", without kind
// and port.
std::string PeerHost(const std::string& peer);

// Parses `bytes`, inflating and repairing strings where needed, into
// `*message`. kInvalidArgument for anything that is not such a message,
// kResourceExhausted where it inflates to more than `max_bytes`.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, size_t max_bytes,
                          google::protobuf::Message* message,
                          std::vector<BadString>* bad_strings);

}  // namespace vitrine
