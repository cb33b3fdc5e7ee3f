#pragma once

// Calls a Vitrine server from C++.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Client> client,
//                    Client::Create({.target = "ranker:8500"}));
//   v1::RankRequest request;
//   request.mutable_context()->set_query("red sofa");
//   request.add_items()->set_title("Two-seat couch, crimson");
//   ASSIGN_OR_RETURN(v1::RankResponse response, client->Rank(request));
//
// Make one and share it: a Client holds one channel, which multiplexes calls
// over one connection and reconnects by itself. Any thread may call.
//
// Every call has a deadline. A call answered UNAVAILABLE or RESOURCE_EXHAUSTED
// is tried again, after a back-off with jitter, within that deadline; the
// policy is a gRPC service config, so that a client in any other language can
// use the same one (RetryServiceConfig).

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "vitrine/v1/feedback.pb.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

struct RetryPolicy {
  // The first try counts; 1: never try again. gRPC takes at most 5.
  int max_attempts = 4;
  // The n-th wait is random in [0, min(initial * multiplier^(n-1), max)].
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(2);
  double multiplier = 2;
};

struct ClientOptions {
  // "host:port", or any name that gRPC resolves, such as "unix:/run/v.sock".
  std::string target = "127.0.0.1:8500";

  bool tls = false;
  // PEM files. Without a CA the system's roots are trusted. Certificate and
  // key go together, for servers that ask clients for one.
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  // Checks the server's certificate against this name, not the target's.
  std::string server_name;

  // The deadline of calls that do not bring their own. Finite and positive.
  absl::Duration timeout = absl::Seconds(10);
  RetryPolicy retry;
  // Compresses requests with gzip; worth it on slow links only.
  bool compress = false;
  // The largest answer taken.
  int max_response_bytes = 64 << 20;
};

struct CallOptions {
  // Zero: the client's own.
  absl::Duration timeout = absl::ZeroDuration();
};

enum class Health { kServing, kNotServing };

class Client {
 public:
  // Connects at the first call, not here. kInvalidArgument names the option
  // that is wrong; kNotFound a PEM file that is not there.
  static absl::StatusOr<std::unique_ptr<Client>> Create(
      const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Blocking. The status is the server's, with its details as payloads (by
  // type URL); see inference.proto for the codes. RetryDelay reads one.
  // kUnavailable, too, when the server cannot be reached before the deadline.
  absl::StatusOr<v1::ScoreResponse> Score(
      const v1::ScoreRequest& request, const CallOptions& options = {}) const;
  absl::StatusOr<v1::RankResponse> Rank(const v1::RankRequest& request,
                                        const CallOptions& options = {}) const;
  absl::StatusOr<v1::PredictInterestsResponse> PredictInterests(
      const v1::PredictInterestsRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::EmbedResponse> Embed(
      const v1::EmbedRequest& request, const CallOptions& options = {}) const;
  absl::StatusOr<v1::ClassifyResponse> Classify(
      const v1::ClassifyRequest& request,
      const CallOptions& options = {}) const;
  absl::StatusOr<v1::ListModelsResponse> ListModels(
      const v1::ListModelsRequest& request,
      const CallOptions& options = {}) const;

  // What shoppers did and judges said, for training; see feedback.proto. Safe
  // to send again: entries have ids.
  absl::StatusOr<v1::RecordFeedbackResponse> RecordFeedback(
      const v1::RecordFeedbackRequest& request,
      const CallOptions& options = {}) const;
  // In bulk: `next` fills in a batch and returns true, false at the end, or an
  // error, which ends the call and is returned; batches sent so far stay. The
  // deadline is that of the whole.
  absl::StatusOr<v1::ImportFeedbackResponse> ImportFeedback(
      const std::function<absl::StatusOr<bool>(v1::ImportFeedbackRequest*)>&
          next,
      const CallOptions& options = {}) const;

  // Asks the standard health service; "" is the server as a whole. kNotFound
  // when it does not know `service`.
  absl::StatusOr<Health> CheckHealth(const std::string& service = "",
                                     const CallOptions& options = {}) const;

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

// The fully qualified name of the service, as health checks take it.
inline constexpr char kInferenceService[] = "vitrine.v1.InferenceService";
inline constexpr char kFeedbackService[] = "vitrine.v1.FeedbackService";

// When the server asks to be tried again: the RetryInfo of an error that a
// Client returned; none where it has none.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

// `policy` as a gRPC service config, in JSON.
std::string RetryServiceConfig(const RetryPolicy& policy);

}  // namespace vitrine
