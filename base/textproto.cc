#include "base/textproto.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace vitrine {
namespace {

constexpr int64_t kMaxBytes = 64 << 20;
constexpr char kSeal[] = "# sha256: ";

class ErrorCollector : public google::protobuf::io::ErrorCollector {
 public:
  explicit ErrorCollector(absl::string_view name) : name_(name) {}

  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    absl::StrAppend(&errors_, errors_.empty() ? "" : "\n", name_, ":", line + 1,
                    ":", column + 1, ": ", message);
  }

  const std::string& errors() const { return errors_; }

 private:
  const std::string name_;
  std::string errors_;
};

}  // namespace

absl::Status ParseTextProto(absl::string_view text, absl::string_view name,
                            google::protobuf::Message* message) {
  ErrorCollector collector(name);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  if (!parser.ParseFromString(std::string(text), message)) {
    return absl::InvalidArgumentError(
        collector.errors().empty() ? absl::StrCat(name, ": cannot be parsed")
                                   : collector.errors());
  }
  return absl::OkStatus();
}

absl::Status ReadTextProto(const std::string& path,
                           google::protobuf::Message* message) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  return ParseTextProto(text, path, message);
}

std::string PrintTextProto(const google::protobuf::Message& message) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintToString(message, &text);
  return text;
}

absl::Status ReadSealedTextProto(const std::string& path,
                                 google::protobuf::Message* message) {
  ASSIGN_OR_RETURN(const std::string file, ReadFile(path, kMaxBytes));
  const size_t end = file.rfind(kSeal);
  if (end == std::string::npos || (end > 0 && file[end - 1] != '\n')) {
    return absl::DataLossError(absl::StrCat(
        path, ": cut off: its last line must be \"", kSeal, "...\""));
  }
  const absl::string_view text(file.data(), end);
  if (file.substr(end) != absl::StrCat(kSeal, Sha256(text), "\n")) {
    return absl::DataLossError(
        absl::StrCat(path,
                     ": cut off or changed: its last line is not the "
                     "SHA-256 of what is above it"));
  }
  return ParseTextProto(text, path, message);
}

std::string PrintSealedTextProto(const google::protobuf::Message& message) {
  const std::string text = PrintTextProto(message);
  return absl::StrCat(text, kSeal, Sha256(text), "\n");
}

}  // namespace vitrine
