#include "server/inference_service.h"

#include <utility>

#include "base/proto_duration.h"
#include "server/grpc_status.h"
#include "server/head_jobs.h"
#include "server/inference_job.h"
#include "server/score_job.h"
#include "server/version.h"
#include "vitrine/v1/inference.grpc.pb.h"

namespace vitrine {
namespace {

// Raw: the handlers get bytes, since parsing is the pool's work and a parser
// would refuse a whole call for one bad string. See Rpc.
template <typename Base>
using Raw = v1::InferenceService::WithRawCallbackMethod_Score<
    v1::InferenceService::WithRawCallbackMethod_Rank<
        v1::InferenceService::WithRawCallbackMethod_PredictInterests<
            v1::InferenceService::WithRawCallbackMethod_Embed<
                v1::InferenceService::WithRawCallbackMethod_Classify<
                    v1::InferenceService::WithRawCallbackMethod_ListModels<
                        Base>>>>>>;

absl::string_view KindName(internal::HeadKind kind) {
  switch (kind) {
    case internal::HEAD_KIND_RELEVANCE:
      return "relevance";
    case internal::HEAD_KIND_RECOMMENDATION:
      return "recommendation";
    case internal::HEAD_KIND_INTEREST:
      return "interest";
    case internal::HEAD_KIND_CLASSIFICATION:
      return "classification";
    default:
      return "";
  }
}

class InferenceService : public Raw<v1::InferenceService::Service> {
 public:
  InferenceService(const InferenceOptions& options, Rpc& rpc,
                   const ModelManager& models, Batcher& batcher,
                   TokenCache& tokens, VectorCache& vectors)
      : parts_{.checks = RequestChecks(options.limits),
               .personalization_weight = options.personalization_weight,
               .rpc = rpc,
               .models = models,
               .batcher = batcher,
               .tokens = tokens,
               .vectors = vectors} {}

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Run<v1::ScoreRequest, v1::ScoreResponse>(
        Method::kScore, &NewScoreJob, context, request, response);
  }

  grpc::ServerUnaryReactor* Rank(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* response) override {
    return Run<v1::RankRequest, v1::RankResponse>(Method::kRank, &NewRankJob,
                                                  context, request, response);
  }

  grpc::ServerUnaryReactor* PredictInterests(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
      grpc::ByteBuffer* response) override {
    return Run<v1::PredictInterestsRequest, v1::PredictInterestsResponse>(
        Method::kPredictInterests, &NewInterestsJob, context, request,
        response);
  }

  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Run<v1::EmbedRequest, v1::EmbedResponse>(
        Method::kEmbed, &NewEmbedJob, context, request, response);
  }

  grpc::ServerUnaryReactor* Classify(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return Run<v1::ClassifyRequest, v1::ClassifyResponse>(
        Method::kClassify, &NewClassifyJob, context, request, response);
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override {
    return parts_.rpc.Handle<v1::ListModelsRequest, v1::ListModelsResponse>(
        Method::kListModels, context, request, response,
        [this](const std::shared_ptr<Call>& call) {
          FillListModels(static_cast<v1::ListModelsResponse*>(call->response));
          call->Finish(absl::OkStatus());
        });
  }

 private:
  using NewJob = std::shared_ptr<InferenceJob> (*)(const InferenceParts&,
                                                   std::shared_ptr<Call>);

  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Run(Method method, NewJob new_job,
                                grpc::CallbackServerContext* context,
                                const grpc::ByteBuffer* request,
                                grpc::ByteBuffer* response) {
    return parts_.rpc.Handle<Request, Response>(
        method, context, request, response,
        [this, new_job](std::shared_ptr<Call> call) {
          new_job(parts_, std::move(call))->Start();
        });
  }

  void FillListModels(v1::ListModelsResponse* out) const {
    bool is_default = true;  // the first
    for (const auto& version : parts_.models.List()) {
      const ServableModel& model = *version->model;
      v1::ServedModel& served = *out->add_models();
      served.mutable_model()->set_name(version->name);
      served.mutable_model()->set_version(version->version);
      served.set_is_default(std::exchange(is_default, false));
      for (const internal::Head& head : model.heads()) {
        // "embedding" is what Embed falls back on, not a head of the version.
        if (head.name() == "embedding") continue;
        v1::HeadInfo& info = *served.add_heads();
        info.set_name(head.name());
        info.set_kind(std::string(KindName(head.kind())));
        *info.mutable_labels() = head.labels();
      }
      if (model.embedding_head() >= 0) {
        served.set_embedding_size(model.engine().width(model.embedding_head()));
      }
      served.set_max_tokens(model.encoding().max_tokens());
      served.set_engine(model.engine().name());
      served.set_device(model.engine().device());
      served.set_dtype(model.engine().dtype());
      served.set_tokenizer(std::string(model.tokenizer().kind()));
      const absl::Duration since = version->serving_since - absl::UnixEpoch();
      const google::protobuf::Duration loaded = ToProtoDuration(since);
      served.mutable_loaded()->set_seconds(loaded.seconds());
      served.mutable_loaded()->set_nanos(loaded.nanos());
    }
    const internal::LimitsConfig& limits = parts_.checks.limits();
    v1::ServerLimits& to = *out->mutable_limits();
    to.set_max_items(limits.max_items());
    to.set_max_texts(limits.max_texts());
    to.set_max_history(limits.max_history());
    to.set_max_field_bytes(limits.max_field_bytes());
    to.set_max_attributes(limits.max_attributes());
    to.set_max_message_bytes(limits.max_message_bytes());
    out->set_server_version(kVersion);
  }

  const InferenceParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewInferenceService(
    const InferenceOptions& options, Rpc& rpc, const ModelManager& models,
    Batcher& batcher, TokenCache& tokens, VectorCache& vectors) {
  return std::make_unique<InferenceService>(options, rpc, models, batcher,
                                            tokens, vectors);
}

}  // namespace vitrine
