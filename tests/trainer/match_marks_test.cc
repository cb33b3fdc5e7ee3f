#include "trainer/match_marks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/checkpoint.h"
#include "tests/trainer/small_shop.h"
#include "trainer/network.h"
#include "trainer/source_model.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr char kTable[] = "embeddings.token_type_embeddings.weight";

class MatchMarksTest : public ::testing::Test {
 protected:
  // The shop's encoder with a segment table of so many rows.
  std::string WithSegments(int64_t segments) {
    const std::string folder = shop_.File("encoder-of-segments");
    const auto source = LoadSourceModel(shop_.encoder());
    NewVersion model = *CopyOf(**source);
    model.config.type_vocab_size = segments;
    for (NamedTensor& tensor : model.encoder) {
      if (tensor.name != kTable) continue;
      tensor.shape[0] = segments;
      tensor.values.resize(segments * tensor.shape[1]);
      for (size_t i = 0; i < tensor.values.size(); ++i) {
        tensor.values[i] = static_cast<float>(i) * 0.001f;
      }
    }
    EXPECT_TRUE(MakeFolders(folder).ok());
    EXPECT_TRUE(WriteModelFolder(folder, model).ok());
    return folder;
  }
  static std::vector<float> Table(const SourceModel& source) {
    return *ToFloats(source.checkpoint.encoder.at(kTable));
  }

  SmallShop shop_;
};

TEST_F(MatchMarksTest, RowsAreAddedAsCopies) {
  const auto source = LoadSourceModel(WithSegments(2));
  ASSERT_TRUE(source.ok()) << source.status();
  const std::vector<float> before = Table(**source);
  ASSERT_TRUE(SetMatchMarks(MatchMarks::kAuto, source->get()).ok());
  EXPECT_EQ((*source)->checkpoint.config.type_vocab_size, 2);
  ASSERT_TRUE(SetMatchMarks(MatchMarks::kOn, source->get()).ok());
  EXPECT_EQ((*source)->checkpoint.config.type_vocab_size, 4);
  std::vector<float> twice = before;
  twice.insert(twice.end(), before.begin(), before.end());
  EXPECT_THAT(Table(**source), ElementsAreArray(twice));
  ASSERT_TRUE(SetMatchMarks(MatchMarks::kOff, source->get()).ok());
  EXPECT_THAT(Table(**source), ElementsAreArray(before));
}

TEST_F(MatchMarksTest, OneSegmentBecomesFourAlike) {
  const auto source = LoadSourceModel(WithSegments(1));
  ASSERT_TRUE(source.ok()) << source.status();
  const std::vector<float> row = Table(**source);
  ASSERT_TRUE(SetMatchMarks(MatchMarks::kOff, source->get()).ok());
  EXPECT_EQ((*source)->checkpoint.config.type_vocab_size, 1);
  ASSERT_TRUE(SetMatchMarks(MatchMarks::kOn, source->get()).ok());
  const std::vector<float> table = Table(**source);
  ASSERT_EQ(table.size(), 4 * row.size());
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(table[i], row[i % row.size()]);
  }
}

TEST_F(MatchMarksTest, ManySegmentsMeanSomethingElse) {
  const auto source = LoadSourceModel(WithSegments(16));
  ASSERT_TRUE(source.ok()) << source.status();
  const absl::Status status = SetMatchMarks(MatchMarks::kOn, source->get());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("16 segments"));
}

TEST_F(MatchMarksTest, FitTrainsThemOnAModelThatHadNone) {
  FineTuneOptions fit = shop_.Options();
  fit.from = WithSegments(2);
  fit.tasks = {shop_.Task(internal::HEAD_KIND_RELEVANCE)};
  fit.epochs = 1;
  FineTuneListener quiet;
  const std::atomic<bool> stop{false};
  const auto segments_of = [](const FineTuneReport& report) {
    return LoadSourceModel(report.folder)
        .value()
        ->checkpoint.config.type_vocab_size;
  };
  const auto plain = FineTune(fit, &quiet, stop);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(segments_of(*plain), 2);
  fit.match_marks = MatchMarks::kOn;
  const auto marked = FineTune(fit, &quiet, stop);
  ASSERT_TRUE(marked.ok()) << marked.status();
  EXPECT_EQ(segments_of(*marked), 4);
  const std::vector<float> table = Table(**LoadSourceModel(marked->folder));
  const auto width = table.size() / 4;
  EXPECT_NE(
      std::vector<float>(table.begin(), table.begin() + width),
      std::vector<float>(table.begin() + 2 * width, table.begin() + 3 * width))
      << "words that match are as any";
}

}  // namespace
}  // namespace vitrine
