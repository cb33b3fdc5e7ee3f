// vitrine: asks a Vitrine server from the command line.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "client/command.h"

namespace vitrine {
namespace {

constexpr char kFooter[] = R"(Exit codes:
  0  done
  1  a call failed
  2  a wrong option, or input that cannot be read
  3  the server cannot be reached, or does not serve
  4  done, but some items have errors of their own

Examples:
  vitrine status
  vitrine rank -q "red sofa" "Two-seat couch, crimson" "Oak coffee table"
  vitrine rank -q "red sofa" --items items.jsonl --top-k 10 --json
  vitrine interests "Running shoes" "Yoga mat"
  vitrine label import judgements.jsonl --items items.jsonl
  vitrine --token-file token train start --watch
  vitrine --token-file token model activate 12
  vitrine bench -c 8 --queries queries.txt --items items.jsonl

Each command has its own --help with more.)";

int Main(int argc, char** argv) {
  CLI::App app(
      "Asks a Vitrine server: rank, score, interests, embeddings, "
      "labels; stores feedback, trains and activates versions; and puts load "
      "on one.");
  app.name("vitrine");
  app.footer(kFooter);
  app.fallthrough();  // global options also after the command's name
  app.require_subcommand(1);
  app.get_formatter()->column_width(32);
  // An option given twice, as an alias and its user may: the last counts.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);

  GlobalOptions globals;
  app.add_option("--target", globals.client.target, "The server, host:port")
      ->envname("VITRINE_TARGET")
      ->capture_default_str();
  app.add_option("--timeout", globals.timeout,
                 "For each call, tries included: 500ms, 2s, 1m")
      ->capture_default_str();
  app.add_flag("--json", globals.json, "JSON, one line an answer");
  app.add_option("--model", globals.model,
                 "The model's name (default: the server's default)");
  app.add_option("--model-version", globals.model_version,
                 "Its version (default: the one in service)");
  app.add_flag("--tls", globals.client.tls, "Encrypt");
  app.add_option("--ca", globals.client.ca_file,
                 "Trust this CA, PEM (default: the system's); implies --tls")
      ->type_name("FILE");
  app.add_option("--cert", globals.client.certificate_file,
                 "The client's certificate, PEM; with --key; implies --tls")
      ->type_name("FILE");
  app.add_option("--key", globals.client.key_file, "Its key, PEM")
      ->type_name("FILE");
  app.add_option("--server-name", globals.client.server_name,
                 "The name in the server's certificate, if not the target's");
  app.add_flag("--compress", globals.client.compress,
               "Compress requests (gzip)");
  app.set_version_flag("--version", VITRINE_VERSION);

  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  int exit_code = kExitOk;
  AddInferenceCommands(app, globals, &exit_code);
  AddTokenizeCommand(app, globals, &exit_code);
  AddStatusCommand(app, globals, &exit_code);
  AddLabelCommand(app, globals, &exit_code);
  AddAdminCommands(app, globals, &exit_code);
  AddBenchCommand(app, globals, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are "errors" with code 0.
    if (error.get_exit_code() == 0) return app.exit(error);
    if (app.get_subcommands().empty() && app.remaining_size() > 0) {
      std::fprintf(stderr, "vitrine: no command \"%s\"; see vitrine --help\n",
                   app.remaining().front().c_str());
    } else {
      app.exit(error);
    }
    return kExitUsage;
  }
  // A full disk or a closed pipe is no success.
  if (std::fflush(stdout) != 0 && exit_code == kExitOk) return kExitCallFailed;
  return exit_code;
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) { return vitrine::Main(argc, argv); }
