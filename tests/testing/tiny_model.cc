#include "tests/testing/tiny_model.h"

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"

namespace vitrine::testing {
namespace {

// std::normal_distribution differs between libraries; a sum of uniforms from
// one fixed generator does not.
class Normal {
 public:
  explicit Normal(uint64_t seed) : engine_(seed) {}

  float operator()(double deviation) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += engine_() * 0x1p-64;
    return static_cast<float>(sum * deviation);
  }

 private:
  std::mt19937_64 engine_;
};

class TensorMaker {
 public:
  TensorMaker(TensorType dtype, uint64_t seed) : dtype_(dtype), normal_(seed) {}

  void Fill(const std::string& name, std::vector<int64_t> shape,
            double deviation, double mean = 0) {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    NamedTensor tensor{name, dtype_, std::move(shape), {}};
    tensor.values.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
      tensor.values.push_back(static_cast<float>(mean) + normal_(deviation));
    }
    tensors_.push_back(std::move(tensor));
  }
  void Linear(const std::string& name, int64_t to, int64_t from) {
    Fill(name + ".weight", {to, from},
         1.4 / std::sqrt(static_cast<double>(from)));
    Fill(name + ".bias", {to}, 0.02);
  }
  void Norm(const std::string& name, int64_t size) {
    Fill(name + ".weight", {size}, 0.05, 1);
    Fill(name + ".bias", {size}, 0.05);
  }
  std::vector<NamedTensor> Take() { return std::move(tensors_); }

 private:
  const TensorType dtype_;
  Normal normal_;
  std::vector<NamedTensor> tensors_;
};

internal::Head MakeHead(const std::string& name, internal::HeadKind kind,
                        internal::Pooling pooling,
                        const std::vector<std::string>& labels = {}) {
  internal::Head head;
  head.set_name(name);
  head.set_kind(kind);
  head.set_pooling(pooling);
  for (const std::string& label : labels) head.add_labels(label);
  return head;
}

std::vector<NamedTensor> HeadTensors(const TinyModelOptions& options) {
  TensorMaker make(TensorType::kF32, options.seed + 1);
  const int64_t hidden = options.hidden_size;
  for (const internal::Head& head : options.heads) {
    switch (head.kind()) {
      case internal::HEAD_KIND_RECOMMENDATION:
        make.Linear(head.name() + ".projection", hidden, hidden);
        break;
      case internal::HEAD_KIND_RELEVANCE:
        make.Linear(head.name() + ".dense", hidden, hidden);
        make.Linear(head.name() + ".out_proj", 1, hidden);
        break;
      default:
        make.Linear(head.name() + ".out_proj", head.labels_size(), hidden);
    }
  }
  return make.Take();
}

}  // namespace

std::vector<internal::Head> AllHeads(
    const std::vector<std::string>& categories) {
  std::vector<internal::Head> heads = {
      MakeHead("relevance", internal::HEAD_KIND_RELEVANCE,
               internal::POOLING_CLS),
      MakeHead("recommendation", internal::HEAD_KIND_RECOMMENDATION,
               internal::POOLING_MEAN),
      MakeHead("interest", internal::HEAD_KIND_INTEREST, internal::POOLING_MEAN,
               categories),
      MakeHead("sentiment", internal::HEAD_KIND_CLASSIFICATION,
               internal::POOLING_CLS, {"negative", "positive"}),
  };
  heads[1].set_score_scale(4);
  heads[1].set_score_bias(-1);
  return heads;
}

std::vector<std::string> TinyVocabulary(int64_t vocab_size) {
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]",
                                     "[MASK]"};
  for (char c = '!'; c <= '~'; ++c) {
    if (c >= 'A' && c <= 'Z') continue;
    pieces.push_back(std::string(1, c));
    pieces.push_back(absl::StrCat("##", std::string(1, c)));
  }
  for (const char* word :
       {"sofa",    "couch",  "lamp",   "rug",   "table",  "chair", "desk",
        "shelf",   "bed",    "oak",    "steel", "glass",  "wool",  "cotton",
        "leather", "red",    "blue",   "green", "white",  "black", "grey",
        "large",   "small",  "modern", "with",  "and",    "for",   "the",
        "of",      "in",     "a4",     "seat",  "seater", "cm",    "led",
        "light",   "indoor", "garden", "set",   "two",    "three", "##s",
        "##er",    "##ing",  "##ed"}) {
    const std::string piece = word;
    if (piece != "##s") pieces.push_back(piece);  // a letter: there already
  }
  for (int i = 0; static_cast<int64_t>(pieces.size()) < vocab_size; ++i) {
    pieces.push_back(absl::StrCat("[unused", i, "]"));
  }
  return pieces;
}

EncoderConfig TinyConfig(const TinyModelOptions& options) {
  EncoderConfig config;
  const bool roberta = options.model_type != "bert";
  const bool classifies = options.heads.empty() && options.labels > 0;
  config.model_type = options.model_type;
  config.architectures = {
      absl::StrCat(options.model_type == "xlm-roberta" ? "XLMRoberta"
                   : roberta                           ? "Roberta"
                                                       : "Bert",
                   classifies ? "ForSequenceClassification" : "Model")};
  config.vocab_size =
      static_cast<int64_t>(TinyVocabulary(options.vocab_size).size());
  config.hidden_act = options.hidden_act;
  config.hidden_size = options.hidden_size;
  config.num_layers = options.num_layers;
  config.num_heads = options.num_heads;
  config.intermediate_size = options.intermediate_size;
  config.max_positions = options.max_positions;
  config.type_vocab_size = options.type_vocab_size;
  config.layer_norm_eps = roberta ? 1e-5 : 1e-12;
  config.pad_token_id = roberta ? 1 : 0;
  if (classifies) {
    for (int i = 0; i < options.labels; ++i) {
      config.labels.push_back(absl::StrCat("LABEL_", i));
    }
  }
  return config;
}

std::vector<NamedTensor> TinyTensors(const TinyModelOptions& options) {
  const EncoderConfig config = TinyConfig(options);
  const int64_t hidden = config.hidden_size;
  const bool roberta = options.model_type != "bert";
  const bool classifies = options.heads.empty() && options.labels > 0;
  const std::string prefix = !classifies ? "" : roberta ? "roberta." : "bert.";
  TensorMaker make(options.dtype, options.seed);
  const std::string embeddings = prefix + "embeddings.";
  make.Fill(embeddings + "word_embeddings.weight", {config.vocab_size, hidden},
            0.05);
  make.Fill(embeddings + "position_embeddings.weight",
            {config.max_positions, hidden}, 0.05);
  make.Fill(embeddings + "token_type_embeddings.weight",
            {config.type_vocab_size, hidden}, 0.05);
  make.Norm(embeddings + "LayerNorm", hidden);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat(prefix, "encoder.layer.", i, ".");
    make.Linear(layer + "attention.self.query", hidden, hidden);
    make.Linear(layer + "attention.self.key", hidden, hidden);
    make.Linear(layer + "attention.self.value", hidden, hidden);
    make.Linear(layer + "attention.output.dense", hidden, hidden);
    make.Norm(layer + "attention.output.LayerNorm", hidden);
    make.Linear(layer + "intermediate.dense", config.intermediate_size, hidden);
    make.Linear(layer + "output.dense", hidden, config.intermediate_size);
    make.Norm(layer + "output.LayerNorm", hidden);
  }
  if (classifies && roberta) {
    make.Linear("classifier.dense", hidden, hidden);
    make.Linear("classifier.out_proj", options.labels, hidden);
  } else {
    make.Linear(prefix + "pooler.dense", hidden, hidden);
    if (classifies) make.Linear("classifier", options.labels, hidden);
  }
  return make.Take();
}

absl::Status WriteManifest(const std::string& folder,
                           internal::Manifest manifest) {
  manifest.clear_files();
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    if (name == "manifest.textproto") continue;
    ASSIGN_OR_RETURN(const std::string data, ReadFile(JoinPath(folder, name)));
    internal::FileDigest* file = manifest.add_files();
    file->set_name(name);
    file->set_size_bytes(static_cast<int64_t>(data.size()));
    file->set_sha256(Sha256(data));
  }
  return WriteFile(JoinPath(folder, "manifest.textproto"),
                   PrintSealedTextProto(manifest));
}

absl::Status WriteTinyModel(const std::string& folder,
                            const TinyModelOptions& options) {
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(WriteFile(JoinPath(folder, "config.json"),
                            EncoderConfigToJson(TinyConfig(options))));
  RETURN_IF_ERROR(WriteFile(
      JoinPath(folder, "vocab.txt"),
      absl::StrCat(absl::StrJoin(TinyVocabulary(options.vocab_size), "\n"),
                   "\n")));
  RETURN_IF_ERROR(WriteSafetensors(JoinPath(folder, "model.safetensors"),
                                   TinyTensors(options)));
  if (options.heads.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(WriteSafetensors(JoinPath(folder, "heads.safetensors"),
                                   HeadTensors(options)));
  internal::Manifest manifest;
  manifest.set_model(options.model_name);
  manifest.set_version(options.version);
  manifest.set_created_by("tiny_model");
  for (const internal::Head& head : options.heads) {
    *manifest.add_heads() = head;
  }
  return WriteManifest(folder, manifest);
}

}  // namespace vitrine::testing
