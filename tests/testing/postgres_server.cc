#include "tests/testing/postgres_server.h"

#include <fcntl.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine::testing {
namespace {

namespace fs = std::filesystem;

constexpr char kInstalled[] = "/usr/lib/postgresql";
constexpr absl::Duration kPatience = absl::Seconds(60);

// The newest version's folder of programs.
std::string FindBinaries() {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(kInstalled, ignored)) {
    const fs::path folder = entry.path() / "bin";
    if (fs::exists(folder / "initdb", ignored)) found.push_back(folder);
  }
  std::sort(found.begin(), found.end());
  return found.empty() ? "" : found.back();
}

// Whom the server runs as where we are root; null otherwise, or where there is
// nobody.
const passwd* ServerUser() {
  if (geteuid() != 0) return nullptr;
  const passwd* const postgres = getpwnam("postgres");
  return postgres != nullptr ? postgres : getpwnam("nobody");
}

// Runs a program as ServerUser(), its output appended to `log`.
pid_t Spawn(const std::vector<std::string>& command, const std::string& log) {
  const passwd* const user = ServerUser();
  const pid_t parent = getpid();
  std::vector<char*> argv;
  for (const std::string& word : command) {
    argv.push_back(const_cast<char*>(word.c_str()));
  }
  argv.push_back(nullptr);
  const int output =
      open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const pid_t child = fork();
  if (child != 0) {
    close(output);
    return child;
  }
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  if (user != nullptr && (setgid(user->pw_gid) != 0 ||
                          setuid(user->pw_uid) != 0 || chdir("/") != 0)) {
    _exit(126);
  }
  // After the change of user, which would undo it.
  prctl(PR_SET_PDEATHSIG, SIGQUIT);
  if (getppid() != parent) _exit(125);
  execv(argv[0], argv.data());
  _exit(127);
}

std::string Log(const std::string& folder) {
  return ReadFile(JoinPath(folder, "log")).value_or("");
}

}  // namespace

absl::StatusOr<std::unique_ptr<PostgresServer>> PostgresServer::Start() {
  const std::string binaries = FindBinaries();
  if (binaries.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "PostgreSQL is not installed: nothing in ", kInstalled, "/*/bin"));
  }
  // Not TempDir(): a socket's path has at most 107 bytes.
  std::string folder = "/tmp/vitrine-postgres-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::InternalError("cannot make a folder in /tmp");
  }
  std::unique_ptr<PostgresServer> server(new PostgresServer(binaries, folder));
  if (const passwd* const user = ServerUser();
      user != nullptr &&
      chown(folder.c_str(), user->pw_uid, user->pw_gid) != 0) {
    return absl::InternalError(absl::StrCat("cannot give away ", folder));
  }
  const pid_t initdb =
      Spawn({JoinPath(binaries, "initdb"), "-D", JoinPath(folder, "data"), "-U",
             "vitrine", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"},
            JoinPath(folder, "log"));
  int status = -1;
  waitpid(initdb, &status, 0);
  if (status != 0) {
    return absl::InternalError(absl::StrCat("initdb: ", Log(folder)));
  }
  RETURN_IF_ERROR(server->StartAgain());
  return server;
}

absl::Status PostgresServer::StartAgain() {
  process_ =
      Spawn({JoinPath(binaries_, "postgres"), "-D", JoinPath(folder_, "data"),
             "-k", folder_, "-c", "listen_addresses=", "-c", "fsync=off", "-c",
             "full_page_writes=off", "-c", "shared_buffers=32MB"},
            JoinPath(folder_, "log"));
  const absl::Time deadline = absl::Now() + kPatience;
  while (PQping(Address("postgres").c_str()) != PQPING_OK) {
    if (absl::Now() > deadline || waitpid(process_, nullptr, WNOHANG) != 0) {
      return absl::InternalError(
          absl::StrCat("PostgreSQL does not start: ", Log(folder_)));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

void PostgresServer::Stop() {
  if (process_ <= 0) return;
  kill(process_, SIGINT);  // ends connections, rolls back, writes a checkpoint
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

PostgresServer::~PostgresServer() {
  if (process_ > 0) {
    kill(process_, SIGQUIT);  // at once: nothing of it is needed
    waitpid(process_, nullptr, 0);
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

std::string PostgresServer::Address(const std::string& database) const {
  return absl::StrCat("postgresql://vitrine@/", database, "?host=", folder_);
}

absl::StatusOr<std::string> PostgresServer::NewDatabase() {
  const std::string name = absl::StrCat("test", ++databases_);
  PGconn* const connection = PQconnectdb(Address("postgres").c_str());
  PGresult* const result =
      PQexec(connection, absl::StrCat("create database ", name).c_str());
  const bool made = PQresultStatus(result) == PGRES_COMMAND_OK;
  const std::string error = PQerrorMessage(connection);
  PQclear(result);
  PQfinish(connection);
  if (!made) return absl::InternalError(error);
  return Address(name);
}

}  // namespace vitrine::testing
