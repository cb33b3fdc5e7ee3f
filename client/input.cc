#include "client/input.h"

#include <cerrno>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "google/protobuf/util/json_util.h"

namespace vitrine {
namespace {

using nlohmann::json;

absl::StatusOr<json> ParseObject(absl::string_view text) {
  try {
    json parsed = json::parse(text.begin(), text.end());
    if (!parsed.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a JSON ", parsed.type_name(), ", not an object"));
    }
    return parsed;
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", e.what()));
  }
}

// Text as it is, numbers and booleans as JSON writes them, lists joined.
absl::StatusOr<std::string> ToText(const json& value, absl::string_view name) {
  if (value.is_null()) return std::string();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  if (value.is_array()) {
    std::vector<std::string> parts;
    for (const json& part : value) {
      ASSIGN_OR_RETURN(std::string text, ToText(part, name));
      parts.push_back(std::move(text));
    }
    return absl::StrJoin(parts, " ");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is an object, not text"));
}

absl::StatusOr<std::vector<std::string>> ReadLines(
    const std::string& path,
    absl::StatusOr<std::string> (*parse)(const std::string&)) {
  ASSIGN_OR_RETURN(const std::unique_ptr<LineReader> reader,
                   LineReader::Open(path));
  std::vector<std::string> out;
  std::string line;
  while (reader->Next(&line)) {
    absl::StatusOr<std::string> text = parse(line);
    if (!text.ok()) return reader->At(text.status());
    out.push_back(*std::move(text));
  }
  if (out.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": empty"));
  }
  return out;
}

absl::StatusOr<std::string> ParseText(const std::string& line) {
  // dump() is strict about UTF-8, and says where it is not.
  try {
    json(line).dump();
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(e.what());
  }
  return line;
}

absl::StatusOr<std::string> ParseQuery(const std::string& line) {
  if (line.front() != '{') return ParseText(line);
  ASSIGN_OR_RETURN(const json object, ParseObject(line));
  const auto query = object.find("query");
  if (query == object.end() || !query->is_string()) {
    return absl::InvalidArgumentError("no \"query\" in it that is text");
  }
  return query->get<std::string>();
}

const google::protobuf::ServiceDescriptor& InferenceServiceDescriptor() {
  return *v1::ScoreRequest::descriptor()->file()->FindServiceByName(
      "InferenceService");
}

}  // namespace

LineReader::LineReader(std::string name, std::unique_ptr<std::ifstream> file,
                       std::istream* in)
    : name_(std::move(name)), file_(std::move(file)), in_(in) {}

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(
    const std::string& path) {
  if (path == "-") {
    return std::unique_ptr<LineReader>(
        new LineReader("standard input", nullptr, &std::cin));
  }
  auto file = std::make_unique<std::ifstream>(path);
  // A folder opens, and fails at the first read.
  if (!file->is_open() || (file->peek(), file->bad())) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  file->clear();
  std::istream* const in = file.get();
  return std::unique_ptr<LineReader>(new LineReader(path, std::move(file), in));
}

bool LineReader::Next(std::string* line) {
  while (std::getline(*in_, *line)) {
    ++line_;
    if (!line->empty() && line->back() == '\r') line->pop_back();
    if (!line->empty()) return true;
  }
  return false;
}

absl::Status LineReader::At(const absl::Status& status) const {
  return Annotate(status, absl::StrCat(name_, ":", line_));
}

absl::StatusOr<v1::Item> ParseItem(absl::string_view text) {
  ASSIGN_OR_RETURN(const json object, ParseObject(text));
  v1::Item item;
  const auto set = [&](const char* name, auto setter) -> absl::Status {
    const auto value = object.find(name);
    if (value == object.end()) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::string field, ToText(*value, name));
    setter(std::move(field));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(set("item_id", [&](auto v) { item.set_id(std::move(v)); }));
  RETURN_IF_ERROR(set("id", [&](auto v) { item.set_id(std::move(v)); }));
  RETURN_IF_ERROR(set("title", [&](auto v) { item.set_title(std::move(v)); }));
  RETURN_IF_ERROR(set("brand", [&](auto v) { item.set_brand(std::move(v)); }));
  RETURN_IF_ERROR(
      set("description", [&](auto v) { item.set_description(std::move(v)); }));
  if (const auto value = object.find("categories"); value != object.end()) {
    const json list = value->is_array() ? *value : json::array({*value});
    for (const json& category : list) {
      ASSIGN_OR_RETURN(std::string name, ToText(category, "categories"));
      item.add_categories(std::move(name));
    }
  }
  if (const auto value = object.find("attributes");
      value != object.end() && !value->is_null()) {
    if (!value->is_object()) {
      return absl::InvalidArgumentError("\"attributes\" is not an object");
    }
    for (const auto& [name, attribute] : value->items()) {
      ASSIGN_OR_RETURN((*item.mutable_attributes())[name],
                       ToText(attribute, name));
    }
  }
  return item;
}

absl::StatusOr<std::vector<v1::Item>> ReadItems(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<LineReader> reader,
                   LineReader::Open(path));
  std::vector<v1::Item> items;
  std::string line;
  while (reader->Next(&line)) {
    absl::StatusOr<v1::Item> item = ParseItem(line);
    if (!item.ok()) return reader->At(item.status());
    items.push_back(*std::move(item));
  }
  if (items.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": empty"));
  }
  return items;
}

absl::StatusOr<std::vector<std::string>> ReadQueries(const std::string& path) {
  return ReadLines(path, ParseQuery);
}

absl::StatusOr<std::vector<std::string>> ReadTexts(const std::string& path) {
  return ReadLines(path, ParseText);
}

absl::StatusOr<const google::protobuf::MethodDescriptor*> FindMethod(
    absl::string_view name) {
  const google::protobuf::ServiceDescriptor& service =
      InferenceServiceDescriptor();
  std::vector<std::string> names;
  for (int i = 0; i < service.method_count(); ++i) {
    const google::protobuf::MethodDescriptor* const method = service.method(i);
    if (method->name() == "ListModels") continue;
    const std::string lower = absl::AsciiStrToLower(name);
    if (absl::AsciiStrToLower(method->name()) == lower ||
        (method->name() == "PredictInterests" && lower == "interests")) {
      return method;
    }
    names.push_back(method->name());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no method \"", name, "\"; there are ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<AnyRequest> ParseRequest(
    absl::string_view text, const google::protobuf::MethodDescriptor* method) {
  ASSIGN_OR_RETURN(json object, ParseObject(text));
  if (const auto name = object.find("method"); name != object.end()) {
    if (!name->is_string()) {
      return absl::InvalidArgumentError("\"method\" is not text");
    }
    ASSIGN_OR_RETURN(const google::protobuf::MethodDescriptor* const named,
                     FindMethod(name->get<std::string>()));
    if (method != nullptr && named != method) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a request for ", named->name(), ", not for ", method->name()));
    }
    method = named;
    object.erase("method");
  }
  if (method == nullptr) {
    return absl::InvalidArgumentError("no \"method\" in it");
  }
  AnyRequest request;
  request.method = method;
  request.message.reset(google::protobuf::MessageFactory::generated_factory()
                            ->GetPrototype(method->input_type())
                            ->New());
  const auto status = google::protobuf::util::JsonStringToMessage(
      object.dump(), request.message.get());
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a ", method->input_type()->name(), ": ",
                     std::string(status.message())));
  }
  return request;
}

std::string ToJsonLine(const google::protobuf::Message& message, bool zeros) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = zeros;
  std::string out;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &out, options);
  // Fails for Any of unknown types only: a detail of an item's error.
  if (!status.ok()) return message.ShortDebugString();
  return out;
}

}  // namespace vitrine
