#include "trainer/process_group.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#ifdef USE_C10D_GLOO
#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#endif

namespace vitrine {

absl::StatusOr<ProcessOptions> ProcessesOfEnvironment() {
  constexpr const char* kNames[] = {"RANK", "WORLD_SIZE", "MASTER_ADDR",
                                    "MASTER_PORT"};
  std::vector<std::string> values, set, missing;
  for (const char* const name : kNames) {
    const char* const value = std::getenv(name);
    const bool there = value != nullptr && *value != '\0';
    (there ? set : missing).push_back(name);
    values.push_back(there ? value : "");
  }
  ProcessOptions options;
  if (set.empty()) return options;
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(set, ", "), " in the environment without ",
                     absl::StrJoin(missing, ", "),
                     ": several processes need all four, one process none"));
  }
  const auto number = [&](int i, int min, int max, int* out) -> absl::Status {
    if (absl::SimpleAtoi(values[i], out) && *out >= min && *out <= max) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(kNames[i], " ", values[i],
                                                   ": no whole number from ",
                                                   min, " to ", max));
  };
  absl::Status status = number(1, 1, 4096, &options.size);
  if (status.ok()) status = number(0, 0, options.size - 1, &options.rank);
  if (status.ok()) status = number(3, 1, 65535, &options.port);
  if (!status.ok()) return status;
  options.address = values[2];
  return options;
}

#ifndef USE_C10D_GLOO

absl::StatusOr<std::unique_ptr<ProcessGroup>> ProcessGroup::Join(
    const ProcessOptions& options) {
  return absl::UnimplementedError(
      absl::StrCat("WORLD_SIZE ", options.size,
                   ": this program is built without Gloo, for one process"));
}

#else

namespace {

constexpr auto kBeat = std::chrono::seconds(1);
// Without a beat a process is gone.
constexpr auto kSilence = std::chrono::seconds(4);

std::vector<uint8_t> ToBytes(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string BeatKey(int rank) { return absl::StrCat("beat/", rank); }
std::string LeftKey(int rank) { return absl::StrCat("left/", rank); }

c10::intrusive_ptr<c10d::Store> OpenStore(const ProcessOptions& options,
                                          bool server) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(options.port);
  store.isServer = server;
  store.waitWorkers = false;
  store.timeout = std::chrono::milliseconds(
      static_cast<int64_t>(options.timeout_seconds * 1000));
  return c10::make_intrusive<c10d::TCPStore>(options.address, store);
}

// Says in the store, once a second, that this process is alive.
class Heart {
 public:
  // A connection of its own: calls on one wait for each other.
  explicit Heart(const ProcessOptions& options)
      : store_(OpenStore(options, /*server=*/false)),
        key_(BeatKey(options.rank)),
        thread_([this] { Beat(); }) {}
  ~Heart() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  void Beat() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
      try {
        store_->add(key_, 1);
      } catch (const std::exception&) {
        return;  // process 0 is gone: the next call finds that out
      }
      wake_.wait_for(lock, kBeat, [this] { return stop_; });
    }
  }

  const c10::intrusive_ptr<c10d::Store> store_;
  const std::string key_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

class C10dGroup : public ProcessGroup {
 public:
  explicit C10dGroup(const ProcessOptions& options) : options_(options) {}
  ~C10dGroup() override {
    heart_.reset();
#ifdef USE_C10D_NCCL
    nccl_.reset();
#endif
    gloo_.reset();
  }

  absl::Status Connect() {
    try {
      // torchrun's agent may have the store itself.
      const char* const agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
      const bool theirs = agent != nullptr && std::string(agent) == "True";
      store_ = OpenStore(options_, options_.rank == 0 && !theirs);
      heart_ = std::make_unique<Heart>(options_);
    } catch (const std::exception& e) {
      return absl::UnavailableError(absl::StrCat(
          options_.rank == 0 ? "listening at " : "no process 0 at ",
          options_.address, ":", options_.port, ": ", FirstLine(e)));
    }
    try {
      store_->set(absl::StrCat("came/", options_.rank), ToBytes("1"));
    } catch (const std::exception& e) {
      return Lost("joining", e);
    }
    for (int r = 0; r < size(); ++r) {
      try {
        store_->wait({absl::StrCat("came/", r)});
      } catch (const std::exception&) {
        return absl::UnavailableError(
            absl::StrCat("process ", r, " of ", size(), " has not come to ",
                         options_.address, ":", options_.port, " within ",
                         options_.timeout_seconds, " s"));
      }
    }
    try {
      auto options = c10d::ProcessGroupGloo::Options::create(timeout());
      options->devices.push_back(Device());
      gloo_ = c10::make_intrusive<c10d::ProcessGroupGloo>(
          c10::make_intrusive<c10d::PrefixStore>("gloo", store_), rank(),
          size(), options);
    } catch (const std::exception& e) {
      return Lost("connecting", e);
    }
    return absl::OkStatus();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  absl::Status Sum(const at::Tensor& values) override {
    try {
#ifdef USE_C10D_NCCL
      if (values.is_cuda()) {
        if (nccl_ == nullptr) ConnectGpus();
        std::vector<at::Tensor> tensors = {values};
        nccl_->allreduce(tensors)->wait();
        return absl::OkStatus();
      }
#endif
      std::vector<at::Tensor> tensors = {values.to(at::kCPU)};
      gloo_->allreduce(tensors)->wait();
      if (!values.is_cpu()) values.copy_(tensors[0]);
      return absl::OkStatus();
    } catch (const std::exception& e) {
      return Lost("adding up", e);
    }
  }
  absl::Status Sum(absl::Span<double> values) override {
    return Sum(at::from_blob(
        values.data(), {static_cast<int64_t>(values.size())}, at::kDouble));
  }

  absl::Status Copy(const at::Tensor& values) override {
    try {
      std::vector<at::Tensor> tensors = {values.to(at::kCPU)};
      gloo_->broadcast(tensors)->wait();
      if (!values.is_cpu()) values.copy_(tensors[0]);
      return absl::OkStatus();
    } catch (const std::exception& e) {
      return Lost("copying from process 0", e);
    }
  }

  absl::StatusOr<std::string> Share(const std::string& name,
                                    const std::string& value) override {
    try {
      const std::string key = absl::StrCat("share/", name);
      if (rank() == 0) {
        store_->set(key, ToBytes(value));
        return value;
      }
      WaitFor(key);
      const std::vector<uint8_t> bytes = store_->get(key);
      return std::string(bytes.begin(), bytes.end());
    } catch (const std::exception& e) {
      return Lost("waiting for process 0", e);
    }
  }

  void Leave(const absl::Status& why) override {
    try {
      store_->set(LeftKey(rank()), ToBytes(std::string(why.message())));
      // The store goes with process 0: the others are to read it before.
      const auto end = std::chrono::steady_clock::now() + 2 * kSilence;
      while (rank() == 0 && std::chrono::steady_clock::now() < end &&
             !AllOthersLeft()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    } catch (const std::exception&) {
      // There is nobody to tell.
    }
  }

 private:
  // LibTorch's messages go on with a stack.
  static std::string FirstLine(const std::exception& e) {
    const std::string text = e.what();
    return text.substr(0, text.find('\n'));
  }

  std::chrono::milliseconds timeout() const {
    return std::chrono::milliseconds(
        static_cast<int64_t>(options_.timeout_seconds * 1000));
  }

#ifdef USE_C10D_NCCL
  void ConnectGpus() {
    // To wait for sums, and no longer than for Gloo's, for Lost to tell who is
    // gone.
    setenv("TORCH_NCCL_BLOCKING_WAIT", "1", /*overwrite=*/0);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout();
    nccl_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        c10::make_intrusive<c10d::PrefixStore>("nccl", store_), rank(), size(),
        options);
  }
#endif

  // The way on which process 0 is reached, or what the caller wants.
  std::shared_ptr<::gloo::transport::Device> Device() const {
    const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
    if (interface != nullptr && *interface != '\0') {
      return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
    }
    if (options_.address == "localhost" || options_.address == "127.0.0.1") {
      return c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1");
    }
    return c10d::ProcessGroupGloo::createDefaultDevice();
  }

  // Until process 0 has set it, or has left, or is gone.
  void WaitFor(const std::string& key) {
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::duration<double>(options_.timeout_seconds);
    while (!store_->check({key})) {
      if (store_->check({LeftKey(0)})) throw std::runtime_error("it left");
      if (std::chrono::steady_clock::now() > end) {
        throw std::runtime_error("nothing came");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  bool AllOthersLeft() {
    for (int r = 0; r < size(); ++r) {
      if (r != rank() && !store_->check({LeftKey(r)})) return false;
    }
    return true;
  }

  std::vector<int64_t> Beats() {
    std::vector<int64_t> beats;
    for (int r = 0; r < size(); ++r)
      beats.push_back(store_->add(BeatKey(r), 0));
    return beats;
  }

  // Who is to blame for what failed.
  absl::Status Lost(const char* doing, const std::exception& e) {
    const std::string where =
        absl::StrCat("process ", rank(), " of ", size(), ", ", doing, ": ");
    try {
      const std::vector<int64_t> before = Beats();
      std::this_thread::sleep_for(kSilence);
      const std::vector<int64_t> after = Beats();
      std::vector<std::string> reasons;
      for (int r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        if (store_->check({LeftKey(r)})) {
          const std::vector<uint8_t> why = store_->get(LeftKey(r));
          reasons.push_back(absl::StrCat(
              "process ", r, " ended: ", std::string(why.begin(), why.end())));
        } else if (before[r] == after[r]) {
          reasons.push_back(absl::StrCat("process ", r, " is gone"));
        }
      }
      return absl::UnavailableError(
          absl::StrCat(where, reasons.empty() ? FirstLine(e)
                                              : absl::StrJoin(reasons, "; ")));
    } catch (const std::exception&) {
      return absl::UnavailableError(absl::StrCat(where, "process 0 at ",
                                                 options_.address, ":",
                                                 options_.port, " is gone"));
    }
  }

  const ProcessOptions options_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::unique_ptr<Heart> heart_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
#ifdef USE_C10D_NCCL
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> nccl_;  // null: not used yet
#endif
};

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessGroup>> ProcessGroup::Join(
    const ProcessOptions& options) {
  auto group = std::make_unique<C10dGroup>(options);
  const absl::Status connected = group->Connect();
  if (!connected.ok()) return connected;
  return group;
}

#endif  // USE_C10D_GLOO

}  // namespace vitrine
