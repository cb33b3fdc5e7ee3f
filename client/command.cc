#include "client/command.h"

#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<absl::Duration> ParseTimeout(const std::string& text) {
  absl::Duration timeout;
  double seconds;
  if (absl::SimpleAtod(text, &seconds)) {
    timeout = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &timeout)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no duration such as 500ms, 2s or 1m"));
  }
  if (timeout <= absl::ZeroDuration() || timeout == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not finite and positive"));
  }
  return timeout;
}

absl::StatusOr<ClientOptions> ResolveClientOptions(
    const GlobalOptions& globals) {
  ClientOptions options = globals.client;
  const absl::StatusOr<absl::Duration> timeout = ParseTimeout(globals.timeout);
  if (!timeout.ok()) return Annotate(timeout.status(), "--timeout");
  options.timeout = *timeout;
  if (!options.ca_file.empty() || !options.certificate_file.empty()) {
    options.tls = true;
  }
  return options;
}

absl::StatusOr<std::unique_ptr<Client>> NewClient(
    const GlobalOptions& globals) {
  ASSIGN_OR_RETURN(const ClientOptions options, ResolveClientOptions(globals));
  return Client::Create(options);
}

void PrintError(absl::string_view command, const absl::Status& status) {
  std::string line = absl::StrCat("vitrine ", command, ": ",
                                  absl::StatusCodeToString(status.code()), ": ",
                                  status.message());
  if (const auto delay = RetryDelay(status)) {
    absl::StrAppend(&line, " (try again in ", absl::FormatDuration(*delay),
                    ")");
  }
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", line.c_str());
}

ExitCode ExitCodeOf(const absl::Status& status) {
  return absl::IsUnavailable(status) ? kExitUnavailable : kExitCallFailed;
}

}  // namespace vitrine
