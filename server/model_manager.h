#pragma once

// Owns the versions being served: loads them at the start, follows CURRENT in
// the registry, activates others when asked, swaps a new version in beside the
// old one.
//
// A call pins the version it began with; the old one is freed with the last
// call that pinned it. Pin, List and ready may be called from any thread.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "model/servable_model.h"
#include "server/metrics.h"
#include "store/model_registry.h"
#include "vitrine/internal/config.pb.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// One version in service under its name and number in the registry.
struct ServedVersion {
  std::string name;
  std::string version;  // "12"
  std::shared_ptr<const ServableModel> model;
  std::unique_ptr<const VersionMetrics> metrics;
  absl::Time serving_since;
  absl::Duration load_time;
};

struct ModelManagerOptions {
  std::string registry;
  std::vector<internal::ModelConfig> models;  // empty: the only one there is
  std::string default_model;                  // empty: the first
  ServableOptions servable;
  absl::Duration poll_interval = absl::Seconds(2);  // negative: never
  // Runs what callers ran lately on a version that is about to serve. May be
  // empty. On the loading thread.
  std::function<absl::Status(const ServableModel&)> warm_up;
  // Of the models whose activation is automatic, asked at each poll: the
  // version to activate, 0 for none; and told how that went. Empty: none.
  std::function<int64_t(const std::string& model)> next_version;
  std::function<void(const std::string& model, int64_t version,
                     const absl::Status& status)>
      on_next_version;
  // Replaced in tests.
  std::function<absl::StatusOr<std::shared_ptr<const ServableModel>>(
      const std::string& folder, const ServableOptions& options)>
      load = &ServableModel::Load;
  std::function<absl::Time()> now = &absl::Now;
};

class ModelManager {
 public:
  // `metrics` outlives the manager and every version that was pinned.
  ModelManager(ModelManagerOptions options, Metrics& metrics);
  ~ModelManager();  // joins the polling thread
  ModelManager(const ModelManager&) = delete;
  ModelManager& operator=(const ModelManager&) = delete;

  // Blocks until every model serves: the configured version, or else the one
  // that CURRENT names, or else the newest; of the latter two, the next older
  // one where it does not load. Writes CURRENT where there is none. An error
  // where a model has no version that loads.
  absl::Status LoadAll();

  // Begins to follow CURRENT and to activate, on a thread of its own. After
  // LoadAll.
  void StartPolling();
  // Activations that are waited for fail with kUnavailable, later ones too; one
  // that is under way loads to its end, and then nothing comes of it unless it
  // was just being written to CURRENT.
  void StopActivations();

  struct Activated {
    int64_t version = 0;
    int64_t previous = 0;
    absl::Duration took;
  };
  // Loads and checks `version` beside the one in service, writes CURRENT,
  // swaps. Blocking, for as long as a load takes; the caller's thread only
  // waits. `model` empty: the default. Any error leaves the old one serving:
  // kNotFound: no such model or version. kFailedPrecondition: the version is
  // fixed by the configuration, or does not load, or CURRENT cannot be written;
  // says why. kUnavailable: stopping.
  absl::StatusOr<Activated> Activate(const std::string& model, int64_t version);
  // One look at CURRENT of every model; what the polling thread does. Not at
  // the same time as that.
  void PollOnce();

  // kUnavailable before LoadAll; kNotFound lists what is served.
  absl::StatusOr<std::shared_ptr<const ServedVersion>> Pin(
      const v1::ModelSpec& spec) const;
  // `name`, or the default model's where it is empty. Errors as Pin's.
  absl::StatusOr<std::string> ResolveName(const std::string& name) const;
  // The default model first.
  std::vector<std::shared_ptr<const ServedVersion>> List() const;
  bool ready() const;

 private:
  using ServedPtr = std::shared_ptr<const ServedVersion>;

  // One model. The guarded pointer is in `served_` at the same index.
  struct Slot {
    std::string name;
    int64_t pinned_version = 0;  // by the configuration; 0: follow CURRENT
    bool automatic = false;      // activation
    // Only the thread that loads uses the rest.
    int64_t serving = 0;
    int64_t failed = 0;  // the version that did not load last
    absl::Duration retry_delay;
    absl::Time retry_at;
    std::string current_error;  // the last one logged
  };

  // Somebody waits for it in Activate.
  struct Request {
    int index = 0;  // of the slot
    int64_t version = 0;
    bool done = false;
    absl::StatusOr<Activated> result = Activated();
  };

  absl::Status ResolveSlots();
  absl::Status LoadFirst(Slot& slot, int index);
  // The version, ready to serve. On a thread of low priority where `quietly`.
  absl::StatusOr<ServedPtr> Load(const Slot& slot, int64_t version,
                                 bool quietly);
  void Swap(Slot& slot, int index, ServedPtr served, int64_t version);
  absl::Status LoadAndSwap(Slot& slot, int index, int64_t version,
                           bool quietly);
  absl::StatusOr<Activated> ActivateNow(Slot& slot, int index, int64_t version);
  void ActivateNext(Slot& slot, int index);
  void NoteFailure(Slot& slot, int64_t version);
  // Gives memory back once versions that left service are gone.
  void TrimMemory();
  void Work();

  const ModelManagerOptions options_;
  const ModelRegistry registry_;
  Metrics& metrics_;

  std::vector<Slot> slots_;  // fixed in LoadAll
  // Left service; some call may hold them still. Of the thread that loads.
  std::vector<std::weak_ptr<const ServedVersion>> retired_;

  mutable Mutex mu_;
  CondVar wake_;
  std::vector<ServedPtr> served_ ABSL_GUARDED_BY(mu_);  // null: not loaded yet
  bool ready_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  CondVar answered_;  // a request is done
  std::deque<std::shared_ptr<Request>> requests_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // last: it uses the rest
};

}  // namespace vitrine
