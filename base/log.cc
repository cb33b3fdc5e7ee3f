#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace vitrine {
namespace {

std::atomic<LogFormat> g_format{LogFormat::kText};

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "vitrine", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

absl::string_view Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "INFO";
}

// A JSON string literal; bytes that are not printable ASCII are escaped one by
// one, so that a line stays a line and valid JSON whatever comes in.
std::string Quote(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (u < 0x20 || u >= 0x7f) {
      out += "\\u00";
      out += absl::BytesToHexString(absl::string_view(&c, 1));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

bool IsPlain(absl::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (u <= 0x20 || u >= 0x7f || c == '"' || c == '=' || c == '\\') {
      return false;
    }
  }
  return true;
}

}  // namespace

void SetLogLevel(LogLevel level) { Logger().set_level(ToSpdlog(level)); }
void SetLogFormat(LogFormat format) { g_format = format; }

void Log(LogLevel level, absl::string_view event,
         std::initializer_list<LogField> fields) {
  if (!Logger().should_log(ToSpdlog(level))) return;
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  std::string line;
  if (g_format == LogFormat::kJson) {
    line = absl::StrCat("{\"time\":\"", time, "\",\"level\":\"", Name(level),
                        "\",\"event\":", Quote(event));
    for (const LogField& f : fields) {
      absl::StrAppend(&line, ",", Quote(f.key), ":",
                      f.quoted ? Quote(f.value) : f.value);
    }
    line += "}";
  } else {
    line = absl::StrCat(time, " ", Name(level), " ", event);
    for (const LogField& f : fields) {
      absl::StrAppend(&line, " ", f.key, "=",
                      f.quoted && !IsPlain(f.value) ? Quote(f.value) : f.value);
    }
  }
  Logger().log(ToSpdlog(level), "{}", line);
}

}  // namespace vitrine
