#include "server/utf8_repair.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vitrine/v1/inference.pb.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// `message` with every "@@" made a bad byte pair; lengths stay.
std::string Spoilt(const google::protobuf::Message& message,
                   const std::string& bad = "\xff\xfe") {
  std::string bytes = message.SerializeAsString();
  for (size_t at = 0; (at = bytes.find("@@", at)) != std::string::npos;) {
    bytes.replace(at, 2, bad);
  }
  return bytes;
}

std::vector<std::string> Messages(const std::vector<BadString>& bad) {
  std::vector<std::string> out;
  for (const BadString& string : bad) out.push_back(string.message());
  return out;
}

TEST(Utf8RepairTest, LeavesGoodMessagesAlone) {
  v1::RankRequest request;
  request.mutable_context()->set_query("sofá 沙发 \xf0\x9f\x9b\x8b");
  request.add_items()->set_title(std::string("nul \0 byte", 10));
  std::string bytes = request.SerializeAsString();
  const std::string before = bytes;
  const auto bad = RepairUtf8(*v1::RankRequest::descriptor(), &bytes);
  ASSERT_TRUE(bad.ok());
  EXPECT_THAT(*bad, IsEmpty());
  EXPECT_EQ(bytes, before);
}

TEST(Utf8RepairTest, NamesEachFieldAndByte) {
  v1::RankRequest request;
  request.mutable_context()->set_query("so@@");
  v1::Interaction& event = *request.mutable_context()->add_history();
  event.mutable_item()->set_brand("@@");
  request.add_items()->set_title("fine");
  request.add_items()->set_title("lamp @@");
  request.add_items()->add_categories("a");
  request.mutable_items(2)->add_categories("b@@");
  std::string bytes = Spoilt(request);
  const auto bad = RepairUtf8(*v1::RankRequest::descriptor(), &bytes);
  ASSERT_TRUE(bad.ok());
  EXPECT_THAT(
      Messages(*bad),
      ElementsAre("context.query: invalid UTF-8 at byte 2",
                  "context.history[0].item.brand: invalid UTF-8 at byte 0",
                  "items[1].title: invalid UTF-8 at byte 5",
                  "items[2].categories[1]: invalid UTF-8 at byte 1"));
  EXPECT_EQ((*bad)[0].element, "context");
  EXPECT_EQ((*bad)[0].index, -1);
  EXPECT_EQ((*bad)[2].element, "items");
  EXPECT_EQ((*bad)[2].index, 1);
  v1::RankRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(bytes));
  EXPECT_EQ(parsed.context().query(), "so??");
  EXPECT_EQ(parsed.items(0).title(), "fine");
  EXPECT_EQ(parsed.items(1).title(), "lamp ??");
}

TEST(Utf8RepairTest, FindsBadKeysAndValuesOfMaps) {
  v1::EmbedRequest request;
  (*request.add_items()->mutable_attributes())["color@@"] = "red";
  (*request.add_items()->mutable_attributes())["color"] = "r@@d";
  std::string bytes = Spoilt(request);
  const auto bad = RepairUtf8(*v1::EmbedRequest::descriptor(), &bytes);
  ASSERT_TRUE(bad.ok());
  EXPECT_THAT(
      Messages(*bad),
      ElementsAre("items[0].attributes key: invalid UTF-8 at byte 5",
                  "items[1].attributes value: invalid UTF-8 at byte 1"));
  EXPECT_TRUE(v1::EmbedRequest().ParseFromString(bytes));
}

TEST(Utf8RepairTest, ListsOneStringPerElement) {
  v1::RankRequest request;
  request.add_items()->set_id("@@");
  request.mutable_items(0)->set_title("@@");
  std::string bytes = Spoilt(request);
  const auto bad = RepairUtf8(*v1::RankRequest::descriptor(), &bytes);
  ASSERT_TRUE(bad.ok());
  EXPECT_EQ(bad->size(), 1);
  EXPECT_TRUE(v1::RankRequest().ParseFromString(bytes));
}

TEST(Utf8RepairTest, RepairsEveryKindOfBadBytes) {
  for (const std::string& two :
       {std::string("\xc0\x80"), std::string("\xed\xa0"), std::string("\xf5z"),
        std::string("\x80z"), std::string("z\xe2"), std::string("\xc3(")}) {
    v1::ClassifyRequest request;
    request.add_texts("a@@");
    std::string bytes = Spoilt(request, two);
    const auto bad = RepairUtf8(*v1::ClassifyRequest::descriptor(), &bytes);
    ASSERT_TRUE(bad.ok());
    ASSERT_EQ(bad->size(), 1);
    EXPECT_EQ((*bad)[0].path, "texts[0]");
    EXPECT_TRUE(v1::ClassifyRequest().ParseFromString(bytes));
  }
}

TEST(Utf8RepairTest, PassesOverUnknownFields) {
  v1::ClassifyRequest request;
  request.add_texts("@@");
  std::string bytes = Spoilt(request);
  // Field 1000 as bytes that are no UTF-8, a varint, fixed32, fixed64 and a
  // group with such bytes within.
  bytes += std::string("\xc2\x3e\x02\xff\xff", 5);
  bytes += std::string("\xc0\x3e\x05", 3);
  bytes += std::string("\xc5\x3e\x01\x02\x03\x04", 6);
  bytes += std::string("\xc1\x3e\x01\x02\x03\x04\x05\x06\x07\x08", 10);
  bytes += std::string("\xc3\x3e\x0a\x01\xff\xc4\x3e", 7);
  const auto bad = RepairUtf8(*v1::ClassifyRequest::descriptor(), &bytes);
  ASSERT_TRUE(bad.ok()) << bad.status();
  EXPECT_THAT(Messages(*bad), ElementsAre("texts[0]: invalid UTF-8 at byte 0"));
  EXPECT_TRUE(v1::ClassifyRequest().ParseFromString(bytes));
}

TEST(Utf8RepairTest, RefusesWhatIsNoMessage) {
  for (const std::string& bytes :
       {std::string("\xff"), std::string("\x0a\x7f"), std::string("\x07"),
        std::string("\x00\x01", 2), std::string("\x0c"),
        std::string("\xc3\x3e"), std::string(20, '\xff'),
        std::string("\x1a\x03\x12\x09g", 5)}) {
    std::string copy = bytes;
    EXPECT_TRUE(absl::IsInvalidArgument(
        RepairUtf8(*v1::RankRequest::descriptor(), &copy).status()));
  }
}

TEST(Utf8RepairTest, EveryCutOfAMessageIsRefusedOrParses) {
  v1::RankRequest request;
  request.mutable_context()->set_query("so@@fa");
  for (int i = 0; i < 3; ++i) {
    v1::Item& item = *request.add_items();
    item.set_title("ti@@tle");
    (*item.mutable_attributes())["k@@"] = "v";
  }
  const std::string bytes = Spoilt(request);
  for (size_t size = 0; size < bytes.size(); ++size) {
    std::string cut = bytes.substr(0, size);
    if (RepairUtf8(*v1::RankRequest::descriptor(), &cut).ok()) {
      EXPECT_TRUE(v1::RankRequest().ParseFromString(cut)) << size;
    }
  }
}

TEST(Utf8RepairTest, BoundsHowManyBadElementsItLists) {
  v1::ClassifyRequest request;
  for (int i = 0; i < 70000; ++i) request.add_texts("@@");
  std::string bytes = Spoilt(request);
  EXPECT_TRUE(absl::IsInvalidArgument(
      RepairUtf8(*v1::ClassifyRequest::descriptor(), &bytes).status()));
}

TEST(Utf8RepairTest, RefusesDeepNesting) {
  std::string group;
  for (int i = 0; i < 100000; ++i) group += "\xc3\x3e";
  EXPECT_FALSE(RepairUtf8(*v1::RankRequest::descriptor(), &group).ok());
}

}  // namespace
}  // namespace vitrine
