#pragma once

// PredictInterests, Embed and Classify: one head over histories, texts or
// items.

#include <memory>

#include "server/inference_job.h"

namespace vitrine {

// The call's request and response are those of the method.
std::shared_ptr<InferenceJob> NewInterestsJob(const InferenceParts& parts,
                                              std::shared_ptr<Call> call);
std::shared_ptr<InferenceJob> NewEmbedJob(const InferenceParts& parts,
                                          std::shared_ptr<Call> call);
std::shared_ptr<InferenceJob> NewClassifyJob(const InferenceParts& parts,
                                             std::shared_ptr<Call> call);

}  // namespace vitrine
