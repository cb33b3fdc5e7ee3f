#pragma once

// vitrine-server's command line.

#include <optional>
#include <string>

#include "vitrine/internal/config.pb.h"

namespace vitrine {

struct CommandLine {
  // Set where there is nothing more to do: 0 after --help and --version, 1
  // after a mistake; `text` is for standard output or standard error.
  std::optional<int> exit_code;
  std::string text;

  // The file's configuration with the flags over it, not resolved yet.
  internal::ServerConfig config;
  bool check = false;
};

CommandLine ParseCommandLine(int argc, const char* const* argv);

}  // namespace vitrine
