#include "trainer/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/textproto.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

const GateHead kRelevance = {"relevance", internal::HEAD_KIND_RELEVANCE};
const GateHead kTopic = {"topic", internal::HEAD_KIND_CLASSIFICATION};

v1::Gate Parse(const std::string& text) {
  v1::Gate gate;
  const absl::Status status = ParseTextProto(text, "gate", &gate);
  EXPECT_TRUE(status.ok()) << status;
  return gate;
}

// A relevance head over 400 queries: ndcg@10 of each is 0.6 and something of
// its own, plus `change` and noise of its own; rmse likewise.
struct Pair {
  Evaluation before, after;
};
Evaluation RelevanceOf(const std::vector<double>& ndcg) {
  Measure measure{"ndcg@10"}, rmse{"rmse", Measure::Form::kRootMean, true};
  for (int32_t unit = 0; unit < ndcg.size(); ++unit) {
    measure.terms.push_back({unit, 0, 1});
    measure.terms.push_back({unit, 1, ndcg[unit]});
    rmse.terms.push_back({unit, 0, 1});
    rmse.terms.push_back({unit, 1, (1 - ndcg[unit]) * (1 - ndcg[unit])});
  }
  return Evaluation(static_cast<int>(ndcg.size()), {measure, rmse});
}
Pair PairOf(double change, double noise, uint64_t seed = 1, int units = 400) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> own(-0.2, 0.2);
  std::normal_distribution<double> by_chance(0, noise > 0 ? noise : 1);
  std::vector<double> before(units), after(units);
  for (int i = 0; i < units; ++i) {
    before[i] = 0.6 + own(random);
    after[i] = before[i] + change + (noise > 0 ? by_chance(random) : 0);
  }
  return {RelevanceOf(before), RelevanceOf(after)};
}

Verdict JudgeOne(const std::string& gate, const Pair& pair,
                 const BatchLatency& latency = {}, int rows = 1000) {
  const HeadUnderTest head = {kRelevance, rows, &pair.after, &pair.before};
  const auto verdict = Judge(Parse(gate), {head}, latency, 1);
  EXPECT_TRUE(verdict.ok()) << verdict.status();
  return *verdict;
}

TEST(CheckGate, TakesTheDefaultsAndSoundRules) {
  EXPECT_TRUE(CheckGate(v1::Gate(), {kRelevance, kTopic}).ok());
  EXPECT_TRUE(CheckGate(Parse(R"(
      rules { metric: "ece" bound: 0.1 }
      rules { head: "topic" metric: "macro_f1" min_change: -0.01
              evidence: GATE_EVIDENCE_PROOF_OF_GAIN }
      confidence: 0.9 resamples: 500 max_latency_ratio: -1
      min_validation_rows: 5)"),
                        {kRelevance, kTopic})
                  .ok());
}

TEST(CheckGate, NamesEveryProblem) {
  v1::Gate gate = Parse(R"(
      rules { head: "topics" metric: "macro_f1" bound: 1 }
      rules { head: "topic" metric: "ndcg@10" bound: 1 }
      rules { metric: "bleu" bound: 1 }
      rules { metric: "ece" }
      rules { bound: 1 }
      rules { metric: "ece" bound: 1 evidence: GATE_EVIDENCE_PROOF_OF_GAIN }
      rules { metric: "ece" bound: nan }
      rules { metric: "ece" min_change: inf }
      rules { metric: "ece" min_change: 0 }
      confidence: 95 resamples: 9 min_validation_rows: -1
      max_latency_ratio: nan)");
  gate.mutable_rules(8)->set_evidence(static_cast<v1::GateEvidence>(7));
  const absl::Status status = CheckGate(gate, {kRelevance, kTopic});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* const part :
       {"rules[0]: head \"topics\": not trained; there is relevance, topic",
        "rules[1]: metric \"ndcg@10\": not one of macro_f1, accuracy, ece, "
        "auroc",
        "rules[2]: metric \"bleu\": not one of ndcg@10, mrr, map, rmse, ece, "
        "kappa, macro_f1, accuracy, auroc\n",
        "rules[3]: neither bound nor min_change", "rules[4]: metric: empty",
        "rules[5]: evidence without min_change", "rules[6]: bound: nan",
        "rules[7]: min_change: inf", "rules[8]: evidence: 7", "confidence 95",
        "resamples 9", "min_validation_rows -1", "max_latency_ratio: not"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  const Pair pair = PairOf(0, 0);
  EXPECT_EQ(Judge(gate, {{kRelevance, 99, &pair.after, &pair.before}}, {}, 1)
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Gate, TellsEveryMetricWithItsChange) {
  const Pair pair = PairOf(0.05, 0.1);
  const Verdict verdict = JudgeOne("", pair);
  EXPECT_THAT(verdict.rejections, IsEmpty());
  ASSERT_EQ(verdict.metrics.size(), 2);
  const v1::EvaluationMetric& ndcg = verdict.metrics[0];
  EXPECT_EQ(ndcg.head(), "relevance");
  EXPECT_EQ(ndcg.name(), "ndcg@10");
  EXPECT_EQ(ndcg.value(), pair.after.metrics()[0].value);
  EXPECT_EQ(ndcg.before(), pair.before.metrics()[0].value);
  EXPECT_LT(ndcg.change_low(), ndcg.value() - ndcg.before());
  EXPECT_GT(ndcg.change_high(), ndcg.value() - ndcg.before());
  EXPECT_FALSE(ndcg.lower_is_better());
  EXPECT_TRUE(verdict.metrics[1].lower_is_better());
}

TEST(Gate, HarmIsRefusedInASentence) {
  EXPECT_THAT(JudgeOne("", PairOf(-0.05, 0.1)).rejections,
              ElementsAre(MatchesRegex(
                  "relevance ndcg@10: 0\\.[0-9]+ -> 0\\.[0-9]+, change in "
                  "\\[-0\\.[0-9]+, -0\\.[0-9]+\\] at 95%: worse than allowed "
                  "\\(0\\)")));
  // As much is allowed here.
  EXPECT_THAT(JudgeOne("rules { metric: 'ndcg@10' min_change: -0.05 }",
                       PairOf(-0.05, 0.1))
                  .rejections,
              IsEmpty());
}

// Over seeds: how often a pair without a difference is refused.
int Refused(const std::string& gate, double change) {
  int refused = 0;
  for (int seed = 0; seed < 40; ++seed) {
    refused += !JudgeOne(gate, PairOf(change, 0.1, seed)).rejections.empty();
  }
  return refused;
}

TEST(Gate, NoiseNeitherBlocksNorPasses) {
  const std::string metric = "resamples: 200 rules { metric: 'ndcg@10' ";
  const std::string harm = absl::StrCat(metric, "min_change: 0 }");
  const std::string gain = absl::StrCat(
      metric, "min_change: 0 evidence: GATE_EVIDENCE_PROOF_OF_GAIN }");
  // One side of a 95% interval errs once in 40.
  EXPECT_LE(Refused(harm, 0), 4);
  EXPECT_GE(Refused(gain, 0), 36);
  // Six standard errors are no noise.
  EXPECT_EQ(Refused(harm, -0.03), 40);
  EXPECT_EQ(Refused(gain, 0.03), 0);
}

TEST(Gate, ProofOfGainAsksForTheWholeInterval) {
  const std::string rule =
      "rules { metric: 'ndcg@10' min_change: 0.05 "
      "evidence: GATE_EVIDENCE_PROOF_OF_GAIN }";
  EXPECT_THAT(
      JudgeOne(rule, PairOf(0.05, 0.1)).rejections,
      ElementsAre(HasSubstr("no proof of the gain that is asked for (0.05)")));
  EXPECT_THAT(JudgeOne(rule, PairOf(0.1, 0.1)).rejections, IsEmpty());
}

TEST(Gate, LessIsBetterTurnsChangesAndBoundsAround) {
  const std::string harm = "rules { metric: 'rmse' min_change: 0 }";
  // A better ndcg here is a smaller rmse.
  EXPECT_THAT(JudgeOne(harm, PairOf(0.05, 0.01)).rejections, IsEmpty());
  EXPECT_THAT(JudgeOne(harm, PairOf(-0.05, 0.01)).rejections,
              ElementsAre(HasSubstr("relevance rmse")));
  const std::string gain =
      "rules { metric: 'rmse' min_change: 0.01 "
      "evidence: GATE_EVIDENCE_PROOF_OF_GAIN }";
  EXPECT_THAT(JudgeOne(gain, PairOf(0.05, 0.01)).rejections, IsEmpty());
  EXPECT_THAT(JudgeOne(gain, PairOf(-0.05, 0.01)).rejections,
              ElementsAre(HasSubstr("no proof")));
  EXPECT_THAT(
      JudgeOne("rules { metric: 'rmse' bound: 0.9 }", PairOf(0, 0)).rejections,
      IsEmpty());
  EXPECT_THAT(
      JudgeOne("rules { metric: 'rmse' bound: 0.1 }", PairOf(0, 0)).rejections,
      ElementsAre(HasSubstr("is above the bound 0.1")));
}

TEST(Gate, BoundsAreOfTheValue) {
  EXPECT_THAT(JudgeOne("rules { metric: 'ndcg@10' bound: 0.55 }", PairOf(0, 0))
                  .rejections,
              IsEmpty());
  EXPECT_THAT(JudgeOne("rules { metric: 'ndcg@10' bound: 0.8 }", PairOf(0, 0))
                  .rejections,
              ElementsAre(MatchesRegex("relevance ndcg@10: 0\\.[0-9]+ is below "
                                       "the bound 0\\.8")));
}

TEST(Gate, EveryBrokenRuleIsAReason) {
  EXPECT_THAT(JudgeOne("rules { metric: 'ndcg@10' bound: 0.9 min_change: 0 }"
                       "rules { metric: 'rmse' min_change: 0 }",
                       PairOf(-0.1, 0.01))
                  .rejections,
              ElementsAre(HasSubstr("bound 0.9"), HasSubstr("ndcg@10: 0.6"),
                          HasSubstr("rmse")));
}

TEST(Gate, ConfidenceWidensTheInterval) {
  const Pair pair = PairOf(0, 0.1);
  const auto width = [&pair](const std::string& gate) {
    const Verdict verdict = JudgeOne(gate, pair);
    return verdict.metrics[0].change_high() - verdict.metrics[0].change_low();
  };
  EXPECT_LT(width("confidence: 0.5"), 0.5 * width(""));
}

TEST(Gate, TooFewRowsAreNoEvidence) {
  EXPECT_THAT(JudgeOne("", PairOf(0.1, 0), {}, 19).rejections,
              ElementsAre("relevance: 19 held-out rows, fewer than 20: no "
                          "evidence"));
  EXPECT_THAT(JudgeOne("", PairOf(0.1, 0), {}, 20).rejections, IsEmpty());
  EXPECT_THAT(
      JudgeOne("min_validation_rows: 50", PairOf(0.1, 0), {}, 49).rejections,
      ElementsAre(HasSubstr("fewer than 50")));
  // No rows at all, hence no metrics.
  const Evaluation nothing;
  const auto verdict =
      Judge(v1::Gate(), {{kTopic, 0, &nothing, nullptr}}, {}, 1);
  ASSERT_TRUE(verdict.ok()) << verdict.status();
  EXPECT_THAT(verdict->rejections, ElementsAre(HasSubstr("0 held-out rows")));
  EXPECT_TRUE(verdict->metrics.empty());
}

TEST(Gate, OneQueryIsNoEvidenceHoweverManyRows) {
  EXPECT_THAT(JudgeOne("", PairOf(0.1, 0, 1, 1)).rejections,
              ElementsAre("relevance ndcg@10: only 1 held-out queries, users "
                          "or rows count: no evidence"));
}

TEST(Gate, AHeadThatIsNewIsJudgedByBoundsOnly) {
  const Pair pair = PairOf(0, 0);
  const auto reasons = [&pair](const std::string& gate) {
    const auto verdict =
        Judge(Parse(gate), {{kRelevance, 99, &pair.after, nullptr}}, {}, 1);
    EXPECT_TRUE(verdict.ok()) << verdict.status();
    EXPECT_FALSE(verdict->metrics[0].has_before());
    EXPECT_FALSE(verdict->metrics[0].has_change_low());
    return verdict->rejections;
  };
  EXPECT_THAT(reasons(""), IsEmpty());
  EXPECT_THAT(reasons("rules { metric: 'ndcg@10' min_change: 0.5 "
                      "evidence: GATE_EVIDENCE_PROOF_OF_GAIN }"),
              IsEmpty());
  EXPECT_THAT(reasons("rules { metric: 'ndcg@10' bound: 0.9 min_change: 0 }"),
              ElementsAre(HasSubstr("below the bound")));
}

TEST(Gate, RulesAreOfTheirHeadOrOfEveryHeadThatHasTheMetric) {
  const Pair pair = PairOf(0, 0);
  const std::vector<int32_t> rows(50);
  const Evaluation topics =
      EvaluateClassification(std::vector<double>(100, 0.5), rows, {"a", "b"});
  const auto reasons = [&](const std::string& gate) {
    return Judge(Parse(gate),
                 {{kRelevance, 99, &pair.after, nullptr},
                  {kTopic, 50, &topics, nullptr}},
                 {}, 1)
        ->rejections;
  };
  EXPECT_THAT(reasons("rules { metric: 'ece' bound: 0.1 }"),
              ElementsAre(HasSubstr("relevance ece: was not measured"),
                          HasSubstr("topic ece: 0.5000 is above")));
  EXPECT_THAT(reasons("rules { head: 'topic' metric: 'ece' bound: 0.1 }"),
              ElementsAre(HasSubstr("topic ece")));
}

TEST(Gate, ASlowerCandidateIsRefused) {
  const Pair pair = PairOf(0, 0);
  EXPECT_THAT(JudgeOne("", pair, {3, 2}).rejections, IsEmpty());
  EXPECT_THAT(JudgeOne("", pair, {3.2, 2}).rejections,
              ElementsAre("latency: a batch takes 3.200 ms, 2.000 ms in "
                          "service: 1.60 times as long, at most 1.5 is "
                          "allowed"));
  EXPECT_THAT(JudgeOne("max_latency_ratio: 2", pair, {3.2, 2}).rejections,
              IsEmpty());
  EXPECT_THAT(JudgeOne("max_latency_ratio: -1", pair, {99, 2}).rejections,
              IsEmpty());
}

TEST(Gate, NumbersThatAreNoneDoNotPass) {
  Pair pair = PairOf(0, 0);
  std::vector<double> broken(400, 0.6);
  broken[7] = std::numeric_limits<double>::quiet_NaN();
  pair.after = RelevanceOf(broken);
  EXPECT_THAT(JudgeOne("", pair).rejections, ElementsAre(HasSubstr("nan")));
  EXPECT_THAT(
      JudgeOne("rules { metric: 'ndcg@10' bound: 0.1 }", pair).rejections,
      ElementsAre(HasSubstr("nan")));
}

TEST(Gate, EvaluationsThatDoNotPairUpAreAnError) {
  const Pair pair = PairOf(0, 0);
  Evaluation other = pair.before;
  other.set_unit_digest("other rows");
  const auto verdict =
      Judge(v1::Gate(), {{kRelevance, 99, &pair.after, &other}}, {}, 1);
  EXPECT_EQ(verdict.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(verdict.status().message()),
              HasSubstr("head relevance"));
}

}  // namespace
}  // namespace vitrine
