// vitrine-server: see --help.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/openmp.h"
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

// A handler and a pipe, not blocked signals and sigwait: libraries start
// threads before main, and a signal that is blocked here would kill the
// process through one of those.
int g_signal_pipe[2] = {-1, -1};

void OnSignal(int) {
  const int saved = errno;
  (void)!write(g_signal_pipe[1], "s", 1);
  errno = saved;
}

bool CatchSignals() {
  if (pipe2(g_signal_pipe, O_CLOEXEC) != 0) return false;
  struct sigaction action = {};
  action.sa_handler = &OnSignal;
  action.sa_flags = SA_RESTART;
  signal(SIGPIPE, SIG_IGN);
  return sigaction(SIGTERM, &action, nullptr) == 0 &&
         sigaction(SIGINT, &action, nullptr) == 0;
}

void WaitForSignal() {
  char byte;
  while (read(g_signal_pipe[0], &byte, 1) != 1) {
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

  if (!CatchSignals()) {
    std::perror("vitrine-server: signals");
    return 1;
  }
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
  // Not destroyed: that would wait for a version that is just being loaded. The
  // watcher still waits, too, and uses what a return would destroy.
  std::fflush(nullptr);
  _exit(0);
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  vitrine::LimitOpenMpSpinning(argv);
  return vitrine::Main(argc, argv);
}
