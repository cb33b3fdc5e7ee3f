// vitrine-server: see --help.

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>

#include "base/log.h"
#include "google/protobuf/stubs/logging.h"
#include "server/config.h"
#include "server/flags.h"
#include "server/server.h"
#include "server/version.h"

namespace vitrine {
namespace {

void SetUpLog(const internal::LogConfig& config) {
  SetLogFormat(config.format() == internal::LOG_FORMAT_JSON ? LogFormat::kJson
                                                            : LogFormat::kText);
  switch (config.level()) {
    case internal::LOG_LEVEL_DEBUG:
      return SetLogLevel(LogLevel::kDebug);
    case internal::LOG_LEVEL_WARNING:
      return SetLogLevel(LogLevel::kWarning);
    case internal::LOG_LEVEL_ERROR:
      return SetLogLevel(LogLevel::kError);
    default:
      return SetLogLevel(LogLevel::kInfo);
  }
}

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

void WaitForSignal() {
  const sigset_t signals = StopSignals();
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
}

int Main(int argc, char** argv) {
  CommandLine command = ParseCommandLine(argc, argv);
  if (command.exit_code.has_value()) {
    std::fputs(command.text.c_str(), *command.exit_code == 0 ? stdout : stderr);
    return *command.exit_code;
  }
  const absl::Status resolved = ResolveServerConfig(&command.config);
  if (!resolved.ok()) {
    std::fprintf(stderr, "%s\n", std::string(resolved.message()).c_str());
    return 1;
  }
  if (command.check) {
    std::puts("the configuration is valid");
    return 0;
  }
  SetUpLog(command.config.log());
  // Its parser tells of strings that are not UTF-8; those are answered.
  google::protobuf::SetLogHandler(nullptr);

  // Signals go to one thread, which every other thread inherits the mask for.
  signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::atomic<bool> started{false};
  std::atomic<bool> asked{false};
  std::thread watcher([&] {
    WaitForSignal();
    asked = true;
    asked.notify_all();
    // There is nothing to drain before the start; files are replaced whole.
    if (!started) _exit(0);
    WaitForSignal();
    Log(LogLevel::kWarning, "left_at_once");
    _exit(1);
  });
  watcher.detach();

  Log(LogLevel::kInfo, "starting",
      {{"version", kVersion}, {"registry", command.config.registry()}});
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start({.config = command.config});
  if (!server.ok()) {
    Log(LogLevel::kError, "start_failed", {{"error", server.status()}});
    std::fprintf(stderr, "vitrine-server: %s\n",
                 std::string(server.status().message()).c_str());
    return 1;
  }
  started = true;
  asked.wait(false);
  (*server)->Stop();
  server->reset();
  // The watcher still waits; no destructor may pull its feet away.
  _exit(0);
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) { return vitrine::Main(argc, argv); }
