#pragma once

// The encoder's shape: what config.json of a Hugging Face folder says.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace vitrine {

struct EncoderConfig {
  std::string model_type = "bert";  // bert, roberta, xlm-roberta
  std::vector<std::string> architectures;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t intermediate_size = 0;
  int64_t max_positions = 0;  // rows of the position table
  int64_t type_vocab_size = 0;
  double layer_norm_eps = 1e-12;
  std::string hidden_act = "gelu";  // gelu, gelu_new, relu
  double hidden_dropout = 0.1;
  double attention_dropout = 0.1;
  int64_t pad_token_id = 0;
  std::vector<std::string> labels;  // id2label by id; empty when absent

  // The position of a sequence's first token: 0, or pad_token_id + 1 for the
  // RoBERTa kind.
  int64_t first_position() const;
  // The longest sequence: max_positions - first_position().
  int64_t max_tokens() const;
};

// kInvalidArgument names the field and its value: wrong types, sizes that are
// not positive or absurd, heads that do not divide the hidden size, a
// model_type or activation that is not supported.
absl::StatusOr<EncoderConfig> ParseEncoderConfig(absl::string_view json);

std::string EncoderConfigToJson(const EncoderConfig& config);

}  // namespace vitrine
