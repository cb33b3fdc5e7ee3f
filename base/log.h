#pragma once

// One line per event: a name, then key=value fields (or one JSON object per
// line). Never a user's text: ids, counts, codes and durations only.
//
//   Log(LogLevel::kInfo, "model_loaded",
//       {{"model", name}, {"version", version}, {"seconds", seconds}});
//
// Any thread may log. Lines go to stderr.

#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace vitrine {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// A value's text, made on the spot; `quoted` where JSON needs a string.
struct LogField {
  LogField(absl::string_view key, absl::string_view value)
      : key(key), value(value), quoted(true) {}
  LogField(absl::string_view key, const char* value)
      : key(key), value(value), quoted(true) {}
  LogField(absl::string_view key, const std::string& value)
      : key(key), value(value), quoted(true) {}
  LogField(absl::string_view key, const absl::Status& status)
      : key(key), value(status.ToString()), quoted(true) {}
  LogField(absl::string_view key, bool value)
      : key(key), value(value ? "true" : "false"), quoted(false) {}
  template <typename T>
  LogField(absl::string_view key, T value)
      : key(key), value(absl::StrCat(value)), quoted(false) {}

  std::string key;
  std::string value;
  bool quoted;
};

// Both may be called at any time; info and text until then.
void SetLogLevel(LogLevel level);
void SetLogFormat(LogFormat format);

void Log(LogLevel level, absl::string_view event,
         std::initializer_list<LogField> fields = {});

}  // namespace vitrine
