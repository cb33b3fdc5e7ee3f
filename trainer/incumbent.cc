#include "trainer/incumbent.h"

#include <memory>

#include "base/status_macros.h"
#include "model/featurizer.h"
#include "trainer/network.h"
#include "trainer/source_model.h"

namespace vitrine {

absl::StatusOr<Incumbent> EvaluateIncumbent(
    const std::string& folder, absl::Span<const HeldOutRows> held_out,
    const Catalogue& catalogue, size_t samples, bool bf16, Workers* workers,
    PassDevice device) {
  ASSIGN_OR_RETURN(const auto model, LoadSourceModel(folder));
  const EncoderConfig& config = model->checkpoint.config;
  ASSIGN_OR_RETURN(const internal::EncodingOptions encoding,
                   ResolveEncodingOptions(model->manifest.encoding(), config));
  const Featurizer featurizer(*model->tokenizer, encoding, config);
  ASSIGN_OR_RETURN(const auto network,
                   Network::Create(model->checkpoint, model->heads(), bf16,
                                   workers, device));
  Incumbent incumbent;
  for (const internal::Head& head : network->head_list()) {
    incumbent.heads.push_back(head.name());
  }
  for (const HeldOutRows& of : held_out) {
    IncumbentHead& answer = incumbent.asked.emplace_back();
    const int own = network->FindHead(of.settings.head.name());
    if (own < 0 || network->head(own).kind() != of.settings.head.kind()) {
      continue;
    }
    TaskSettings settings = of.settings;
    settings.head = network->head(own);
    settings.evaluation_only = true;
    settings.source_tables = model->TablesOf(settings.head.name());
    Split split;
    split.training.kind = of.rows->kind;
    split.training.grades = of.rows->grades;
    split.validation = *of.rows;
    ASSIGN_OR_RETURN(const auto task,
                     NewTask(settings, featurizer, catalogue, split));
    ASSIGN_OR_RETURN(const int head,
                     network->PutHead(task->head(), /*seed=*/1));
    answer.exists = true;
    answer.evaluation = task->Evaluate(*network, head);
    for (const Encoding* const sample : task->Samples(samples)) {
      answer.samples.push_back(*sample);
    }
  }
  return incumbent;
}

}  // namespace vitrine
