#include "server/flags.h"

#include <CLI/CLI.hpp>
#include <map>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/proto_duration.h"
#include "base/textproto.h"
#include "server/grpc_status.h"
#include "server/version.h"

namespace vitrine {
namespace {

constexpr char kDescription[] =
    R"(Serves fine-tuned BERT models over gRPC: scores and ranks products against a
query and a shopper's history, predicts interests, embeds and classifies texts.

The configuration is a textproto file (--config); each flag below overrides the
field named in brackets. Without a file, --registry alone is enough.)";

constexpr char kFooter[] = R"(
CONFIGURATION
  All fields with their defaults are described in
  proto/vitrine/internal/config.proto. A small one:

      registry: "/var/lib/vitrine/models"
      models { name: "shop" }
      listen: "0.0.0.0:8500"
      metrics_listen: "0.0.0.0:9500"
      engine { dtype: DTYPE_BF16 }
      limits { max_items: 500 default_deadline { seconds: 5 } }

  The whole is checked before anything starts, and every error is listed.

PORTS
  gRPC (--listen): vitrine.v1.InferenceService and FeedbackService,
  grpc.health.v1.Health for "" and the services' names, and server reflection.
  gRPC (--admin-listen; off unless given): vitrine.v1.AdminService, for callers
  with the token of --admin-token-file, health and reflection. HTTP
  (--metrics-listen): /metrics for Prometheus. Port 0 picks a free one;
  --port-file tells which.

VERSIONS
  A model serves the version its configuration names, or else the one in
  REGISTRY/MODEL/CURRENT, or else the newest that loads, which is then written
  to CURRENT. A change of CURRENT is noticed within --poll-interval: the new
  version is loaded beside the old one and swapped in; one that does not load
  leaves the old one serving. AdminService activates a version and rolls back;
  with "activation: ACTIVATION_AUTOMATIC" in the model's configuration the server
  activates what a training job publishes.

LEARNING
  With --store, FeedbackService keeps labels in a database, and AdminService
  queues training jobs there, which `vitrine-trainer work` does. An SQLite file
  is made where there is none.

SIGNALS
  SIGTERM, SIGINT  report NOT_SERVING, take no more calls, let those in flight
                   end within --drain-timeout, exit 0
  a second one     leave at once, exit 1

EXIT STATUS
  0  stopped by a signal; --check found no error
  1  a mistake in the command line or the configuration, an address in use, a
     model that does not load, or a second signal

EXAMPLES
  vitrine-server --registry models
  vitrine-server --config /etc/vitrine/server.textproto --check
  vitrine-server --registry models --model shop:12 --listen 127.0.0.1:0 \
      --port-file /tmp/ports
  vitrine-server --registry models --store sqlite:/var/lib/vitrine/store.db \
      --admin-listen 127.0.0.1:8501 --admin-token-file /etc/vitrine/admin.token
)";

// "20s", "500ms", "1m30s".
std::string SetDuration(absl::string_view flag, const std::string& text,
                        google::protobuf::Duration* out) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) ||
      duration == absl::InfiniteDuration() ||
      duration == -absl::InfiniteDuration()) {
    return absl::StrCat("--", flag, ": \"", text,
                        "\" is not a duration such as 20s or 500ms\n");
  }
  *out = ToProtoDuration(duration);
  return "";
}

// "name" or "name:version".
std::string SetModels(const std::vector<std::string>& models,
                      internal::ServerConfig* config) {
  std::string errors;
  if (!models.empty()) config->clear_models();
  for (const std::string& text : models) {
    internal::ModelConfig& model = *config->add_models();
    const size_t colon = text.find(':');
    model.set_name(text.substr(0, colon));
    int64_t version = 0;
    if (colon != std::string::npos &&
        (!absl::SimpleAtoi(text.substr(colon + 1), &version) || version <= 0)) {
      absl::StrAppend(&errors, "--model: \"", text,
                      "\" is not NAME or NAME:VERSION\n");
    }
    model.set_version(version);
  }
  return errors;
}

}  // namespace

CommandLine ParseCommandLine(int argc, const char* const* argv) {
  CommandLine out;
  CLI::App app(kDescription, "vitrine-server");
  app.footer(kFooter);
  app.set_version_flag("--version", absl::StrCat("vitrine-server ", kVersion));
  app.get_formatter()->column_width(34);

  std::string config_file, registry, default_model, listen, metrics_listen,
      port_file, certificate, key, client_ca, drain_timeout, poll_interval,
      store, admin_listen, admin_token_file;
  std::vector<std::string> fields, models;
  internal::Device device = internal::DEVICE_AUTO;
  internal::Dtype dtype = internal::DTYPE_AUTO;
  internal::EngineKind engine = internal::ENGINE_KIND_AUTO;
  internal::LogLevelConfig log_level = internal::LOG_LEVEL_INFO;
  internal::LogFormatConfig log_format = internal::LOG_FORMAT_TEXT;
  int batch_threads = 0, inner_threads = 0, pool_threads = 0,
      max_batch_tokens = 0, max_queue_tokens = 0, max_concurrent_calls = 0;

  const auto add = [&app](const char* name, auto& value, const char* help,
                          const char* type) {
    return app.add_option(name, value, help)->type_name(type);
  };
  const auto choice = [&app](const char* name, auto& value, const char* help,
                             auto map, const char* type) {
    return app.add_option(name, value, help)
        ->transform(
            CLI::CheckedTransformer(map, CLI::ignore_case).description(""))
        ->type_name(type);
  };

  add("-c,--config", config_file, "The configuration, a textproto file",
      "FILE");
  add("--set", fields,
      "Any field, written as in the file, on top of it: --set \"limits { "
      "max_items: 50 }\"; may be repeated",
      "FIELD")
      ->take_all();
  app.add_flag("--check", out.check,
               "Check the configuration, list every error, and exit");

  app.option_defaults()->group("Models");
  CLI::Option* o_registry =
      add("--registry", registry, "Folder of models [registry]", "FOLDER");
  add("--model", models,
      "A model to serve, and its version where it is not to follow CURRENT; "
      "may be repeated [models]",
      "NAME[:VERSION]")
      ->take_all();
  CLI::Option* o_default_model =
      add("--default-model", default_model,
          "Answers requests that name no model [default_model]", "NAME");
  CLI::Option* o_poll =
      add("--poll-interval", poll_interval,
          "How often CURRENT is looked at; negative: never [poll_interval: 2s]",
          "DURATION");

  app.option_defaults()->group("Network");
  CLI::Option* o_listen = add(
      "--listen", listen, "gRPC address [listen: 127.0.0.1:8500]", "HOST:PORT");
  CLI::Option* o_metrics =
      add("--metrics-listen", metrics_listen,
          "Address of /metrics, or off [metrics_listen: 127.0.0.1:9500]",
          "HOST:PORT");
  CLI::Option* o_port_file =
      add("--port-file", port_file,
          "Written once the server serves: the gRPC, metrics and admin ports, "
          "one a line, 0 where there is none [port_file]",
          "FILE");
  CLI::Option* o_certificate =
      add("--tls-certificate", certificate,
          "PEM chain; with it the server speaks TLS only "
          "[tls.certificate_file]",
          "FILE");
  CLI::Option* o_key = add("--tls-key", key, "PEM key [tls.key_file]", "FILE");
  CLI::Option* o_client_ca =
      add("--tls-client-ca", client_ca,
          "PEM; clients must show a certificate signed by it "
          "[tls.client_ca_file]",
          "FILE");

  app.option_defaults()->group("Learning");
  CLI::Option* o_store =
      add("--store", store,
          "Database of labels and training jobs, sqlite:PATH or "
          "postgresql://USER@HOST/NAME?passfile=FILE [store.url]",
          "URL");
  CLI::Option* o_admin_listen =
      add("--admin-listen", admin_listen,
          "gRPC address of AdminService [admin.listen]", "HOST:PORT");
  CLI::Option* o_admin_token =
      add("--admin-token-file", admin_token_file,
          "Its first line is the token that admins must send, 16 characters or "
          "more [admin.token_file]",
          "FILE");

  app.option_defaults()->group("Engine");
  CLI::Option* o_device = choice(
      "--device", device, "Where models run [engine.device: auto]",
      std::map<std::string, internal::Device>{{"auto", internal::DEVICE_AUTO},
                                              {"cpu", internal::DEVICE_CPU},
                                              {"cuda", internal::DEVICE_CUDA}},
      "auto|cpu|cuda");
  CLI::Option* o_dtype = choice(
      "--dtype", dtype, "In which precision [engine.dtype: auto]",
      std::map<std::string, internal::Dtype>{{"auto", internal::DTYPE_AUTO},
                                             {"fp32", internal::DTYPE_FP32},
                                             {"bf16", internal::DTYPE_BF16},
                                             {"fp16", internal::DTYPE_FP16},
                                             {"int8", internal::DTYPE_INT8}},
      "auto|fp32|bf16|fp16|int8");
  CLI::Option* o_engine =
      choice("--engine", engine, "By what [engine.kind: auto]",
             std::map<std::string, internal::EngineKind>{
                 {"auto", internal::ENGINE_KIND_AUTO},
                 {"torch", internal::ENGINE_KIND_TORCH},
                 {"onednn", internal::ENGINE_KIND_ONEDNN}},
             "auto|torch|onednn");
  CLI::Option* o_batch_threads =
      add("--batch-threads", batch_threads,
          "Batches run at once [engine.batch_threads: 1]", "N");
  CLI::Option* o_inner_threads =
      add("--inner-threads", inner_threads,
          "Threads inside one batch [engine.inner_threads: cores / "
          "batch-threads]",
          "N");
  CLI::Option* o_pool_threads =
      add("--pool-threads", pool_threads,
          "Threads that parse and tokenize [pool_threads: cores]", "N");
  CLI::Option* o_batch_tokens =
      add("--max-batch-tokens", max_batch_tokens,
          "Tokens in one batch [batcher.max_batch_tokens: 2048, on CUDA "
          "16384]",
          "N");

  app.option_defaults()->group("Limits");
  CLI::Option* o_queue_tokens = add("--max-queue-tokens", max_queue_tokens,
                                    "Tokens waiting before calls are refused "
                                    "[batcher.max_queue_tokens: 262144]",
                                    "N");
  CLI::Option* o_calls =
      add("--max-concurrent-calls", max_concurrent_calls,
          "Calls at once [limits.max_concurrent_calls: 1024]", "N");
  CLI::Option* o_drain = add("--drain-timeout", drain_timeout,
                             "How long calls in flight may take after SIGTERM "
                             "[drain_timeout: 20s]",
                             "DURATION");

  app.option_defaults()->group("Log");
  CLI::Option* o_log_level = choice(
      "--log-level", log_level, "The least that is logged [log.level: info]",
      std::map<std::string, internal::LogLevelConfig>{
          {"debug", internal::LOG_LEVEL_DEBUG},
          {"info", internal::LOG_LEVEL_INFO},
          {"warning", internal::LOG_LEVEL_WARNING},
          {"error", internal::LOG_LEVEL_ERROR}},
      "debug|info|warning|error");
  CLI::Option* o_log_format =
      choice("--log-format", log_format, "How lines look [log.format: text]",
             std::map<std::string, internal::LogFormatConfig>{
                 {"text", internal::LOG_FORMAT_TEXT},
                 {"json", internal::LOG_FORMAT_JSON}},
             "text|json");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out.exit_code = 0;
    out.text = app.help();
    return out;
  } catch (const CLI::CallForVersion& version) {
    out.exit_code = 0;
    out.text = absl::StrCat(version.what(), "\n");
    return out;
  } catch (const CLI::ParseError& error) {
    out.exit_code = 1;
    out.text = absl::StrCat("vitrine-server: ", error.what(),
                            "\nTry vitrine-server --help.\n");
    return out;
  }

  std::string errors;
  internal::ServerConfig& config = out.config;
  if (!config_file.empty()) {
    const absl::Status read = ReadTextProto(config_file, &config);
    if (!read.ok()) errors = absl::StrCat(read.message(), "\n");
  }
  for (const std::string& field : fields) {
    internal::ServerConfig part;
    const absl::Status parsed = ParseTextProto(field, "--set", &part);
    if (parsed.ok()) {
      config.MergeFrom(part);
    } else {
      absl::StrAppend(&errors, parsed.message(), "\n");
    }
  }
  absl::StrAppend(&errors, SetModels(models, &config));
  const auto given = [](const CLI::Option* option) {
    return option->count() > 0;
  };
  if (given(o_registry)) config.set_registry(registry);
  if (given(o_default_model)) config.set_default_model(default_model);
  if (given(o_listen)) config.set_listen(listen);
  if (given(o_metrics)) config.set_metrics_listen(metrics_listen);
  if (given(o_port_file)) config.set_port_file(port_file);
  if (given(o_certificate)) {
    config.mutable_tls()->set_certificate_file(certificate);
  }
  if (given(o_key)) config.mutable_tls()->set_key_file(key);
  if (given(o_client_ca)) {
    config.mutable_tls()->set_client_ca_file(client_ca);
  }
  if (given(o_store)) config.mutable_store()->set_url(store);
  if (given(o_admin_listen)) config.mutable_admin()->set_listen(admin_listen);
  if (given(o_admin_token)) {
    config.mutable_admin()->set_token_file(admin_token_file);
  }
  if (given(o_device)) config.mutable_engine()->set_device(device);
  if (given(o_dtype)) config.mutable_engine()->set_dtype(dtype);
  if (given(o_engine)) config.mutable_engine()->set_kind(engine);
  if (given(o_batch_threads)) {
    config.mutable_engine()->set_batch_threads(batch_threads);
  }
  if (given(o_inner_threads)) {
    config.mutable_engine()->set_inner_threads(inner_threads);
  }
  if (given(o_pool_threads)) config.set_pool_threads(pool_threads);
  if (given(o_batch_tokens)) {
    config.mutable_batcher()->set_max_batch_tokens(max_batch_tokens);
  }
  if (given(o_queue_tokens)) {
    config.mutable_batcher()->set_max_queue_tokens(max_queue_tokens);
  }
  if (given(o_calls)) {
    config.mutable_limits()->set_max_concurrent_calls(max_concurrent_calls);
  }
  if (given(o_drain)) {
    absl::StrAppend(&errors, SetDuration("drain-timeout", drain_timeout,
                                         config.mutable_drain_timeout()));
  }
  if (given(o_poll)) {
    absl::StrAppend(&errors, SetDuration("poll-interval", poll_interval,
                                         config.mutable_poll_interval()));
  }
  if (given(o_log_level)) config.mutable_log()->set_level(log_level);
  if (given(o_log_format)) config.mutable_log()->set_format(log_format);
  if (!errors.empty()) {
    out.exit_code = 1;
    out.text = errors;
  }
  return out;
}

}  // namespace vitrine
