#include "server/model_manager.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"
#include "server/thread_priority.h"

namespace vitrine {
namespace {

constexpr absl::Duration kFirstRetry = absl::Seconds(10);
constexpr absl::Duration kMaxRetry = absl::Minutes(5);

// Every method and head that the version can answer.
std::vector<VersionMetrics::Use> UsesOf(const ServableModel& model) {
  std::vector<VersionMetrics::Use> uses;
  const auto name = [&model](int head) { return model.heads()[head].name(); };
  std::vector<std::string> scoring;
  const int relevance = model.relevance_head();
  const int recommendation = model.recommendation_head();
  if (relevance >= 0) scoring.push_back(name(relevance));
  if (recommendation >= 0) scoring.push_back(name(recommendation));
  if (scoring.size() == 2) scoring.push_back(absl::StrJoin(scoring, "+"));
  for (const std::string& head : scoring) {
    uses.emplace_back(Method::kScore, head);
    uses.emplace_back(Method::kRank, head);
  }
  if (model.interest_head() >= 0) {
    uses.emplace_back(Method::kPredictInterests, name(model.interest_head()));
  }
  if (model.embedding_head() >= 0) {
    uses.emplace_back(Method::kEmbed, name(model.embedding_head()));
  }
  for (const internal::Head& head : model.heads()) {
    if (head.kind() == internal::HEAD_KIND_CLASSIFICATION) {
      uses.emplace_back(Method::kClassify, head.name());
    }
  }
  return uses;
}

}  // namespace

ModelManager::ModelManager(ModelManagerOptions options, Metrics& metrics)
    : options_(std::move(options)),
      registry_(options_.registry),
      metrics_(metrics) {}

ModelManager::~ModelManager() {
  StopActivations();
  if (thread_.joinable()) thread_.join();
}

absl::Status ModelManager::ResolveSlots() {
  slots_.clear();
  for (const internal::ModelConfig& model : options_.models) {
    Slot& slot = slots_.emplace_back();
    slot.name = model.name();
    slot.pinned_version = model.version();
    slot.automatic = model.activation() == internal::ACTIVATION_AUTOMATIC;
  }
  if (slots_.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names,
                     registry_.ListModels());
    if (names.empty()) {
      return absl::NotFoundError(
          absl::StrCat("registry ", registry_.root(), " holds no model"));
    }
    if (names.size() > 1 && options_.default_model.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("registry ", registry_.root(), " holds several models (",
                       absl::StrJoin(names, ", "), "): name those to serve"));
    }
    if (names.size() == 1) {
      slots_.emplace_back().name = names[0];
    } else {
      slots_.emplace_back().name = options_.default_model;
    }
  }
  if (options_.default_model.empty()) return absl::OkStatus();
  // The default goes first, where Pin and List look for it.
  const auto it = std::find_if(
      slots_.begin(), slots_.end(),
      [this](const Slot& slot) { return slot.name == options_.default_model; });
  if (it == slots_.end()) {
    return absl::NotFoundError(
        absl::StrCat("default_model ", options_.default_model,
                     " is not among the models to serve"));
  }
  std::rotate(slots_.begin(), it, it + 1);
  return absl::OkStatus();
}

absl::Status ModelManager::LoadAll() {
  RETURN_IF_ERROR(ResolveSlots());
  {
    MutexLock lock(mu_);
    served_.assign(slots_.size(), nullptr);
  }
  for (const Slot& slot : slots_) {
    metrics_.model_version(slot.name);
    metrics_.load_failures(slot.name);
    metrics_.swaps(slot.name);
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    RETURN_IF_ERROR(Annotate(LoadFirst(slots_[i], static_cast<int>(i)),
                             absl::StrCat("model ", slots_[i].name)));
  }
  MutexLock lock(mu_);
  ready_ = true;
  return absl::OkStatus();
}

absl::Status ModelManager::LoadFirst(Slot& slot, int index) {
  if (slot.pinned_version > 0) {
    return LoadAndSwap(slot, index, slot.pinned_version, /*quietly=*/false);
  }
  ASSIGN_OR_RETURN(std::vector<int64_t> versions,
                   registry_.ListVersions(slot.name));
  absl::StatusOr<int64_t> current = registry_.ReadCurrent(slot.name);
  if (!current.ok()) {
    Log(LogLevel::kError, "current_unreadable",
        {{"model", slot.name}, {"error", current.status()}});
    slot.current_error = current.status().ToString();
  }
  // Versions above CURRENT were never activated; they do not count as a way
  // out when that one is broken.
  const int64_t first = current.ok() ? *current : 0;
  std::sort(versions.rbegin(), versions.rend());
  if (first > 0) {
    versions.erase(std::remove_if(versions.begin(), versions.end(),
                                  [first](int64_t v) { return v >= first; }),
                   versions.end());
    versions.insert(versions.begin(), first);
  }
  if (versions.empty()) return absl::NotFoundError("it has no version");
  std::string errors;
  for (size_t i = 0; i < versions.size(); ++i) {
    const absl::Status status =
        LoadAndSwap(slot, index, versions[i], /*quietly=*/false);
    if (status.ok()) {
      if (i > 0) {
        Log(LogLevel::kError, "serving_older_version",
            {{"model", slot.name},
             {"wanted", versions[0]},
             {"serving", versions[i]}});
      }
      if (current.ok() && *current == 0) {
        const absl::Status written =
            registry_.WriteCurrent(slot.name, versions[i]);
        if (!written.ok()) {
          Log(LogLevel::kWarning, "current_not_written",
              {{"model", slot.name}, {"error", written}});
        }
      }
      if (i > 0 && first > 0) NoteFailure(slot, first);
      return absl::OkStatus();
    }
    absl::StrAppend(&errors, errors.empty() ? "" : "; ", status.message());
  }
  return absl::FailedPreconditionError(
      absl::StrCat("no version loads: ", errors));
}

absl::StatusOr<ModelManager::ServedPtr> ModelManager::Load(const Slot& slot,
                                                           int64_t version,
                                                           bool quietly) {
  Log(LogLevel::kInfo, "model_loading",
      {{"model", slot.name}, {"version", version}});
  const absl::Time start = options_.now();
  absl::StatusOr<std::shared_ptr<const ServableModel>> model =
      absl::UnknownError("not loaded");
  const auto load = [&] {
    ServableOptions servable = options_.servable;
    servable.engine.start_threads = false;
    model =
        options_.load(registry_.VersionFolder(slot.name, version), servable);
    if (model.ok() && options_.warm_up) {
      const absl::Status warm = options_.warm_up(**model);
      if (!warm.ok()) model = Annotate(warm, "warm-up");
    }
  };
  if (quietly) {
    std::thread([&load] {
      SetThreadName("model-loader");
      RunWhenIdle();
      load();
    }).join();
  } else {
    load();
  }
  const absl::Duration took = options_.now() - start;
  if (!model.ok()) {
    metrics_.load_failures(slot.name).Increment();
    Log(LogLevel::kError, "model_load_failed",
        {{"model", slot.name},
         {"version", version},
         {"error", model.status()}});
    return Annotate(model.status(), absl::StrCat("version ", version));
  }
  // Here and not by the loader: they are to have the priority of this thread.
  (*model)->engine().StartThreads();
  auto served = std::make_shared<ServedVersion>();
  served->name = slot.name;
  served->version = absl::StrCat(version);
  served->metrics = std::make_unique<VersionMetrics>(
      metrics_, slot.name, served->version, UsesOf(**model), took);
  served->model = *std::move(model);
  served->serving_since = options_.now();
  served->load_time = took;
  return served;
}

void ModelManager::Swap(Slot& slot, int index, ServedPtr served,
                        int64_t version) {
  metrics_.model_version(slot.name).Set(static_cast<double>(version));
  metrics_.swaps(slot.name).Increment();
  Log(LogLevel::kInfo, "model_serving",
      {{"model", slot.name},
       {"version", version},
       {"previous", slot.serving},
       {"seconds", absl::ToDoubleSeconds(served->load_time)},
       {"engine", served->model->engine().name()},
       {"device", served->model->engine().device()},
       {"dtype", served->model->engine().dtype()}});
  slot.serving = version;
  slot.failed = 0;
  {
    MutexLock lock(mu_);
    served_[index].swap(served);
  }
  if (served != nullptr) retired_.push_back(served);
}  // the old one may go here, outside the lock

absl::Status ModelManager::LoadAndSwap(Slot& slot, int index, int64_t version,
                                       bool quietly) {
  ASSIGN_OR_RETURN(ServedPtr served, Load(slot, version, quietly));
  Swap(slot, index, std::move(served), version);
  return absl::OkStatus();
}

absl::StatusOr<ModelManager::Activated> ModelManager::ActivateNow(
    Slot& slot, int index, int64_t version) {
  const absl::Time start = options_.now();
  ASSIGN_OR_RETURN(const std::vector<int64_t> versions,
                   registry_.ListVersions(slot.name));
  if (std::find(versions.begin(), versions.end(), version) == versions.end()) {
    return absl::NotFoundError(
        absl::StrCat("model ", slot.name, " has no version ", version));
  }
  if (slot.pinned_version > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("model ", slot.name, " is fixed to version ",
                     slot.pinned_version, " by the server's configuration"));
  }
  Activated activated;
  activated.version = version;
  activated.previous = slot.serving;
  ServedPtr served;
  if (version != slot.serving) {
    absl::StatusOr<ServedPtr> loaded = Load(slot, version, /*quietly=*/true);
    if (!loaded.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("model ", slot.name, ": ", loaded.status().message(),
                       "; version ", slot.serving, " goes on serving"));
    }
    served = *std::move(loaded);
  }
  {
    // Whoever waited has been told that nothing came of it.
    MutexLock lock(mu_);
    if (stopping_) return absl::UnavailableError("the server is stopping");
  }
  // Before the swap: when the disk is full, nothing has happened.
  const absl::Status written = registry_.WriteCurrent(slot.name, version);
  if (!written.ok()) {
    metrics_.load_failures(slot.name).Increment();
    Log(LogLevel::kError, "current_not_written",
        {{"model", slot.name}, {"version", version}, {"error", written}});
    return absl::FailedPreconditionError(absl::StrCat(
        "model ", slot.name, ": CURRENT cannot be written: ", written.message(),
        "; version ", slot.serving, " goes on serving"));
  }
  if (served != nullptr) Swap(slot, index, std::move(served), version);
  activated.took = options_.now() - start;
  return activated;
}

void ModelManager::NoteFailure(Slot& slot, int64_t version) {
  slot.retry_delay = slot.failed == version
                         ? std::min(2 * slot.retry_delay, kMaxRetry)
                         : kFirstRetry;
  slot.failed = version;
  slot.retry_at = options_.now() + slot.retry_delay;
}

void ModelManager::PollOnce() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.pinned_version > 0) continue;
    if (slot.automatic && options_.next_version) {
      ActivateNext(slot, static_cast<int>(i));
    }
    const absl::StatusOr<int64_t> current = registry_.ReadCurrent(slot.name);
    const std::string error =
        current.ok() ? std::string() : current.status().ToString();
    if (error != slot.current_error) {
      slot.current_error = error;
      if (!error.empty()) {
        Log(LogLevel::kError, "current_unreadable",
            {{"model", slot.name}, {"error", error}});
      }
    }
    if (!current.ok() || *current == 0 || *current == slot.serving) continue;
    // A version that did not load may be mended, or memory may have been
    // short: it is tried again, ever more rarely.
    if (*current == slot.failed && options_.now() < slot.retry_at) continue;
    const absl::Status status =
        LoadAndSwap(slot, static_cast<int>(i), *current, /*quietly=*/true);
    if (!status.ok()) {
      NoteFailure(slot, *current);
      Log(LogLevel::kError, "swap_failed",
          {{"model", slot.name},
           {"wanted", *current},
           {"serving", slot.serving},
           {"retry_seconds", absl::ToDoubleSeconds(slot.retry_delay)}});
    }
  }
}

void ModelManager::ActivateNext(Slot& slot, int index) {
  const int64_t version = options_.next_version(slot.name);
  if (version == 0) return;
  const absl::StatusOr<Activated> activated = ActivateNow(slot, index, version);
  if (!activated.ok()) {
    Log(LogLevel::kError, "activation_failed",
        {{"model", slot.name},
         {"version", version},
         {"error", activated.status()}});
    // Stopping is no fault of the version's: it is for the next start.
    if (absl::IsUnavailable(activated.status())) return;
  }
  if (options_.on_next_version) {
    options_.on_next_version(slot.name, version, activated.status());
  }
}

void ModelManager::TrimMemory() {
  bool gone = false;
  for (size_t i = 0; i < retired_.size();) {
    if (!retired_[i].expired()) {
      ++i;
      continue;
    }
    retired_.erase(retired_.begin() + static_cast<int64_t>(i));
    gone = true;
  }
  // The allocator keeps what is freed unless told.
  if (gone) malloc_trim(0);
}

absl::StatusOr<ModelManager::Activated> ModelManager::Activate(
    const std::string& model, int64_t version) {
  ASSIGN_OR_RETURN(const std::string name, ResolveName(model));
  const auto slot =
      std::find_if(slots_.begin(), slots_.end(),
                   [&name](const Slot& slot) { return slot.name == name; });
  const auto request = std::make_shared<Request>();
  request->index = static_cast<int>(slot - slots_.begin());
  request->version = version;
  MutexLock lock(mu_);
  if (stopping_) return absl::UnavailableError("the server is stopping");
  requests_.push_back(request);
  wake_.NotifyAll();
  while (!request->done && !stopping_) answered_.Wait(mu_);
  if (!request->done) return absl::UnavailableError("the server is stopping");
  return std::move(request->result);
}

void ModelManager::StopActivations() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  answered_.NotifyAll();
}

void ModelManager::StartPolling() {
  thread_ = std::thread([this] {
    SetThreadName("model-manager");
    Work();
  });
}

void ModelManager::Work() {
  const bool polls = options_.poll_interval >= absl::ZeroDuration();
  const auto interval = absl::ToChronoMilliseconds(options_.poll_interval);
  auto next_poll = std::chrono::steady_clock::now() + interval;
  while (true) {
    std::shared_ptr<Request> request;
    {
      MutexLock lock(mu_);
      while (!stopping_ && requests_.empty()) {
        if (!polls) {
          wake_.Wait(mu_);
        } else if (!wake_.WaitUntil(mu_, next_poll)) {
          break;  // it is time
        }
      }
      if (stopping_) return;
      if (!requests_.empty()) {
        request = requests_.front();
        requests_.pop_front();
      }
    }
    if (request != nullptr) {
      absl::StatusOr<Activated> result =
          ActivateNow(slots_[request->index], request->index, request->version);
      {
        MutexLock lock(mu_);
        request->result = std::move(result);
        request->done = true;
      }
      answered_.NotifyAll();
    } else {
      PollOnce();
      next_poll = std::chrono::steady_clock::now() + interval;
    }
    TrimMemory();
  }
}

absl::StatusOr<std::shared_ptr<const ServedVersion>> ModelManager::Pin(
    const v1::ModelSpec& spec) const {
  std::vector<std::string> names;
  MutexLock lock(mu_);
  if (!ready_) return absl::UnavailableError("no model is loaded yet");
  for (const ServedPtr& served : served_) {
    const bool named = spec.name().empty() ? names.empty()  // the first
                                           : spec.name() == served->name;
    if (named &&
        (spec.version().empty() || spec.version() == served->version)) {
      return served;
    }
    names.push_back(absl::StrCat(served->name, "/", served->version));
  }
  return absl::NotFoundError(absl::StrCat(
      "model: ", Quoted(spec.name().empty() ? served_[0]->name : spec.name()),
      spec.version().empty()
          ? ""
          : absl::StrCat(" version ", Quoted(spec.version())),
      " is not being served; these are: ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<std::string> ModelManager::ResolveName(
    const std::string& name) const {
  v1::ModelSpec spec;
  spec.set_name(name);
  ASSIGN_OR_RETURN(const ServedPtr served, Pin(spec));
  return served->name;
}

std::vector<std::shared_ptr<const ServedVersion>> ModelManager::List() const {
  MutexLock lock(mu_);
  if (!ready_) return {};
  return served_;
}

bool ModelManager::ready() const {
  MutexLock lock(mu_);
  return ready_;
}

}  // namespace vitrine
