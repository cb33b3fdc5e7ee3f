#include "server/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "prometheus/text_serializer.h"
#include "server/metrics_http.h"
#include "server/process_metrics.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string Text(const Metrics& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
}

// "name type" of every family.
std::set<std::string> Families(const std::string& text) {
  std::set<std::string> out;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::ConsumePrefix(&line, "# TYPE ")) out.insert(std::string(line));
  }
  return out;
}

TEST(MetricsTest, TheTableOfTheReadmeIsWhatIsExported) {
  Metrics metrics;
  metrics.model_version("shop");
  metrics.load_failures("shop");
  metrics.swaps("shop");
  const VersionMetrics version(
      metrics, "shop", "1", {{Method::kRank, "relevance"}}, absl::Seconds(1));
  const std::set<std::string> exported =
      Families(Text(metrics) + prometheus::TextSerializer().Serialize(
                                   NewProcessMetrics()->Collect()));
  const auto doc = ReadFile(JoinPath(VITRINE_SOURCE_DIR, "README.md"));
  ASSERT_TRUE(doc.ok()) << doc.status();
  std::set<std::string> documented;
  for (const absl::string_view line : absl::StrSplit(*doc, '\n')) {
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    if (cells.size() < 5) continue;
    std::string name(absl::StripAsciiWhitespace(cells[1]));
    // The README's other tables are about other things.
    if (!absl::StartsWith(name, "`vitrine_") &&
        !absl::StartsWith(name, "`process_")) {
      continue;
    }
    name = name.substr(1, name.size() - 2);
    documented.insert(
        absl::StrCat(name, " ", absl::StripAsciiWhitespace(cells[2])));
  }
  EXPECT_EQ(exported, documented);
}

TEST(MetricsTest, EverythingIsThereAtZero) {
  Metrics metrics;
  const std::string text = Text(metrics);
  for (const char* line :
       {"vitrine_requests_total{code=\"OK\",method=\"Rank\"} 0",
        "vitrine_requests_total{code=\"UNAVAILABLE\",method=\"Embed\"} 0",
        "vitrine_rejected_total{reason=\"queue_full\"} 0",
        "vitrine_item_vector_cache_hits_total 0",
        "vitrine_token_cache_hits_total 0", "vitrine_token_cache_bytes 0",
        "vitrine_batch_tokens_count 0", "vitrine_queue_tokens 0",
        "vitrine_requests_total{code=\"UNAUTHENTICATED\",method=\"RollbackModel"
        "\"} 0",
        "vitrine_feedback_total{outcome=\"stored\"} 0",
        "vitrine_feedback_total{outcome=\"duplicate\"} 0",
        "vitrine_feedback_total{outcome=\"rejected\"} 0",
        "vitrine_feedback_waiting 0",
        "vitrine_feedback_commit_seconds_count 0"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, AVersionsSeriesComeAndGoWithIt) {
  Metrics metrics;
  {
    const VersionMetrics version(
        metrics, "shop", "7", {{Method::kRank, "relevance"}}, absl::Seconds(3));
    ASSERT_NE(version.Find(Method::kRank, "relevance"), nullptr);
    EXPECT_EQ(version.Find(Method::kScore, "relevance"), nullptr);
    version.Find(Method::kRank, "relevance")
        ->Observe({.total = absl::Milliseconds(20)});
    EXPECT_THAT(Text(metrics),
                AllOf(HasSubstr("vitrine_model_load_seconds{model=\"shop\","
                                "version=\"7\"} 3"),
                      HasSubstr("vitrine_request_seconds_count{head="
                                "\"relevance\",method=\"Rank\",model=\"shop\","
                                "version=\"7\"} 1")));
  }
  EXPECT_THAT(Text(metrics), Not(HasSubstr("version=\"7\"")));
}

TEST(MetricsTest, TellsOfTheProcess) {
  const std::string text =
      prometheus::TextSerializer().Serialize(NewProcessMetrics()->Collect());
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> parts = absl::StrSplit(line, ' ');
    double value = 0;
    ASSERT_TRUE(absl::SimpleAtod(parts[1], &value)) << line;
    EXPECT_GT(value, 0) << line;
  }
}

// What comes back for the bytes of a request.
std::string Fetch(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), request.size());
  std::string out;
  char chunk[4096];
  for (ssize_t n; (n = recv(fd, chunk, sizeof(chunk), 0)) > 0;) {
    out.append(chunk, n);
  }
  close(fd);
  return out;
}

class MetricsHttpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto http = MetricsHttp::Start({"localhost", 0}, {metrics_.registry()});
    ASSERT_TRUE(http.ok()) << http.status();
    http_ = *std::move(http);
  }

  Metrics metrics_;
  std::unique_ptr<MetricsHttp> http_;
};

TEST_F(MetricsHttpTest, AnswersScrapes) {
  const std::string answer =
      Fetch(http_->port(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(answer, HasSubstr("\nvitrine_requests_total{"));
  EXPECT_EQ(Fetch(http_->port(), "GET /metrics?x=1 HTTP/1.0\r\n\r\n").size(),
            answer.size());
}

TEST_F(MetricsHttpTest, RefusesOtherPathsAndMethods) {
  EXPECT_THAT(Fetch(http_->port(), "GET / HTTP/1.1\r\n\r\n"),
              StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Fetch(http_->port(), "POST /metrics HTTP/1.1\r\n\r\n"),
              StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Fetch(http_->port(), "\r\n\r\n"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Fetch(http_->port(), "HEAD /metrics HTTP/1.1\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200 "), Not(HasSubstr("# TYPE"))));
}

TEST_F(MetricsHttpTest, CutsOffRequestsThatAreTooLong) {
  EXPECT_EQ(Fetch(http_->port(), std::string(40000, 'a')), "");
  EXPECT_THAT(Fetch(http_->port(), "GET /metrics HTTP/1.1\r\n\r\n"),
              StartsWith("HTTP/1.1 200 "));
}

TEST_F(MetricsHttpTest, SaysWhyItCannotListen) {
  const auto again = MetricsHttp::Start({"localhost", http_->port()}, {});
  EXPECT_THAT(std::string(again.status().message()),
              HasSubstr("Address already in use"));
  EXPECT_FALSE(MetricsHttp::Start({"no.such.host.invalid", 1}, {}).ok());
}

}  // namespace
}  // namespace vitrine
