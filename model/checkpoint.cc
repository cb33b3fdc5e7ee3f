#include "model/checkpoint.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/batch.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;

using Shape = std::vector<int64_t>;

std::string ShapeText(const Shape& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status CheckTensor(absl::string_view name, const TensorView& tensor,
                         const Shape& shape, absl::string_view why) {
  if (tensor.shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": its shape is ", ShapeText(tensor.shape), ", ",
                     why, " says ", ShapeText(shape)));
  }
  switch (tensor.type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return absl::OkStatus();
    case TensorType::kI64:
    case TensorType::kOther:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": its dtype is none of F32, F16, BF16"));
}

// The names under which EncoderTensors lists: no base model's prefix, weight
// and bias also where TensorFlow's gamma and beta have survived.
std::string PlainName(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, "bert.")) {
    absl::ConsumePrefix(&name, "roberta.");
  }
  std::string plain(name);
  absl::StrReplaceAll({{"LayerNorm.gamma", "LayerNorm.weight"},
                       {"LayerNorm.beta", "LayerNorm.bias"}},
                      &plain);
  return plain;
}

// Buffers that some versions of transformers save, and the parts of
// pre-training and of tasks, which HeadsOfHuggingFaceFolder looks at.
bool IsTolerated(absl::string_view plain) {
  return plain == "embeddings.position_ids" ||
         plain == "embeddings.token_type_ids" ||
         absl::StartsWith(plain, "cls.") ||
         absl::StartsWith(plain, "lm_head.") ||
         absl::StartsWith(plain, "classifier.");
}

struct ExpectedTensor {
  std::string name;
  Shape shape;
  bool optional = false;
};

std::vector<ExpectedTensor> EncoderTensors(const EncoderConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  std::vector<ExpectedTensor> out;
  const auto linear = [&out](const std::string& name, int64_t to, int64_t from,
                             bool optional = false) {
    out.push_back({name + ".weight", {to, from}, optional});
    out.push_back({name + ".bias", {to}, optional});
  };
  const auto norm = [&out, hidden](const std::string& name) {
    out.push_back({name + ".weight", {hidden}});
    out.push_back({name + ".bias", {hidden}});
  };
  out.push_back(
      {"embeddings.word_embeddings.weight", {config.vocab_size, hidden}});
  out.push_back({"embeddings.position_embeddings.weight",
                 {config.max_positions, hidden}});
  out.push_back({"embeddings.token_type_embeddings.weight",
                 {config.type_vocab_size, hidden}});
  norm("embeddings.LayerNorm");
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat("encoder.layer.", i, ".");
    linear(layer + "attention.self.query", hidden, hidden);
    linear(layer + "attention.self.key", hidden, hidden);
    linear(layer + "attention.self.value", hidden, hidden);
    linear(layer + "attention.output.dense", hidden, hidden);
    norm(layer + "attention.output.LayerNorm");
    linear(layer + "intermediate.dense", inner, hidden);
    linear(layer + "output.dense", hidden, inner);
    norm(layer + "output.LayerNorm");
  }
  linear("pooler.dense", hidden, hidden, /*optional=*/true);
  return out;
}

// Which state a classifier reads, where config.json says so: ModernBERT's
// field. BERT's own have it not and read the first.
absl::StatusOr<internal::Pooling> ClassifierPooling(const std::string& folder) {
  const std::string path = JoinPath(folder, "config.json");
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  const auto config =
      nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  constexpr char kField[] = "classifier_pooling";
  if (!config.is_object() || !config.contains(kField)) {
    return internal::POOLING_CLS;
  }
  if (config[kField] == "cls") return internal::POOLING_CLS;
  if (config[kField] == "mean") return internal::POOLING_MEAN;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", kField, ": neither \"cls\" nor \"mean\""));
}

// Config and weights of a folder. `rest` gets the tolerated tensors by their
// plain names.
absl::StatusOr<Checkpoint> LoadEncoder(
    const std::string& folder, std::map<std::string, TensorView>* rest) {
  Checkpoint out;
  const std::string config_path = JoinPath(folder, "config.json");
  ASSIGN_OR_RETURN(const std::string json,
                   ReadFile(config_path, kMaxConfigBytes));
  absl::StatusOr<EncoderConfig> config = ParseEncoderConfig(json);
  if (!config.ok()) return Annotate(config.status(), config_path);
  out.config = *std::move(config);

  ASSIGN_OR_RETURN(std::shared_ptr<const Safetensors> file,
                   OpenSharded(folder));
  std::map<std::string, TensorView> found;
  for (const auto& [name, tensor] : file->tensors()) {
    const std::string plain = PlainName(name);
    if (!found.emplace(plain, tensor).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          folder, ": ", name, ": another tensor means ", plain, " too"));
    }
  }
  for (const ExpectedTensor& expected : EncoderTensors(out.config)) {
    auto node = found.extract(expected.name);
    if (node.empty()) {
      if (expected.optional) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          folder, ": no tensor ", expected.name, ", which config.json needs"));
    }
    RETURN_IF_ERROR(Annotate(CheckTensor(expected.name, node.mapped(),
                                         expected.shape, "config.json"),
                             folder));
    out.encoder.insert(std::move(node));
  }
  if (out.encoder.contains("pooler.dense.weight") !=
      out.encoder.contains("pooler.dense.bias")) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": only one of pooler.dense.weight and pooler.dense.bias"));
  }
  for (auto& [name, tensor] : found) {
    if (!IsTolerated(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": the tensor ", name,
                       " belongs to nothing that config.json describes"));
    }
    rest->emplace(name, tensor);
  }
  out.files.push_back(std::move(file));
  return out;
}

// Outputs per sequence that the head's labels ask for; 0: any.
int64_t ExpectedWidth(const internal::Head& head) {
  switch (head.kind()) {
    case internal::HEAD_KIND_RELEVANCE:
      return 1;
    case internal::HEAD_KIND_INTEREST:
    case internal::HEAD_KIND_CLASSIFICATION:
      return head.labels_size();
    default:
      return 0;
  }
}

// Moves "<head>.<layer>.{weight,bias}" from `found` to `out`. False when
// neither is there. `rows` 0: as many as the weight has.
absl::StatusOr<bool> TakeLinear(const std::string& name, int64_t rows,
                                int64_t hidden,
                                std::map<std::string, TensorView>* found,
                                std::map<std::string, TensorView>* out) {
  auto weight = found->extract(name + ".weight");
  auto bias = found->extract(name + ".bias");
  if (weight.empty() && bias.empty()) return false;
  if (weight.empty() || bias.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no tensor ", name, weight.empty() ? ".weight" : ".bias"));
  }
  const Shape& shape = weight.mapped().shape;
  if (rows == 0) rows = shape.empty() ? 0 : shape[0];
  if (rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        weight.key(), ": its shape is ", ShapeText(shape), ", without rows"));
  }
  RETURN_IF_ERROR(
      CheckTensor(weight.key(), weight.mapped(), {rows, hidden}, "the head"));
  RETURN_IF_ERROR(CheckTensor(bias.key(), bias.mapped(), {rows}, "the head"));
  out->insert(std::move(weight));
  out->insert(std::move(bias));
  return true;
}

absl::Status TakeHead(const internal::Head& head, int64_t hidden,
                      std::map<std::string, TensorView>* found,
                      std::map<std::string, TensorView>* out) {
  ASSIGN_OR_RETURN(const bool dense, TakeLinear(head.name() + ".dense", hidden,
                                                hidden, found, out));
  const bool embeds = head.kind() == internal::HEAD_KIND_RECOMMENDATION;
  const std::string last = head.name() + (embeds ? ".projection" : ".out_proj");
  ASSIGN_OR_RETURN(const bool has_last,
                   TakeLinear(last, ExpectedWidth(head), hidden, found, out));
  if (!embeds && !has_last) {
    return absl::InvalidArgumentError(
        absl::StrCat("no tensor ", last, ".weight"));
  }
  if (embeds && dense) {
    return absl::InvalidArgumentError(absl::StrCat(
        head.name(), ".dense.weight: a RECOMMENDATION head has no dense part"));
  }
  return absl::OkStatus();
}

absl::Status LoadHeads(const std::string& folder,
                       const std::vector<internal::Head>& heads,
                       Checkpoint* out) {
  RETURN_IF_ERROR(CheckHeads(heads));
  const std::string path = JoinPath(folder, "heads.safetensors");
  std::map<std::string, TensorView> found;
  if (PathExists(path)) {
    ASSIGN_OR_RETURN(std::shared_ptr<const Safetensors> file,
                     OpenSafetensors(path));
    found = file->tensors();
    out->files.push_back(std::move(file));
  }
  for (const internal::Head& head : heads) {
    RETURN_IF_ERROR(Annotate(
        TakeHead(head, out->config.hidden_size, &found, &out->heads), path));
  }
  if (!found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the tensor ", found.begin()->first,
                     " belongs to no head of the manifest"));
  }
  return absl::OkStatus();
}

// Tensors in memory where views want a file behind them.
class OwnedTensors final : public Safetensors {
 public:
  void Add(const NamedTensor& tensor) {
    bytes_.push_back(std::make_unique<std::string>(
        reinterpret_cast<const char*>(tensor.values.data()),
        tensor.values.size() * sizeof(float)));
    tensors_[tensor.name] = {TensorType::kF32, tensor.shape, *bytes_.back()};
  }
  const TensorView* Find(const std::string& name) const override {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }
  const std::map<std::string, TensorView>& tensors() const override {
    return tensors_;
  }

 private:
  std::vector<std::unique_ptr<std::string>> bytes_;
  std::map<std::string, TensorView> tensors_;
};

}  // namespace

absl::Status CheckHeads(const std::vector<internal::Head>& heads) {
  std::set<std::string> names;
  for (const internal::Head& head : heads) {
    const std::string& name = head.name();
    if (name.empty() ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") !=
            std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("head \"", name, "\": its name is not [a-z0-9_]+"));
    }
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", name, " is there twice"));
    }
    if (head.kind() == internal::HEAD_KIND_UNSPECIFIED ||
        !internal::HeadKind_IsValid(head.kind())) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", name, ": no kind"));
    }
    if (!internal::Pooling_IsValid(head.pooling())) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", name, ": pooling ", head.pooling()));
    }
    const bool labelled = head.kind() == internal::HEAD_KIND_INTEREST ||
                          head.kind() == internal::HEAD_KIND_CLASSIFICATION;
    if (labelled && head.labels_size() == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", name, ": no labels"));
    }
    std::set<std::string> labels;
    for (const std::string& label : head.labels()) {
      if (!labels.insert(label).second) {
        return absl::InvalidArgumentError(absl::StrCat(
            "head ", name, ": label \"", label, "\" is there twice"));
      }
    }
  }
  if (heads.size() > kMaxHeads) {
    return absl::InvalidArgumentError(
        absl::StrCat(heads.size(), " heads, at most ", kMaxHeads));
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> LoadCheckpoint(
    const std::string& folder,
    const std::vector<internal::Head>& manifest_heads) {
  std::map<std::string, TensorView> rest;
  ASSIGN_OR_RETURN(Checkpoint out, LoadEncoder(folder, &rest));
  if (!manifest_heads.empty()) {
    RETURN_IF_ERROR(LoadHeads(folder, manifest_heads, &out));
  }
  return out;
}

absl::StatusOr<std::vector<ImportedHead>> HeadsOfHuggingFaceFolder(
    const std::string& folder) {
  std::map<std::string, TensorView> rest;
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, LoadEncoder(folder, &rest));
  const EncoderConfig& config = checkpoint.config;

  // Where the two layers are: RoBERTa's are both under "classifier.", BERT's
  // first one is the pooler.
  std::map<std::string, TensorView> task;  // "dense.weight", "out_proj.bias"
  const bool own_dense = rest.contains("classifier.dense.weight");
  for (const auto& [name, tensor] : rest) {
    absl::string_view part = name;
    if (!absl::ConsumePrefix(&part, "classifier.")) continue;
    task[own_dense ? std::string(part) : absl::StrCat("out_proj.", part)] =
        tensor;
  }
  if (task.empty()) return std::vector<ImportedHead>();
  if (!own_dense) {
    for (const char* part : {"dense.weight", "dense.bias"}) {
      const auto it = checkpoint.encoder.find(absl::StrCat("pooler.", part));
      if (it == checkpoint.encoder.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(folder, ": classifier.weight without pooler.", part,
                         ": not a classifier of sequences"));
      }
      task[part] = it->second;
    }
  }

  const auto out_weight = task.find("out_proj.weight");
  if (out_weight == task.end() || out_weight->second.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": no matrix classifier.",
                     own_dense ? "out_proj." : "", "weight"));
  }
  const int64_t width = out_weight->second.shape[0];
  ImportedHead out;
  ASSIGN_OR_RETURN(const internal::Pooling pooling, ClassifierPooling(folder));
  out.head.set_pooling(pooling);
  if (width == 1) {
    out.head.set_name("relevance");
    out.head.set_kind(internal::HEAD_KIND_RELEVANCE);
  } else {
    out.head.set_name("classifier");
    out.head.set_kind(internal::HEAD_KIND_CLASSIFICATION);
    // transformers leaves the labels out of config.json where they are the
    // default two; any other disagreement is one.
    if (!config.labels.empty() && config.labels.size() != width) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": classifier weight: ", width,
                       " outputs, id2label has ", config.labels.size()));
    }
    for (int64_t i = 0; i < width; ++i) {
      out.head.add_labels(config.labels.empty() ? absl::StrCat("LABEL_", i)
                                                : config.labels[i]);
    }
  }

  std::map<std::string, TensorView> named, checked;
  for (const auto& [part, tensor] : task) {
    named[absl::StrCat(out.head.name(), ".", part)] = tensor;
  }
  RETURN_IF_ERROR(Annotate(
      TakeHead(out.head, config.hidden_size, &named, &checked), folder));
  if (!named.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": the tensor ", named.begin()->first,
                     " is no part of a classifier of sequences"));
  }
  for (const auto& [name, tensor] : checked) {
    ASSIGN_OR_RETURN(std::vector<float> values, ToFloats(tensor));
    out.tensors.push_back(
        {name, TensorType::kF32, tensor.shape, std::move(values)});
  }
  std::vector<ImportedHead> heads;
  heads.push_back(std::move(out));
  return heads;
}

void AddHeads(const std::vector<ImportedHead>& heads, Checkpoint* checkpoint) {
  auto owned = std::make_shared<OwnedTensors>();
  for (const ImportedHead& head : heads) {
    for (const NamedTensor& tensor : head.tensors) owned->Add(tensor);
  }
  for (const auto& [name, tensor] : owned->tensors()) {
    checkpoint->heads[name] = tensor;
  }
  checkpoint->files.push_back(std::move(owned));
}

}  // namespace vitrine
