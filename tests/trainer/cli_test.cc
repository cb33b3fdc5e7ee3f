// The program itself, as a shell would call it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "model/load_tokenizer.h"
#include "nlohmann/json.hpp"
#include "store/model_registry.h"
#include "tests/testing/tiny_model.h"
#include "tests/trainer/small_shop.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct Result {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class CliTest : public ::testing::Test {
 protected:
  Result Call(const std::string& arguments) {
    const std::string out = shop_.File("stdout"), err = shop_.File("stderr");
    const int status =
        std::system(absl::StrCat(VITRINE_BIN_DIR, "/vitrine-trainer ",
                                 arguments, " >", out, " 2>", err)
                        .c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, *ReadFile(out),
            *ReadFile(err)};
  }

  std::string FitArguments(int epochs) const {
    return absl::StrCat("fit --from ", shop_.encoder(), " --items ",
                        shop_.items(), " --task relevance --data ",
                        shop_.relevance(), " --learning-rate 3e-3 --epochs ",
                        epochs, " --threads 1 --out ", shop_.registry(),
                        " --model shop");
  }

  SmallShop shop_;
};

TEST_F(CliTest, HelpTeachesAndWrongUsageExitsWithTwo) {
  EXPECT_THAT(Call("--help").out, HasSubstr("Examples:"));
  for (const char* const command :
       {"init", "import", "fit", "pretrain", "quantize", "evaluate"}) {
    const Result help = Call(absl::StrCat(command, " --help"));
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example"));
  }
  EXPECT_EQ(Call("").exit_code, 2);
  EXPECT_EQ(Call("nothing").exit_code, 2);
  EXPECT_EQ(Call("fit --task relevance").exit_code, 2);
  const Result freeze = Call(FitArguments(1) + " --freeze half");
  EXPECT_EQ(freeze.exit_code, 2);
  EXPECT_THAT(freeze.err, HasSubstr("half"));
}

TEST_F(CliTest, ARecipeGivesOptionsThatTheCommandLineDoesNotGive) {
  const std::string recipe = shop_.File("recipe.toml");
  ASSERT_TRUE(WriteFile(recipe,
                        "# as in the docs\nlearning-rate = 2e-3\n"
                        "epochs = 9\nmax-description-tokens = -1\n")
                  .ok());
  const std::string fit = absl::StrCat(
      "fit --recipe ", recipe, " --from ", shop_.encoder(), " --items ",
      shop_.items(), " --task relevance --data ", shop_.relevance(),
      " --threads 1 --out ", shop_.registry(), " --model shop --epochs 1");
  const Result done = Call(fit);
  ASSERT_EQ(done.exit_code, 0) << done.err;
  EXPECT_THAT(done.out, HasSubstr("1 epochs"));
  const auto manifest = ReadManifestFile(
      absl::StrCat(shop_.registry(), "/shop/1/manifest.textproto"));
  ASSERT_TRUE(manifest.ok());
  EXPECT_THAT(manifest->recipe(), HasSubstr("--learning-rate=2e-3"));
  EXPECT_THAT(manifest->recipe(), HasSubstr("--epochs=1"));
  EXPECT_THAT(manifest->recipe(), Not(HasSubstr("--epochs=9")));
  EXPECT_EQ(manifest->encoding().max_description_tokens(), -1);

  const auto refuses = [&](const char* text, const char* why) {
    ASSERT_TRUE(WriteFile(recipe, text).ok());
    const Result refused = Call(fit);
    EXPECT_EQ(refused.exit_code, 2) << text;
    EXPECT_THAT(refused.err, HasSubstr(why));
  };
  refuses("epoch = 1\n", "--epoch=1");
  refuses("[fit]\nwarmup = 1\n", "[fit]: a recipe has no sections");
  refuses("warmup = much\n", "much");
  EXPECT_THAT(Call("fit --recipe nowhere.toml").err, HasSubstr("nowhere.toml"));
}

TEST_F(CliTest, InitFitAndImportMakeVersions) {
  const std::string encoder = shop_.File("fresh");
  const std::string init =
      absl::StrCat("init --vocab ", shop_.File("encoder/vocab.txt"),
                   " --layers 1 --hidden 32 --out ", encoder);
  const Result made = Call(init);
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr("23 pieces"));
  // It does not write over what is there.
  EXPECT_THAT(Call(init).err, HasSubstr("not empty"));

  const Result fit = Call(FitArguments(2) + " --json");
  ASSERT_EQ(fit.exit_code, 0) << fit.err;
  const auto json = nlohmann::json::parse(fit.out);  // one line, nothing else
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["heads"][0]["kind"], "relevance");
  EXPECT_TRUE(json["heads"][0]["before"].is_null());
  EXPECT_GT(json["heads"][0]["after"]["ndcg@10"], 0.1);
  EXPECT_GT(json["heads"][0]["baselines"]["bm25"]["ndcg@10"], 0.1);
  EXPECT_THAT(fit.err, HasSubstr("epoch 2 loss"));
  EXPECT_THAT(fit.err, Not(HasSubstr("\033")));  // no bar into a file

  // What the gate refuses is told with its reasons, to people and programs.
  ASSERT_TRUE(WriteFile(shop_.File("gate.textproto"),
                        "rules { metric: 'ndcg@10' bound: 1.5 }")
                  .ok());
  const std::string again = absl::StrCat(
      FitArguments(1), " --gate ", shop_.File("gate.textproto"), " --json");
  const Result rejected = Call(again);
  EXPECT_EQ(rejected.exit_code, 1);
  const auto verdict = nlohmann::json::parse(rejected.out);
  EXPECT_EQ(verdict["version"], 0);
  EXPECT_EQ(verdict["rejected"], true);
  EXPECT_THAT(std::string(verdict["rejections"][0]),
              HasSubstr("below the bound 1.5"));
  EXPECT_THAT(rejected.err, HasSubstr("the gate rejects it:\n  relevance"));
  EXPECT_THAT(rejected.err, HasSubstr("nothing was published"));
  ASSERT_TRUE(WriteFile(shop_.File("gate.textproto"), "rule {}").ok());
  EXPECT_THAT(Call(again).err, HasSubstr("gate.textproto"));
  ASSERT_TRUE(WriteFile(shop_.File("gate.textproto"), "").ok());
  const Result dry = Call(again + " --dry-run");
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_THAT(dry.err, HasSubstr("the gate passes it"));
  EXPECT_EQ(nlohmann::json::parse(dry.out)["version"], 0);
  EXPECT_EQ(ModelRegistry(shop_.registry()).ListVersions("shop")->size(), 1);

  // Measured again, on all rows.
  const std::string evaluate = absl::StrCat(
      "evaluate shop/1 --registry ", shop_.registry(), " --items ",
      shop_.items(), " --task relevance --data ", shop_.relevance(),
      " --dtype fp32 --scores ", shop_.File("scores.jsonl"));
  const Result measured = Call(evaluate + " --json");
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  const auto numbers = nlohmann::json::parse(measured.out);
  EXPECT_EQ(numbers["source"], "shop/1");
  EXPECT_EQ(numbers["rows"], 960);
  EXPECT_GT(numbers["heads"][0]["metrics"]["ndcg@10"], 0.1);
  EXPECT_GT(numbers["heads"][0]["baselines"]["bm25"]["ndcg@10"], 0.1);
  EXPECT_THAT(measured.err, HasSubstr("960 rows in "));
  const std::string lines = *ReadFile(shop_.File("scores.jsonl"));
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 960);
  EXPECT_THAT(Call(evaluate).out, HasSubstr("ndcg@10"));
  EXPECT_EQ(Call(evaluate + " --dtype fp8").exit_code, 2);
  const Result headless = Call(evaluate + " --head topic");
  EXPECT_EQ(headless.exit_code, 1);
  EXPECT_THAT(headless.err, HasSubstr("it has relevance"));

  // The same version for int8.
  const std::string quantize =
      absl::StrCat("quantize shop/1 --out ", shop_.registry(), " --items ",
                   shop_.items(), " --task relevance --data ",
                   shop_.relevance(), " --calibration-rows 50 --json");
  ASSERT_TRUE(WriteFile(shop_.File("gate.textproto"),
                        "rules { metric: 'ndcg@10' bound: 1.5 }")
                  .ok());
  const Result refused =
      Call(absl::StrCat(quantize, " --gate ", shop_.File("gate.textproto")));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("the gate rejects it:\n  relevance"));
  ASSERT_TRUE(WriteFile(shop_.File("gate.textproto"),
                        "rules { metric: 'ndcg@10' bound: 0.01 } "
                        "max_latency_ratio: -1")
                  .ok());
  const Result quantized =
      Call(absl::StrCat(quantize, " --gate ", shop_.File("gate.textproto")));
  ASSERT_EQ(quantized.exit_code, 0) << quantized.err;
  EXPECT_EQ(nlohmann::json::parse(quantized.out)["version"], 2);
  EXPECT_THAT(quantized.err, HasSubstr("query_key_value"));
  EXPECT_EQ(Call("quantize shop/1 --out x --max-loss much").exit_code, 2);

  ASSERT_TRUE(testing::WriteTinyModel(shop_.File("hf")).ok());
  const Result import =
      Call(absl::StrCat("import --from ", shop_.File("hf"), " --out ",
                        shop_.registry(), " --model other"));
  ASSERT_EQ(import.exit_code, 0) << import.err;
  EXPECT_THAT(import.out, HasSubstr("head       relevance"));
  EXPECT_THAT(import.out, HasSubstr("wordpiece"));
  EXPECT_THAT(*ModelRegistry(shop_.registry()).ListModels(),
              ElementsAre("other", "shop"));
}

TEST_F(CliTest, ImportNamesTheTensorThatIsCut) {
  const std::string folder = shop_.File("hf");
  ASSERT_TRUE(testing::WriteTinyModel(folder).ok());
  const std::string weights = *ReadFile(folder + "/model.safetensors");
  ASSERT_TRUE(WriteFile(folder + "/model.safetensors",
                        weights.substr(0, weights.size() - 8))
                  .ok());
  const Result cut = Call(absl::StrCat("import --from ", folder, " --out ",
                                       shop_.registry(), " --model shop"));
  EXPECT_EQ(cut.exit_code, 1);
  EXPECT_THAT(cut.err, HasSubstr("model.safetensors"));
  EXPECT_FALSE(PathExists(shop_.registry() + "/shop/1"));
}

TEST_F(CliTest, TaskGroupsTakeTheOptionsThatFollow) {
  const std::string start = absl::StrCat(
      "fit --from ", shop_.encoder(), " --items ", shop_.items(),
      " --epochs 1 --threads 1 --out ", shop_.registry(), " --model shop");
  const Result two = Call(absl::StrCat(
      start, " --task classification --head kind --data ", shop_.texts(),
      " --task relevance --data ", shop_.relevance(), " --grades 0:3",
      " --task classification --data ", shop_.texts(), " --json"));
  ASSERT_EQ(two.exit_code, 0) << two.err;
  const auto json = nlohmann::json::parse(two.out);
  EXPECT_EQ(json["heads"][0]["name"], "kind");
  EXPECT_EQ(json["heads"][1]["name"], "relevance");
  EXPECT_EQ(json["heads"][2]["name"], "classifier");
  const Result early = Call(absl::StrCat(
      start, " --data ", shop_.texts(), " --task classification --task ",
      "relevance --data ", shop_.relevance()));
  EXPECT_EQ(early.exit_code, 2);
  EXPECT_THAT(early.err, HasSubstr("before the --task"));
  const Result missing = Call(
      absl::StrCat(start, " --task classification --task relevance --data ",
                   shop_.relevance()));
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, HasSubstr("has no --data"));
}

TEST_F(CliTest, PretrainLearnsItsOwnPiecesTheSameWayEveryTime) {
  const auto arguments = [this](const char* out) {
    return absl::StrCat(
        "pretrain --text ", shop_.items(), " --fields title,categories --text ",
        shop_.texts(), " --fields text --pieces 320 --layers 1 --hidden 32",
        " --max-tokens 32 --batch-tokens 512 --share-tokens 256",
        " --held-out-share 0.2 --threads 2 --checkpoint ",
        shop_.File("checkpoints"), " --out ", shop_.File(out));
  };
  const Result one = Call(arguments("one"));
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_THAT(one.out, HasSubstr("perplexity"));
  EXPECT_THAT(one.err, HasSubstr("280 documents"));
  EXPECT_FALSE(PathExists(shop_.File("checkpoints")));
  const Result two = Call(arguments("two"));
  ASSERT_EQ(two.exit_code, 0) << two.err;
  for (const char* const file : {"spiece.model", "model.safetensors"}) {
    EXPECT_TRUE(*ReadFile(shop_.File("one/") + file) ==
                *ReadFile(shop_.File("two/") + file))
        << file;
  }

  const auto tokenizer = LoadTokenizer(shop_.File("one"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->kind(), "sentencepiece");
  EXPECT_LE((*tokenizer)->vocab_size(), 320);
  const SpecialTokens& special = (*tokenizer)->special();
  EXPECT_EQ((*tokenizer)->Piece(special.mask), "[MASK]");
  const auto pieces = [&](const char* text) {
    std::string joined;
    for (const int32_t id : (*tokenizer)->Tokenize(text, 100).ids) {
      EXPECT_NE(id, special.unk) << text;
      joined += (*tokenizer)->Piece(id);
    }
    return joined;
  };
  EXPECT_EQ(pieces("RED Sofa"), "▁red▁sofa");
  EXPECT_EQ(pieces("\xE6\xB2\x99"), "▁<0xE6><0xB2><0x99>");  // by its bytes

  EXPECT_THAT(Call(arguments("one")).err, HasSubstr("not empty"));
  const Result field =
      Call(absl::StrCat("pretrain --text ", shop_.items(),
                        " --fields body --out ", shop_.File("three")));
  EXPECT_EQ(field.exit_code, 1);
  EXPECT_THAT(field.err, HasSubstr("items.jsonl:1: \"body\": missing"));
  EXPECT_FALSE(PathExists(shop_.File("three")));
  EXPECT_EQ(Call("pretrain --text nothing --out x").exit_code, 2);
}

TEST_F(CliTest, InterruptStopsWithoutPublishing) {
  const std::string log = shop_.File("log");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::freopen(log.c_str(), "w", stderr);
    const std::string command = absl::StrCat(
        "exec ", VITRINE_BIN_DIR, "/vitrine-trainer ", FitArguments(100000));
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  // Until it trains.
  for (int i = 0; i < 600; ++i) {
    const auto text = ReadFile(log);
    if (text.ok() && text->find("epoch 1 loss") != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  kill(child, SIGINT);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
  EXPECT_THAT(*ReadFile(log), HasSubstr("nothing was published"));
  EXPECT_FALSE(PathExists(shop_.registry() + "/shop/1"));
}

}  // namespace
}  // namespace vitrine
