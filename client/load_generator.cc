#include "client/load_generator.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <random>
#include <thread>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "client/channel.h"

namespace vitrine {
namespace {

constexpr int64_t kSecondNs = 1000000000;
constexpr int64_t kTickNs = kSecondNs / 10;
constexpr int64_t kForever = int64_t{1} << 62;

// Monotonic nanoseconds.
int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kSecondNs + now.tv_nsec;
}

void SleepUntil(int64_t time_ns) {
  const timespec until = {time_ns / kSecondNs, time_ns % kSecondNs};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) ==
         EINTR) {
  }
}

double ProcessorSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + t.tv_usec * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

template <typename Rows>
int CountErrors(const Rows& rows) {
  return static_cast<int>(
      std::count_if(rows.begin(), rows.end(),
                    [](const auto& row) { return row.has_error(); }));
}
int ItemErrors(const v1::ScoreResponse& r) { return CountErrors(r.items()); }
int ItemErrors(const v1::RankResponse& r) { return CountErrors(r.items()); }
int ItemErrors(const v1::PredictInterestsResponse&) { return 0; }
int ItemErrors(const v1::EmbedResponse& r) {
  return CountErrors(r.embeddings());
}
int ItemErrors(const v1::ClassifyResponse& r) {
  return CountErrors(r.results());
}

// What the report wants of an answer.
struct Answer {
  int item_errors = 0;
  v1::Timings timings;
  v1::ModelVersion model;
};
using Reader = absl::Status (*)(grpc::ByteBuffer*, Answer*);

template <typename Response>
absl::Status ReadAnswer(grpc::ByteBuffer* bytes, Answer* answer) {
  Response response;
  RETURN_IF_ERROR(ToAbslStatus(
      grpc::SerializationTraits<Response>::Deserialize(bytes, &response)));
  answer->item_errors = ItemErrors(response);
  answer->timings.Swap(response.mutable_timings());
  answer->model.Swap(response.mutable_model());
  return absl::OkStatus();
}

Reader ReaderOf(const google::protobuf::MethodDescriptor& method) {
  const google::protobuf::Descriptor* const type = method.output_type();
  if (type == v1::ScoreResponse::descriptor()) {
    return &ReadAnswer<v1::ScoreResponse>;
  }
  if (type == v1::RankResponse::descriptor()) {
    return &ReadAnswer<v1::RankResponse>;
  }
  if (type == v1::PredictInterestsResponse::descriptor()) {
    return &ReadAnswer<v1::PredictInterestsResponse>;
  }
  if (type == v1::EmbedResponse::descriptor()) {
    return &ReadAnswer<v1::EmbedResponse>;
  }
  return &ReadAnswer<v1::ClassifyResponse>;
}

struct Prepared {
  std::string path;
  grpc::ByteBuffer bytes;
  int items;
  Reader reader;
};

struct Call {
  const Prepared* prepared;
  int64_t due_ns;
  int64_t sent_ns;
  grpc::ClientContext context;
  grpc::ByteBuffer response;
  grpc::Status status;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
};

// Run's thread starts the closed loop's calls and takes every answer; in the
// open loop a second thread, the pacer, starts calls.
class LoadGeneratorImpl : public LoadGenerator {
 public:
  LoadGeneratorImpl(LoadOptions options, std::vector<Prepared> prepared,
                    std::vector<std::shared_ptr<grpc::Channel>> channels)
      : options_(std::move(options)),
        prepared_(std::move(prepared)),
        channels_(std::move(channels)) {
    for (const auto& channel : channels_) {
      stubs_.push_back(std::make_unique<grpc::GenericStub>(channel));
    }
  }

  ~LoadGeneratorImpl() override {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  absl::StatusOr<LoadReport> Run(
      const std::function<bool()>& stop,
      const std::function<void(const LoadProgress&)>& progress) override {
    RETURN_IF_ERROR(Connect());
    const int64_t start = Now();
    window_start_ = start + absl::ToInt64Nanoseconds(options_.warmup);
    window_end_ =
        options_.max_calls > 0
            ? kForever
            : window_start_ + absl::ToInt64Nanoseconds(options_.duration);
    std::thread pacer;
    if (open_loop()) {
      pacing_ = true;
      pacer = std::thread([this, start] { Pace(start); });
    } else {
      for (int i = 0; i < options_.callers; ++i) StartNext(Now());
    }
    Collect(stop, progress);
    if (pacer.joinable()) pacer.join();
    Summarize();
    return std::move(report_);
  }

 private:
  bool open_loop() const { return options_.rate > 0; }

  absl::Status Connect() {
    const auto deadline =
        absl::ToChronoTime(absl::Now() + options_.client.timeout);
    for (const auto& channel : channels_) {
      if (!channel->WaitForConnected(deadline)) {
        return absl::UnavailableError(
            absl::StrCat(options_.client.target, ": no connection within ",
                         absl::FormatDuration(options_.client.timeout)));
      }
    }
    return absl::OkStatus();
  }

  // Whether a call due at `due_ns` belongs to the run; counts it if so.
  bool Claim(int64_t due_ns) {
    if (stopped_ || due_ns >= window_end_) return false;
    if (due_ns < window_start_) return true;
    if (options_.max_calls > 0 && claimed_ == options_.max_calls) return false;
    ++claimed_;
    return true;
  }

  void StartNext(int64_t now) {
    if (Claim(now)) Start(now);
  }

  void Start(int64_t due_ns) {
    const int64_t n = started_++;
    auto owned = std::make_unique<Call>();
    Call* const call = owned.get();
    call->prepared = &prepared_[n % prepared_.size()];
    call->due_ns = due_ns;
    call->context.set_deadline(
        absl::ToChronoTime(absl::Now() + options_.client.timeout));
    // Without a connection, wait for one: failing at once, a closed loop would
    // spin.
    call->context.set_wait_for_ready(true);
    call->reader = stubs_[n % stubs_.size()]->PrepareUnaryCall(
        &call->context, call->prepared->path, call->prepared->bytes, &queue_);
    {
      MutexLock lock(mu_);
      outstanding_.insert(owned.release());
    }
    call->sent_ns = Now();
    call->reader->StartCall();
    call->reader->Finish(&call->response, &call->status, call);
    // The answer may be in by now, and the call gone.
  }

  void Pace(int64_t start) {
    std::mt19937_64 random(options_.seed);
    std::exponential_distribution<double> exponential(1);
    const double mean_gap_ns = 1e9 / options_.rate;
    double due = static_cast<double>(start);
    while (true) {
      due += mean_gap_ns * (options_.poisson ? exponential(random) : 1);
      const int64_t due_ns = static_cast<int64_t>(due);
      // In short naps, so that a stop does not wait for a slow rate.
      for (int64_t now = Now(); now < due_ns && !stopped_; now = Now()) {
        SleepUntil(std::min(due_ns, now + kTickNs));
      }
      if (!Claim(due_ns)) break;
      if (WaitForRoom()) {
        Start(due_ns);
      } else {
        ++not_started_;
      }
    }
    pacing_ = false;
  }

  // False when there is none before the run ends.
  bool WaitForRoom() {
    MutexLock lock(mu_);
    while (static_cast<int>(outstanding_.size()) >= options_.max_outstanding) {
      if (stopped_ || Now() >= window_end_) return false;
      room_.WaitUntil(mu_, std::chrono::steady_clock::now() +
                               std::chrono::nanoseconds(kTickNs));
    }
    return !stopped_;
  }

  // Until every call is answered and none is to come.
  void Collect(const std::function<bool()>& stop,
               const std::function<void(const LoadProgress&)>& progress) {
    bool warm = false;
    double processor_start = ProcessorSeconds();
    int64_t processor_start_ns = Now();
    int64_t next_tick = 0;
    int64_t next_progress = Now() + kSecondNs;
    while (!Done()) {
      void* tag;
      bool ok;
      const auto event = queue_.AsyncNext(
          &tag, &ok,
          std::chrono::system_clock::now() + std::chrono::nanoseconds(kTickNs));
      const int64_t now = Now();
      if (event == grpc::CompletionQueue::GOT_EVENT) {
        const std::unique_ptr<Call> call(static_cast<Call*>(tag));
        {
          MutexLock lock(mu_);
          outstanding_.erase(call.get());
        }
        // The next call first: reading this answer is no part of it.
        if (open_loop()) {
          room_.NotifyOne();
        } else {
          StartNext(now);
        }
        Record(call.get(), now);
      }
      if (now < next_tick) continue;
      next_tick = now + kTickNs;
      if (!warm && now >= window_start_) {
        warm = true;
        processor_start = ProcessorSeconds();
        processor_start_ns = now;
      }
      if (!stopped_ && stop()) Cancel(now);
      if (progress != nullptr && now >= next_progress) {
        next_progress += kSecondNs;
        Report(now, progress);
      }
    }
    const int64_t elapsed = std::max<int64_t>(1, Now() - processor_start_ns);
    report_.client_cores =
        (ProcessorSeconds() - processor_start) / (elapsed * 1e-9);
  }

  bool Done() {
    if (pacing_) return false;
    MutexLock lock(mu_);
    return outstanding_.empty();
  }

  void Cancel(int64_t now) {
    stopped_ = true;
    window_end_ = std::min<int64_t>(window_end_, now);
    MutexLock lock(mu_);
    for (Call* const call : outstanding_) call->context.TryCancel();
  }

  void Record(Call* call, int64_t now) {
    absl::Status status = ToAbslStatus(call->status);
    if (stopped_ && absl::IsCancelled(status)) return;
    Answer answer;
    if (status.ok()) status = call->prepared->reader(&call->response, &answer);
    last_answer_ = now;
    const bool measured = call->due_ns >= window_start_;
    if (!status.ok()) {
      if (!measured) return;
      ++report_.errors[status.code()];
      ++errors_;
      if (report_.first_error.ok()) report_.first_error = status;
      return;
    }
    const int64_t inside = std::min<int64_t>(now, window_end_) -
                           std::max(call->sent_ns, window_start_);
    if (inside > 0) {
      const double share = static_cast<double>(inside) /
                           static_cast<double>(now - call->sent_ns);
      report_.calls += share;
      report_.items += share * call->prepared->items;
    }
    if (!measured) return;
    ++report_.ok;
    report_.latency.Add(absl::Nanoseconds(now - call->due_ns));
    if (open_loop()) {
      report_.start_lag.Add(absl::Nanoseconds(call->sent_ns - call->due_ns));
    }
    report_.item_errors += answer.item_errors;
    report_.server_queue += FromProtoDuration(answer.timings.queue());
    report_.server_tokenize += FromProtoDuration(answer.timings.tokenize());
    report_.server_compute += FromProtoDuration(answer.timings.compute());
    report_.server_total += FromProtoDuration(answer.timings.total());
    report_.model_name = answer.model.name();
    report_.model_version = answer.model.version();
  }

  void Report(int64_t now,
              const std::function<void(const LoadProgress&)>& progress) {
    const double seconds = (now - window_start_) * 1e-9;
    LoadProgress state;
    state.elapsed = absl::Seconds(seconds);
    state.ok = report_.ok;
    state.errors = errors_;
    state.calls_per_second = seconds > 0 ? report_.calls / seconds : 0;
    state.p50 = report_.latency.Quantile(0.5);
    state.p99 = report_.latency.Quantile(0.99);
    progress(state);
  }

  void Summarize() {
    const int64_t end =
        window_end_ == kForever ? last_answer_ : window_end_.load();
    report_.window =
        absl::Nanoseconds(std::max<int64_t>(0, end - window_start_));
    report_.not_started = not_started_;
    if (report_.ok == 0) return;
    report_.server_queue /= report_.ok;
    report_.server_tokenize /= report_.ok;
    report_.server_compute /= report_.ok;
    report_.server_total /= report_.ok;
  }

  const LoadOptions options_;
  const std::vector<Prepared> prepared_;
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  int64_t window_start_ = 0;  // set before the pacer starts

  grpc::CompletionQueue queue_;
  std::atomic<int64_t> window_end_{0};
  std::atomic<bool> stopped_{false};
  std::atomic<bool> pacing_{false};

  // Of the thread that starts calls.
  int64_t claimed_ = 0;
  int64_t started_ = 0;
  int64_t not_started_ = 0;

  // Of Run's thread.
  LoadReport report_;
  int64_t errors_ = 0;
  int64_t last_answer_ = 0;

  Mutex mu_;
  CondVar room_;
  std::unordered_set<Call*> outstanding_ ABSL_GUARDED_BY(mu_);
};

absl::Status CheckOptions(const LoadOptions& options) {
  const auto between = [](absl::string_view name, double value, double low,
                          double high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", value, " is not between ", low, " and ", high));
  };
  RETURN_IF_ERROR(between("connections", options.connections, 1, 256));
  RETURN_IF_ERROR(between("callers", options.callers, 1, 1 << 16));
  RETURN_IF_ERROR(between("rate", options.rate, 0, 1e6));
  RETURN_IF_ERROR(
      between("max_outstanding", options.max_outstanding, 1, 1 << 20));
  RETURN_IF_ERROR(
      between("warmup", absl::ToDoubleSeconds(options.warmup), 0, 86400));
  RETURN_IF_ERROR(between("duration", absl::ToDoubleSeconds(options.duration),
                          0.001, 86400 * 7));
  return between("max_calls", static_cast<double>(options.max_calls), 0, 1e12);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadGenerator>> NewLoadGenerator(
    const std::vector<AnyRequest>& requests, const LoadOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (requests.empty()) return absl::InvalidArgumentError("no requests");
  std::vector<Prepared> prepared(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    const google::protobuf::MethodDescriptor& method = *requests[i].method;
    const std::string bytes = requests[i].message->SerializeAsString();
    const grpc::Slice slice(bytes.data(), bytes.size());
    prepared[i].path =
        absl::StrCat("/", method.service()->full_name(), "/", method.name());
    prepared[i].bytes = grpc::ByteBuffer(&slice, 1);
    prepared[i].items = ItemsOf(*requests[i].message);
    prepared[i].reader = ReaderOf(method);
  }
  std::vector<std::shared_ptr<grpc::Channel>> channels(options.connections);
  for (std::shared_ptr<grpc::Channel>& channel : channels) {
    ASSIGN_OR_RETURN(channel, NewChannel(options.client));
  }
  return std::unique_ptr<LoadGenerator>(std::make_unique<LoadGeneratorImpl>(
      options, std::move(prepared), std::move(channels)));
}

int ItemsOf(const google::protobuf::Message& request) {
  const google::protobuf::Reflection& reflection = *request.GetReflection();
  int items = 0;
  for (const char* name : {"items", "texts"}) {
    const google::protobuf::FieldDescriptor* const field =
        request.GetDescriptor()->FindFieldByName(name);
    if (field != nullptr) items += reflection.FieldSize(request, field);
  }
  return std::max(items, 1);  // a history is one
}

}  // namespace vitrine
