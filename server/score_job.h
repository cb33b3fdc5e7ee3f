#pragma once

// Score and Rank: items against a query, a history or both.

#include <memory>

#include "server/inference_job.h"

namespace vitrine {

// The call's request and response are ScoreRequest and ScoreResponse, or
// RankRequest and RankResponse, by its method.
std::shared_ptr<InferenceJob> NewScoreJob(const InferenceParts& parts,
                                          std::shared_ptr<Call> call);
std::shared_ptr<InferenceJob> NewRankJob(const InferenceParts& parts,
                                         std::shared_ptr<Call> call);

}  // namespace vitrine
