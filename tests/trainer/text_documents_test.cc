#include "trainer/text_documents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <string>
#include <vector>

#include "base/file.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;

class TextDocumentsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& content) {
    EXPECT_TRUE(WriteFile(folder_.File(name), content).ok());
    return folder_.File(name);
  }
  std::string WriteGzip(const std::string& name, const std::string& content) {
    const std::string path = folder_.File(name);
    const gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
    gzclose(file);
    return path;
  }
  static std::vector<TextField> Fields(const std::string& fields) {
    return fields.empty() ? std::vector<TextField>() : *ParseTextFields(fields);
  }
  // All documents, or the error instead of what follows it.
  std::vector<Document> Read(const std::vector<TextSource>& sources) {
    std::vector<Document> documents;
    Document document;
    for (DocumentReader reader(sources);;) {
      const absl::StatusOr<bool> read = reader.Next(&document);
      status_ = read.status();
      if (!read.ok() || !*read) return documents;
      documents.push_back(document);
    }
  }
  // The message without the folder.
  std::string Error(const std::string& name, const std::string& content,
                    const std::string& fields) {
    Read({{Write(name, content), Fields(fields)}});
    EXPECT_EQ(status_.code(), absl::StatusCode::kInvalidArgument);
    std::string message(status_.message());
    const std::string start = folder_.path() + "/";
    EXPECT_EQ(message.substr(0, start.size()), start);
    return message.substr(start.size());
  }

  TempFolder folder_;
  absl::Status status_;
};

TEST_F(TextDocumentsTest, ReadsLinesAndFieldsPackedOrNot) {
  const std::string rows =
      "{\"title\":\"Sofa\",\"tags\":[\"home\",\"red\"],\"n\":1}\n"
      "{\"title\":\"Lamp\",\"tags\":null}\n"
      "{\"tags\":[],\"title\":\" \"}\n";
  EXPECT_THAT(Read({{Write("a.txt", "one\n\n two \r\n"), {}},
                    {WriteGzip("b.txt.gz", "three"), {}},
                    {WriteGzip("c.jsonl.gz", rows), Fields("title,tags?")}}),
              ElementsAre(ElementsAre("one"), ElementsAre(" two "),
                          ElementsAre("three"), ElementsAre("Sofa", "home red"),
                          ElementsAre("Lamp")));
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(TextDocumentsTest, NamesTheLineAndTheFieldThatIsWrong) {
  EXPECT_EQ(
      Error("a.jsonl", "{\"title\":\"x\"}\n\n{\"name\":\"x\"}\n", "title"),
      "a.jsonl:3: \"title\": missing");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":null}\n", "title"),
            "a.jsonl:1: \"title\": missing");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":\"x\",\"text\":7}\n", "title,text?"),
            "a.jsonl:1: \"text\": a string is expected, not number");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":[\"x\",{}]}\n", "title"),
            "a.jsonl:1: \"title\": a list of strings is expected, not of "
            "object");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":\"x\"}\n[1]\n", "title"),
            "a.jsonl:2: an object is expected, not array");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":\"x\"\n", "title"),
            "a.jsonl:1: not JSON");
  EXPECT_EQ(Error("a.txt", "good\nb\xC3(d\n", ""),
            "a.txt:2: not UTF-8 at byte 1");
}

TEST_F(TextDocumentsTest, NamesFilesWithoutTextOrOfAnotherKind) {
  EXPECT_EQ(Error("a.txt", "", ""), "a.txt: no text in it");
  EXPECT_EQ(Error("a.txt", "\n \n", ""), "a.txt: no text in it");
  EXPECT_EQ(Error("a.jsonl", "{\"title\":\"\"}\n", "title"),
            "a.jsonl: no text in it");
  EXPECT_EQ(Error("a.txt.gz", "", ""), "a.txt.gz: no text in it");
  EXPECT_EQ(Error("a.txt.gz", "plain\n", ""),
            "a.txt.gz: its name ends in .gz, but it is not gzip");
}

TEST_F(TextDocumentsTest, GzipThatIsCutIsAnError) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * i) + "\n";
  const std::string whole = *ReadFile(WriteGzip("a.txt.gz", text));
  Read({{Write("a.txt.gz", whole.substr(0, whole.size() / 2)), {}}});
  EXPECT_EQ(status_.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status_.message()),
              ::testing::HasSubstr("a.txt.gz:"));
}

TEST_F(TextDocumentsTest, FieldNamesAreNotEmpty) {
  EXPECT_EQ(ParseTextFields("title,,text").status().message(),
            "--fields title,,text: an empty name");
  EXPECT_FALSE(ParseTextFields("?").ok());
  const auto fields = ParseTextFields("title,text?");
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ((*fields)[0].name, "title");
  EXPECT_FALSE((*fields)[0].optional);
  EXPECT_EQ((*fields)[1].name, "text");
  EXPECT_TRUE((*fields)[1].optional);
}

}  // namespace
}  // namespace vitrine
