#include "server/config.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "store/model_registry.h"

namespace vitrine {
namespace {

using google::protobuf::Duration;
using internal::ServerConfig;

constexpr int kMaxThreads = 1024;

// Collects what is wrong, under the field's full name.
class Checker {
 public:
  void Error(absl::string_view field, absl::string_view what) {
    errors_.push_back(absl::StrCat(field, ": ", what));
  }

  // Zero becomes `fallback`; then it must be in [low, high].
  template <typename T>
  T Number(absl::string_view field, T value, T fallback, T low, T high) {
    if (value == 0) value = fallback;
    if (value < low || value > high) {
      Error(field, absl::StrCat(value, " is not in [", low, ", ", high, "]"));
    }
    return value;
  }

  // As Number, for durations; a negative one is allowed where `never` is.
  void Time(absl::string_view field, absl::Duration fallback, bool never,
            Duration* duration) {
    if ((duration->nanos() <= -1000000000 || duration->nanos() >= 1000000000 ||
         std::abs(duration->seconds()) > 315576000000)) {
      Error(field, absl::StrCat("seconds: ", duration->seconds(), " nanos: ",
                                duration->nanos(), " is not a duration"));
      return;
    }
    absl::Duration value = FromProtoDuration(*duration);
    if (value == absl::ZeroDuration()) value = fallback;
    if (value < absl::ZeroDuration() && !never) {
      Error(field, absl::StrCat(absl::FormatDuration(value), " is negative"));
    }
    if (value > absl::ZeroDuration() && value < absl::Milliseconds(1)) {
      Error(field, absl::StrCat(absl::FormatDuration(value), " < 1ms"));
    }
    if (value > absl::Hours(24)) {
      Error(field, absl::StrCat(absl::FormatDuration(value), " > 24h"));
    }
    const int64_t nanos = absl::ToInt64Nanoseconds(value);
    duration->set_seconds(nanos / 1000000000);
    duration->set_nanos(static_cast<int32_t>(nanos % 1000000000));
  }

  void ReadableFile(absl::string_view field, const std::string& path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode) ||
        access(path.c_str(), R_OK) != 0) {
      Error(field, absl::StrCat("\"", path, "\" is not a readable file"));
    }
  }

  absl::Status status() const {
    if (errors_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(errors_, "\n"));
  }

 private:
  std::vector<std::string> errors_;
};

bool IsFolder(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

void CheckModels(ServerConfig* config, Checker* check) {
  if (config->registry().empty()) {
    check->Error("registry", "is required: the folder of models");
  } else if (!IsFolder(config->registry())) {
    check->Error("registry",
                 absl::StrCat("\"", config->registry(), "\" is not a folder"));
  }
  std::set<std::string> names;
  for (int i = 0; i < config->models_size(); ++i) {
    const internal::ModelConfig& model = config->models(i);
    const std::string field = absl::StrCat("models[", i, "]");
    const absl::Status named = CheckModelName(model.name());
    if (!named.ok()) check->Error(field + ".name", named.message());
    if (!names.insert(model.name()).second) {
      check->Error(field + ".name",
                   absl::StrCat("\"", model.name(), "\" is there twice"));
    }
    if (model.version() < 0) {
      check->Error(field + ".version",
                   absl::StrCat(model.version(), " is negative"));
    }
  }
  if (config->default_model().empty()) {
    if (config->models_size() > 0) {
      config->set_default_model(config->models(0).name());
    }
  } else if (config->models_size() > 0 &&
             names.count(config->default_model()) == 0) {
    check->Error("default_model", absl::StrCat("\"", config->default_model(),
                                               "\" is not one of models"));
  }
}

void CheckTls(const std::string& field, const internal::TlsConfig& tls,
              Checker* check) {
  if (tls.certificate_file().empty()) {
    check->Error(field + ".certificate_file",
                 absl::StrCat("is required with ", field));
  } else {
    check->ReadableFile(field + ".certificate_file", tls.certificate_file());
  }
  if (tls.key_file().empty()) {
    check->Error(field + ".key_file", absl::StrCat("is required with ", field));
  } else {
    check->ReadableFile(field + ".key_file", tls.key_file());
  }
  if (!tls.client_ca_file().empty()) {
    check->ReadableFile(field + ".client_ca_file", tls.client_ca_file());
  }
}

void CheckAdmin(ServerConfig* config, Checker* check) {
  if (!config->has_admin()) return;
  const internal::AdminConfig& admin = config->admin();
  if (admin.listen().empty()) {
    check->Error("admin.listen", "is required with admin");
  } else if (const absl::StatusOr<HostPort> listen =
                 ParseHostPort(admin.listen());
             !listen.ok()) {
    check->Error("admin.listen", listen.status().message());
  } else if (listen->port != 0 &&
             (admin.listen() == config->listen() ||
              admin.listen() == config->metrics_listen())) {
    check->Error("admin.listen", absl::StrCat("\"", admin.listen(),
                                              "\" is another listener's"));
  }
  if (admin.token_file().empty()) {
    check->Error("admin.token_file", "is required with admin");
  } else if (const absl::StatusOr<std::string> token =
                 ReadAdminToken(admin.token_file());
             !token.ok()) {
    check->Error("admin.token_file", token.status().message());
  }
  if (admin.has_tls()) CheckTls("admin.tls", admin.tls(), check);
}

void CheckStore(ServerConfig* config, Checker* check) {
  if (config->has_store()) {
    internal::StoreConfig& store = *config->mutable_store();
    if (store.url().empty()) {
      check->Error("store.url", "is required with store");
    } else if (!absl::StartsWith(store.url(), "sqlite:") &&
               !absl::StartsWith(store.url(), "postgresql://") &&
               !absl::StartsWith(store.url(), "postgres://")) {
      // Not quoted: it may hold what should not be in a log.
      check->Error("store.url",
                   "begins with neither sqlite: nor postgresql://");
    }
    check->Time("store.lock_timeout", absl::Seconds(5), false,
                store.mutable_lock_timeout());
    store.set_max_waiting(check->Number(
        "store.max_waiting", store.max_waiting(), 100000, 1, INT_MAX));
  }
  for (int i = 0; i < config->models_size(); ++i) {
    const internal::ModelConfig& model = config->models(i);
    const std::string field = absl::StrCat("models[", i, "].activation");
    if (!internal::Activation_IsValid(model.activation())) {
      check->Error(field, absl::StrCat(model.activation(), " is unknown"));
    }
    if (model.activation() != internal::ACTIVATION_AUTOMATIC) continue;
    if (!config->has_store()) {
      check->Error(field, "ACTIVATION_AUTOMATIC needs store");
    }
    if (model.version() > 0) {
      check->Error(field, absl::StrCat("ACTIVATION_AUTOMATIC with version ",
                                       model.version(), " fixed"));
    }
  }
}

void CheckAddresses(ServerConfig* config, Checker* check) {
  if (config->listen().empty()) config->set_listen("127.0.0.1:8500");
  const absl::StatusOr<HostPort> listen = ParseHostPort(config->listen());
  if (!listen.ok()) check->Error("listen", listen.status().message());
  if (config->metrics_listen().empty()) {
    config->set_metrics_listen("127.0.0.1:9500");
  }
  if (config->metrics_listen() != "off") {
    const absl::StatusOr<HostPort> metrics =
        ParseHostPort(config->metrics_listen());
    if (!metrics.ok()) {
      check->Error("metrics_listen", metrics.status().message());
    } else if (metrics->port != 0 &&
               config->metrics_listen() == config->listen()) {
      check->Error("metrics_listen",
                   absl::StrCat("\"", config->metrics_listen(),
                                "\" is the address of listen too"));
    }
  }
  if (config->has_tls()) CheckTls("tls", config->tls(), check);
  if (!config->port_file().empty()) {
    const std::string folder =
        std::filesystem::path(config->port_file()).parent_path().string();
    if (!folder.empty() && !IsFolder(folder)) {
      check->Error("port_file", absl::StrCat("\"", folder, "\" is no folder"));
    }
  }
}

void CheckEngine(ServerConfig* config, Checker* check) {
  internal::EngineConfig& engine = *config->mutable_engine();
  if (!internal::Device_IsValid(engine.device())) {
    check->Error("engine.device", absl::StrCat(engine.device(), " is unknown"));
  }
  if (!internal::Dtype_IsValid(engine.dtype())) {
    check->Error("engine.dtype", absl::StrCat(engine.dtype(), " is unknown"));
  }
  if (!internal::EngineKind_IsValid(engine.kind())) {
    check->Error("engine.kind", absl::StrCat(engine.kind(), " is unknown"));
  }
  const bool onednn = engine.kind() == internal::ENGINE_KIND_ONEDNN;
  if (engine.dtype() == internal::DTYPE_FP16 &&
      (engine.device() == internal::DEVICE_CPU || onednn)) {
    check->Error("engine.dtype", "DTYPE_FP16 needs CUDA, not a CPU");
  }
  if (engine.dtype() == internal::DTYPE_INT8 &&
      (engine.device() == internal::DEVICE_CUDA ||
       engine.kind() == internal::ENGINE_KIND_TORCH)) {
    check->Error("engine.dtype",
                 "DTYPE_INT8 needs ENGINE_KIND_ONEDNN on a CPU");
  }
  if (onednn && engine.device() == internal::DEVICE_CUDA) {
    check->Error("engine.kind", "ENGINE_KIND_ONEDNN is for a CPU, not CUDA");
  }
  engine.set_batch_threads(check->Number(
      "engine.batch_threads", engine.batch_threads(), 1, 1, kMaxThreads));
  const int cores = AvailableCores();
  engine.set_inner_threads(
      check->Number("engine.inner_threads", engine.inner_threads(),
                    std::max(1, cores / std::max(1, engine.batch_threads())), 1,
                    kMaxThreads));
  config->set_pool_threads(check->Number("pool_threads", config->pool_threads(),
                                         std::min(cores, kMaxThreads), 1,
                                         kMaxThreads));
}

void CheckLimits(ServerConfig* config, Checker* check) {
  internal::BatcherConfig& batcher = *config->mutable_batcher();
  // 0 stays: the default depends on the device, which the engine knows.
  if (batcher.max_batch_tokens() < 0) {
    check->Error("batcher.max_batch_tokens",
                 absl::StrCat(batcher.max_batch_tokens(), " is negative"));
  }
  batcher.set_max_queue_tokens(check->Number("batcher.max_queue_tokens",
                                             batcher.max_queue_tokens(), 262144,
                                             1, INT_MAX));
  batcher.set_short_call_tokens(check->Number("batcher.short_call_tokens",
                                              batcher.short_call_tokens(), 256,
                                              -1, INT_MAX));
  if (batcher.max_queue_tokens() > 0 &&
      batcher.max_batch_tokens() > batcher.max_queue_tokens()) {
    check->Error("batcher.max_batch_tokens",
                 absl::StrCat(batcher.max_batch_tokens(),
                              " > batcher.max_queue_tokens, ",
                              batcher.max_queue_tokens()));
  }
  internal::LimitsConfig& limits = *config->mutable_limits();
  const auto number = [check](const char* name, int value, int fallback,
                              int high) {
    return check->Number(absl::StrCat("limits.", name), value, fallback, 1,
                         high);
  };
  limits.set_max_items(number("max_items", limits.max_items(), 1000, 1 << 20));
  limits.set_max_texts(number("max_texts", limits.max_texts(), 1000, 1 << 20));
  limits.set_max_history(
      number("max_history", limits.max_history(), 200, 1 << 20));
  limits.set_max_field_bytes(
      number("max_field_bytes", limits.max_field_bytes(), 65536, INT_MAX));
  limits.set_max_attributes(
      number("max_attributes", limits.max_attributes(), 64, 1 << 20));
  limits.set_max_message_bytes(number(
      "max_message_bytes", limits.max_message_bytes(), 16 << 20, INT_MAX));
  limits.set_max_concurrent_calls(number(
      "max_concurrent_calls", limits.max_concurrent_calls(), 1024, 1 << 20));
  limits.set_max_feedback(
      number("max_feedback", limits.max_feedback(), 1000, 1 << 20));
  check->Time("limits.default_deadline", absl::Seconds(30), false,
              limits.mutable_default_deadline());
  internal::CacheConfig& cache = *config->mutable_cache();
  const auto bytes = [check](absl::string_view field, int64_t value) {
    return check->Number<int64_t>(field, value, 64 << 20, -1, int64_t{1} << 40);
  };
  cache.set_item_vector_bytes(
      bytes("cache.item_vector_bytes", cache.item_vector_bytes()));
  cache.set_token_bytes(bytes("cache.token_bytes", cache.token_bytes()));
}

void CheckEncoding(const internal::EncodingOptions& encoding, Checker* check) {
  const auto positive = [check](const char* name, int value) {
    if (value < 0) {
      check->Error(absl::StrCat("encoding.", name),
                   absl::StrCat(value, " is negative"));
    }
  };
  positive("max_tokens", encoding.max_tokens());
  positive("max_query_tokens", encoding.max_query_tokens());
  positive("max_history_item_tokens", encoding.max_history_item_tokens());
}

// What a control group's cpu.max allows: "quota period" in microseconds, or
// "max".
int64_t CoresOfGroup(absl::string_view group) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  const absl::StatusOr<std::string> text =
      ReadFile(absl::StrCat("/sys/fs/cgroup", group, "/cpu.max"), 4096);
  if (!text.ok()) return kAny;
  const std::vector<absl::string_view> parts =
      absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  int64_t quota = 0, period = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &quota) ||
      !absl::SimpleAtoi(parts[1], &period) || quota <= 0 || period <= 0) {
    return kAny;
  }
  return (quota + period - 1) / period;
}

}  // namespace

absl::Status ResolveServerConfig(ServerConfig* config) {
  Checker check;
  CheckModels(config, &check);
  CheckAddresses(config, &check);
  CheckAdmin(config, &check);
  CheckStore(config, &check);
  CheckEngine(config, &check);
  CheckLimits(config, &check);
  CheckEncoding(config->encoding(), &check);
  check.Time("drain_timeout", absl::Seconds(20), false,
             config->mutable_drain_timeout());
  check.Time("poll_interval", absl::Seconds(2), true,
             config->mutable_poll_interval());
  if (!internal::LogLevelConfig_IsValid(config->log().level())) {
    check.Error("log.level",
                absl::StrCat(config->log().level(), " is unknown"));
  }
  if (!internal::LogFormatConfig_IsValid(config->log().format())) {
    check.Error("log.format",
                absl::StrCat(config->log().format(), " is unknown"));
  }
  if (!config->has_personalization_weight()) {
    config->set_personalization_weight(0.5f);
  }
  const float weight = config->personalization_weight();
  if (!(weight >= 0 && weight <= 1)) {
    check.Error("personalization_weight",
                absl::StrCat(weight, " is not in [0, 1]"));
  }
  return check.status();
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const auto error = [text] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not host:port"));
  };
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return error();
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port = text.substr(colon + 1);
  HostPort out;
  if (port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(port, &out.port) || out.port > 65535) {
    return error();
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    out.host = std::string(host.substr(1, host.size() - 2));
  } else {
    out.host = std::string(host);
    if (host.find_first_of(":[]") != absl::string_view::npos) return error();
  }
  if (out.host.empty() ||
      out.host.find_first_of(" \t\r\n/,") != std::string::npos) {
    return error();
  }
  return out;
}

absl::StatusOr<std::string> ReadAdminToken(const std::string& path) {
  constexpr int64_t kMaxBytes = 4096;
  constexpr size_t kMinCharacters = 16;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  const std::string token(
      absl::StripAsciiWhitespace(text.substr(0, text.find('\n'))));
  if (token.size() < kMinCharacters) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": a token of ", token.size(),
        " characters is too short; at least ", kMinCharacters, " are needed"));
  }
  // It travels in a header.
  for (const char c : token) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": the token holds a character that is not printable ASCII"));
    }
  }
  return token;
}

int AvailableCores() {
  int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    cores = std::min<int64_t>(cores, CPU_COUNT(&set));
  }
  // The process's control group (version 2) and those that it is in. In a
  // container the path is "/": its own group is all that there is.
  std::string group;
  if (const auto groups = ReadFile("/proc/self/cgroup", 4096); groups.ok()) {
    for (const absl::string_view line : absl::StrSplit(*groups, '\n')) {
      if (absl::StartsWith(line, "0::")) group = std::string(line.substr(3));
    }
  }
  while (true) {
    cores = std::min(cores, CoresOfGroup(group));
    if (group.size() <= 1) break;
    group.resize(group.rfind('/'));
  }
  return static_cast<int>(std::max<int64_t>(1, cores));
}

}  // namespace vitrine
