#pragma once

// The whole server in one object: models, threads, ports. One per process,
// several in tests.

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/model_manager.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

struct ServerOptions {
  internal::ServerConfig config;  // resolved: see config.h
  // Replaced in tests.
  decltype(ModelManagerOptions::load) load = &ServableModel::Load;
};

class Server {
 public:
  virtual ~Server() = default;  // as Stop

  // Binds the ports, then loads the models, then reports SERVING and writes
  // the port file. Calls that come before are answered kUnavailable. Blocking.
  // kFailedPrecondition names an address that cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options);

  // What was bound; 0 where there is no such listener.
  virtual int port() const = 0;
  virtual int metrics_port() const = 0;
  virtual int admin_port() const = 0;
  virtual ModelManager& models() = 0;
  virtual Metrics& metrics() = 0;

  // Reports NOT_SERVING, takes no more calls, lets those in flight end within
  // drain_timeout, cancels the rest. Blocking; once. A version that is being
  // loaded meanwhile holds up the destructor, not this.
  virtual void Stop() = 0;
};

}  // namespace vitrine
