#include "model/model_config.h"

#include <exception>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

using nlohmann::json;

// Far above every published model, and small enough that no product of two
// sizes overflows.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 1024;
constexpr size_t kMaxLabels = 1 << 20;

bool IsRobertaKind(const std::string& model_type) {
  return model_type == "roberta" || model_type == "xlm-roberta";
}

// A field that is absent or null keeps its default.
const json* Find(const json& config, const char* field) {
  const auto it = config.find(field);
  return it == config.end() || it->is_null() ? nullptr : &*it;
}

// A value's text for an error: never a whole document.
std::string Shown(const json& value) {
  if (value.is_number() || value.is_boolean()) return value.dump();
  if (value.is_string()) {
    std::string out = "\"";
    for (const char c : value.get_ref<const std::string&>().substr(0, 64)) {
      out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
    }
    return out + "\"";
  }
  return absl::StrCat("an ", value.type_name());
}

absl::Status Bad(absl::string_view field, const json& value,
                 absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", Shown(value), " is not ", wanted));
}

absl::Status ReadSize(const json& config, const char* field, int64_t min,
                      int64_t max, bool required, int64_t* out) {
  const json* value = Find(config, field);
  if (value == nullptr) {
    if (!required) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, ": missing"));
  }
  const std::string wanted =
      absl::StrCat("a whole number from ", min, " to ", max);
  // An unsigned value above the signed range wraps to a negative one.
  if (!value->is_number_integer()) return Bad(field, *value, wanted);
  const int64_t n = value->get<int64_t>();
  if (n < min || n > max) return Bad(field, *value, wanted);
  *out = n;
  return absl::OkStatus();
}

// `min` is allowed, `max` is not.
absl::Status ReadReal(const json& config, const char* field, double min,
                      double max, double* out) {
  const json* value = Find(config, field);
  if (value == nullptr) return absl::OkStatus();
  const std::string wanted =
      absl::StrCat("a number of at least ", min, " and below ", max);
  if (!value->is_number()) return Bad(field, *value, wanted);
  const double x = value->get<double>();
  if (!(x >= min && x < max)) return Bad(field, *value, wanted);
  *out = x;
  return absl::OkStatus();
}

absl::Status ReadString(const json& config, const char* field,
                        std::string* out) {
  const json* value = Find(config, field);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) return Bad(field, *value, "a string");
  *out = value->get<std::string>();
  return absl::OkStatus();
}

// {"0": "spam", "1": "normal"}: the keys are the numbers 0 to n-1.
absl::Status ReadLabels(const json& config, std::vector<std::string>* out) {
  const json* value = Find(config, "id2label");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_object()) return Bad("id2label", *value, "an object");
  if (value->size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat(
        "id2label: ", value->size(), " labels, at most ", kMaxLabels));
  }
  std::vector<std::string> labels(value->size());
  std::vector<bool> seen(value->size());
  for (const auto& [key, label] : value->items()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id >= labels.size() || seen[id]) {
      return absl::InvalidArgumentError(
          absl::StrCat("id2label: its ", labels.size(),
                       " keys are not the numbers from 0: ", Shown(json(key))));
    }
    if (!label.is_string()) {
      return Bad(absl::StrCat("id2label.", id), label, "a string");
    }
    seen[id] = true;
    labels[id] = label.get<std::string>();
  }
  *out = std::move(labels);
  return absl::OkStatus();
}

absl::StatusOr<EncoderConfig> FromJson(const json& config) {
  if (!config.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  EncoderConfig out;
  RETURN_IF_ERROR(ReadString(config, "model_type", &out.model_type));
  if (out.model_type != "bert" && !IsRobertaKind(out.model_type)) {
    return Bad("model_type", out.model_type,
               "one of bert, roberta, xlm-roberta");
  }
  if (const json* names = Find(config, "architectures")) {
    if (!names->is_array()) return Bad("architectures", *names, "a list");
    for (const json& name : *names) {
      if (!name.is_string()) return Bad("architectures", name, "a string");
      out.architectures.push_back(name.get<std::string>());
    }
  }

  const bool roberta = IsRobertaKind(out.model_type);
  out.type_vocab_size = 2;  // transformers' defaults where a field may lack
  out.pad_token_id = roberta ? 1 : 0;
  const auto size = [&config](const char* field, int64_t max, int64_t* value) {
    return ReadSize(config, field, 1, max, /*required=*/true, value);
  };
  RETURN_IF_ERROR(size("vocab_size", kMaxSize, &out.vocab_size));
  RETURN_IF_ERROR(size("hidden_size", kMaxSize, &out.hidden_size));
  RETURN_IF_ERROR(size("num_hidden_layers", kMaxLayers, &out.num_layers));
  RETURN_IF_ERROR(size("num_attention_heads", kMaxSize, &out.num_heads));
  RETURN_IF_ERROR(size("intermediate_size", kMaxSize, &out.intermediate_size));
  RETURN_IF_ERROR(
      size("max_position_embeddings", kMaxSize, &out.max_positions));
  RETURN_IF_ERROR(ReadSize(config, "type_vocab_size", 1, kMaxSize,
                           /*required=*/false, &out.type_vocab_size));
  RETURN_IF_ERROR(ReadSize(config, "pad_token_id", 0, out.vocab_size - 1,
                           /*required=*/false, &out.pad_token_id));
  RETURN_IF_ERROR(
      ReadReal(config, "layer_norm_eps", 0, 1, &out.layer_norm_eps));
  RETURN_IF_ERROR(
      ReadReal(config, "hidden_dropout_prob", 0, 1, &out.hidden_dropout));
  RETURN_IF_ERROR(ReadReal(config, "attention_probs_dropout_prob", 0, 1,
                           &out.attention_dropout));
  if (out.hidden_size % out.num_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_attention_heads: ", out.num_heads,
                     " does not divide hidden_size: ", out.hidden_size));
  }
  if (out.max_tokens() < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_position_embeddings: ", out.max_positions,
        " leaves no position after pad_token_id: ", out.pad_token_id));
  }

  RETURN_IF_ERROR(ReadString(config, "hidden_act", &out.hidden_act));
  if (out.hidden_act != "gelu" && out.hidden_act != "gelu_new" &&
      out.hidden_act != "relu") {
    return Bad("hidden_act", out.hidden_act, "one of gelu, gelu_new, relu");
  }
  // Weights of these would load and then mean something else.
  std::string position_type = "absolute";
  RETURN_IF_ERROR(
      ReadString(config, "position_embedding_type", &position_type));
  if (position_type != "absolute") {
    return Bad("position_embedding_type", position_type, "absolute");
  }
  if (const json* decoder = Find(config, "is_decoder");
      decoder != nullptr && *decoder != json(false)) {
    return Bad("is_decoder", *decoder, "false");
  }
  RETURN_IF_ERROR(ReadLabels(config, &out.labels));
  return out;
}

}  // namespace

int64_t EncoderConfig::first_position() const {
  return IsRobertaKind(model_type) ? pad_token_id + 1 : 0;
}

int64_t EncoderConfig::max_tokens() const {
  return max_positions - first_position();
}

absl::StatusOr<EncoderConfig> ParseEncoderConfig(absl::string_view text) {
  try {
    return FromJson(json::parse(text.begin(), text.end()));
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON: ", Shown(json(e.what()))));
  }
}

std::string EncoderConfigToJson(const EncoderConfig& config) {
  nlohmann::ordered_json out;
  if (!config.architectures.empty()) {
    out["architectures"] = config.architectures;
  }
  out["model_type"] = config.model_type;
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden_size;
  out["num_hidden_layers"] = config.num_layers;
  out["num_attention_heads"] = config.num_heads;
  out["intermediate_size"] = config.intermediate_size;
  out["max_position_embeddings"] = config.max_positions;
  out["type_vocab_size"] = config.type_vocab_size;
  out["layer_norm_eps"] = config.layer_norm_eps;
  out["hidden_act"] = config.hidden_act;
  out["hidden_dropout_prob"] = config.hidden_dropout;
  out["attention_probs_dropout_prob"] = config.attention_dropout;
  out["pad_token_id"] = config.pad_token_id;
  out["position_embedding_type"] = "absolute";
  if (!config.labels.empty()) {
    nlohmann::ordered_json id2label, label2id;
    for (size_t i = 0; i < config.labels.size(); ++i) {
      id2label[absl::StrCat(i)] = config.labels[i];
      label2id[config.labels[i]] = i;
    }
    out["id2label"] = id2label;
    out["label2id"] = label2id;
  }
  // Replacing what is not UTF-8: labels may come from a caller's memory.
  return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

}  // namespace vitrine
