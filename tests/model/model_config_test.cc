#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// As bert-base-uncased has it, with what we do not read beside.
json Base() {
  return json::parse(R"({
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.2,
    "gradient_checkpointing": false, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.3, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
    "position_embedding_type": "absolute", "transformers_version": "4.6.0",
    "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522})");
}

json With(const std::string& field, const json& value) {
  json config = Base();
  config[field] = value;
  return config;
}

json Without(const std::string& field) {
  json config = Base();
  config.erase(field);
  return config;
}

std::string Error(const json& config) {
  const absl::Status status = ParseEncoderConfig(config.dump()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config;
  return std::string(status.message());
}

TEST(ModelConfig, ReadsEveryField) {
  absl::StatusOr<EncoderConfig> config = ParseEncoderConfig(Base().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type, "bert");
  EXPECT_THAT(config->architectures, ElementsAre("BertForMaskedLM"));
  EXPECT_EQ(config->vocab_size, 30522);
  EXPECT_EQ(config->hidden_size, 768);
  EXPECT_EQ(config->num_layers, 6);
  EXPECT_EQ(config->num_heads, 12);
  EXPECT_EQ(config->intermediate_size, 3072);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_EQ(config->type_vocab_size, 2);
  EXPECT_EQ(config->layer_norm_eps, 1e-12);
  EXPECT_EQ(config->hidden_act, "gelu");
  EXPECT_EQ(config->hidden_dropout, 0.3);
  EXPECT_EQ(config->attention_dropout, 0.2);
  EXPECT_EQ(config->pad_token_id, 0);
  EXPECT_THAT(config->labels, IsEmpty());
  EXPECT_EQ(config->first_position(), 0);
  EXPECT_EQ(config->max_tokens(), 512);
}

TEST(ModelConfig, CountsRobertaPositionsFromBehindThePadding) {
  for (const char* type : {"roberta", "xlm-roberta"}) {
    json config = With("model_type", type);
    config["max_position_embeddings"] = 514;
    config["pad_token_id"] = 1;
    absl::StatusOr<EncoderConfig> parsed = ParseEncoderConfig(config.dump());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->first_position(), 2);
    EXPECT_EQ(parsed->max_tokens(), 512);
    config.erase("pad_token_id");  // RoBERTa's own default is 1
    EXPECT_EQ(ParseEncoderConfig(config.dump())->first_position(), 2);
  }
}

TEST(ModelConfig, OrdersLabelsByTheirNumbers) {
  const json labels = {{"10", "k"}, {"2", "c"}, {"0", "a"}, {"1", "b"},
                       {"3", "d"},  {"4", "e"}, {"5", "f"}, {"6", "g"},
                       {"7", "h"},  {"8", "i"}, {"9", "j"}};
  absl::StatusOr<EncoderConfig> config =
      ParseEncoderConfig(With("id2label", labels).dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->labels, ElementsAre("a", "b", "c", "d", "e", "f", "g",
                                          "h", "i", "j", "k"));
}

TEST(ModelConfig, NamesTheFieldAndItsValue) {
  for (const char* field :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings"}) {
    EXPECT_EQ(Error(Without(field)), absl::StrCat(field, ": missing"));
    for (const json& value :
         {json(0), json(-3), json(1.5), json("12"), json(true), json::array(),
          json(int64_t{1} << 40), json(UINT64_MAX), json(1e300)}) {
      EXPECT_THAT(Error(With(field, value)),
                  HasSubstr(absl::StrCat(field, ": ")))
          << value;
    }
  }
  EXPECT_THAT(Error(With("num_attention_heads", 7)),
              HasSubstr("num_attention_heads: 7 does not divide hidden_size"));
  EXPECT_THAT(Error(With("model_type", "t5")), HasSubstr("model_type: \"t5\""));
  EXPECT_THAT(Error(With("hidden_act", "silu")),
              HasSubstr("hidden_act: \"silu\""));
  EXPECT_THAT(Error(With("hidden_act", 3)), HasSubstr("hidden_act: 3"));
  EXPECT_THAT(Error(With("position_embedding_type", "relative_key")),
              HasSubstr("position_embedding_type: \"relative_key\""));
  EXPECT_THAT(Error(With("is_decoder", true)), HasSubstr("is_decoder: true"));
  EXPECT_THAT(Error(With("layer_norm_eps", -1)), HasSubstr("layer_norm_eps"));
  EXPECT_THAT(Error(With("hidden_dropout_prob", 1)),
              HasSubstr("hidden_dropout_prob: 1"));
  EXPECT_THAT(Error(With("pad_token_id", 30522)), HasSubstr("pad_token_id"));
  EXPECT_THAT(Error(With("type_vocab_size", 0)), HasSubstr("type_vocab_size"));
  EXPECT_THAT(Error(With("architectures", "Bert")), HasSubstr("architectures"));
  json roberta = With("model_type", "roberta");
  roberta["max_position_embeddings"] = 2;
  roberta["pad_token_id"] = 1;
  EXPECT_THAT(Error(roberta), HasSubstr("max_position_embeddings: 2"));
}

TEST(ModelConfig, RefusesLabelsThatDoNotCount) {
  EXPECT_THAT(Error(With("id2label", {{"0", "a"}, {"2", "b"}})),
              HasSubstr("id2label"));
  EXPECT_THAT(Error(With("id2label", {{"0", "a"}, {"00", "b"}})),
              HasSubstr("id2label"));
  EXPECT_THAT(Error(With("id2label", {{"-1", "a"}})), HasSubstr("id2label"));
  EXPECT_THAT(Error(With("id2label", {{"0", 7}})), HasSubstr("id2label.0: 7"));
  EXPECT_THAT(Error(With("id2label", "a")), HasSubstr("id2label"));
}

TEST(ModelConfig, TakesNullForAbsent) {
  for (const char* field : {"id2label", "architectures", "pad_token_id",
                            "hidden_act", "layer_norm_eps", "is_decoder"}) {
    EXPECT_TRUE(ParseEncoderConfig(With(field, nullptr).dump()).ok()) << field;
  }
}

TEST(ModelConfig, RefusesWhatIsNotAnObject) {
  const std::string deep(100000, '[');
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("3"),
        std::string("\xff"), deep, std::string("{\"a\":1}x")}) {
    EXPECT_EQ(ParseEncoderConfig(text).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ModelConfig, EveryPrefixIsAStatus) {
  const std::string text = Base().dump(2);
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(ParseEncoderConfig(text.substr(0, size)).ok()) << size;
  }
}

TEST(ModelConfig, ReadsBackWhatItWrites) {
  json source = With("id2label", {{"0", "no"}, {"1", "yés"}});
  source["model_type"] = "xlm-roberta";
  source["hidden_act"] = "gelu_new";
  absl::StatusOr<EncoderConfig> config = ParseEncoderConfig(source.dump());
  ASSERT_TRUE(config.ok());
  const std::string text = EncoderConfigToJson(*config);
  absl::StatusOr<EncoderConfig> again = ParseEncoderConfig(text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(EncoderConfigToJson(*again), text);
  EXPECT_EQ(again->labels, config->labels);
  // The fields that transformers reads, under its names.
  const json written = json::parse(text);
  for (const char* field :
       {"architectures", "model_type", "vocab_size", "hidden_size",
        "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
        "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "pad_token_id"}) {
    EXPECT_EQ(written[field], source[field]) << field;
  }
  EXPECT_EQ(written["label2id"]["yés"], 1);
}

}  // namespace
}  // namespace vitrine
