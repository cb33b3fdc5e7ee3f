#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/textproto.h"
#include "server/flags.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ConfigTest : public ::testing::Test {
 protected:
  internal::ServerConfig Parse(absl::string_view text) {
    internal::ServerConfig config;
    const absl::Status status = ParseTextProto(text, "test", &config);
    EXPECT_TRUE(status.ok()) << status;
    if (config.registry().empty()) config.set_registry(folder_.path());
    return config;
  }

  // The errors of a configuration, one a line.
  std::vector<std::string> Errors(absl::string_view text) {
    internal::ServerConfig config = Parse(text);
    const absl::Status status = ResolveServerConfig(&config);
    if (status.ok()) return {};
    return absl::StrSplit(status.message(), '\n');
  }

  CommandLine Command(const std::vector<std::string>& args) {
    std::vector<const char*> argv = {"vitrine-server"};
    for (const std::string& arg : args) argv.push_back(arg.c_str());
    return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
  }

  TempFolder folder_;
};

TEST_F(ConfigTest, FillsInTheDefaults) {
  internal::ServerConfig config = Parse("");
  ASSERT_EQ(ResolveServerConfig(&config), absl::OkStatus());
  EXPECT_EQ(config.listen(), "127.0.0.1:8500");
  EXPECT_EQ(config.metrics_listen(), "127.0.0.1:9500");
  EXPECT_EQ(config.engine().batch_threads(), 1);
  EXPECT_EQ(config.engine().inner_threads(), AvailableCores());
  EXPECT_EQ(config.pool_threads(), AvailableCores());
  EXPECT_EQ(config.batcher().max_batch_tokens(), 0);
  EXPECT_EQ(config.batcher().max_queue_tokens(), 262144);
  EXPECT_EQ(config.batcher().short_call_tokens(), 256);
  EXPECT_EQ(config.limits().max_items(), 1000);
  EXPECT_EQ(config.limits().max_texts(), 1000);
  EXPECT_EQ(config.limits().max_history(), 200);
  EXPECT_EQ(config.limits().max_field_bytes(), 65536);
  EXPECT_EQ(config.limits().max_attributes(), 64);
  EXPECT_EQ(config.limits().max_message_bytes(), 16 << 20);
  EXPECT_EQ(config.limits().max_concurrent_calls(), 1024);
  EXPECT_EQ(config.limits().default_deadline().seconds(), 30);
  EXPECT_EQ(config.cache().item_vector_bytes(), 64 << 20);
  EXPECT_EQ(config.cache().token_bytes(), 64 << 20);
  EXPECT_EQ(config.drain_timeout().seconds(), 20);
  EXPECT_EQ(config.poll_interval().seconds(), 2);
  EXPECT_EQ(config.personalization_weight(), 0.5f);
  EXPECT_EQ(config.limits().max_feedback(), 1000);
  EXPECT_FALSE(config.has_store());
  EXPECT_FALSE(config.has_admin());
}

TEST_F(ConfigTest, FillsInTheDefaultsOfAStore) {
  internal::ServerConfig config = Parse("store { url: 'sqlite:x.db' }");
  ASSERT_EQ(ResolveServerConfig(&config), absl::OkStatus());
  EXPECT_EQ(config.store().lock_timeout().seconds(), 5);
  EXPECT_EQ(config.store().max_waiting(), 100000);
}

TEST_F(ConfigTest, TheExampleIsValid) {
  const std::string path =
      JoinPath(VITRINE_SOURCE_DIR, "deploy/server.textproto");
  const auto text = ReadFile(path);
  ASSERT_TRUE(text.ok()) << text.status();
  // With what it shows in comments.
  std::string whole;
  bool inside = false;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    inside = inside || line == "# store {" || line == "# admin {";
    const bool last = line == "# }";
    if (inside) line.remove_prefix(2);
    absl::StrAppend(&whole, line, "\n");
    if (last) inside = false;
  }
  const std::string token = folder_.File("token");
  ASSERT_TRUE(WriteFile(token, "0123456789abcdef\n").ok());
  for (const std::string& shown : {*text, whole}) {
    internal::ServerConfig config;
    const absl::Status parsed = ParseTextProto(shown, path, &config);
    ASSERT_TRUE(parsed.ok()) << parsed;
    EXPECT_EQ(config.has_admin(), shown == whole);
    EXPECT_EQ(config.has_store(), shown == whole);
    config.set_registry(folder_.path());
    if (config.has_admin()) config.mutable_admin()->set_token_file(token);
    EXPECT_EQ(ResolveServerConfig(&config), absl::OkStatus());
  }
}

TEST_F(ConfigTest, KeepsWhatIsSet) {
  internal::ServerConfig config = Parse(
      "models { name: 'a' } models { name: 'b' version: 3 } "
      "listen: '[::1]:0' metrics_listen: 'off' engine { inner_threads: 7 } "
      "limits { max_items: 5 } cache { item_vector_bytes: -1 token_bytes: 5 } "
      "poll_interval { seconds: -1 } personalization_weight: 0");
  ASSERT_EQ(ResolveServerConfig(&config), absl::OkStatus());
  EXPECT_EQ(config.default_model(), "a");
  EXPECT_EQ(config.engine().inner_threads(), 7);
  EXPECT_EQ(config.limits().max_items(), 5);
  EXPECT_EQ(config.cache().item_vector_bytes(), -1);
  EXPECT_EQ(config.cache().token_bytes(), 5);
  EXPECT_EQ(config.poll_interval().seconds(), -1);
  EXPECT_EQ(config.personalization_weight(), 0);
}

TEST_F(ConfigTest, NamesTheFieldAndItsValue) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"registry: '/no/such'", "registry: \"/no/such\" is not a folder"},
      {"models { name: 'A/..' }", "models[0].name: "},
      {"poll_interval { nanos: 1 }", "poll_interval: 1ns < 1ms"},
      {"models { name: 'a' } models { name: 'a' }",
       "models[1].name: \"a\" is there twice"},
      {"models { name: 'a' version: -1 }", "models[0].version: -1 is negative"},
      {"models { name: 'a' } default_model: 'b'",
       "default_model: \"b\" is not one of models"},
      {"listen: 'here'", "listen: \"here\" is not host:port"},
      {"metrics_listen: 'x:65536'",
       "metrics_listen: \"x:65536\" is not host:port"},
      {"listen: 'a:9' metrics_listen: 'a:9'",
       "metrics_listen: \"a:9\" is the address of listen too"},
      {"tls { certificate_file: '/no/cert' key_file: '/no/key' }",
       "tls.certificate_file: \"/no/cert\" is not a readable file"},
      {"tls { key_file: '/no/key' }", "tls.certificate_file: is required"},
      {"tls {}", "tls.key_file: is required with tls"},
      {"tls { client_ca_file: '/no/ca' }",
       "tls.client_ca_file: \"/no/ca\" is not a readable file"},
      {"port_file: '/no/such/ports'", "port_file: \"/no/such\" is no folder"},
      {"engine { device: 9 }", "engine.device: 9 is unknown"},
      {"engine { dtype: 9 }", "engine.dtype: 9 is unknown"},
      {"engine { device: DEVICE_CPU dtype: DTYPE_FP16 }",
       "engine.dtype: DTYPE_FP16 needs CUDA"},
      {"engine { kind: 9 }", "engine.kind: 9 is unknown"},
      {"engine { kind: ENGINE_KIND_TORCH dtype: DTYPE_INT8 }",
       "engine.dtype: DTYPE_INT8 needs ENGINE_KIND_ONEDNN"},
      {"engine { kind: ENGINE_KIND_ONEDNN device: DEVICE_CUDA }",
       "engine.kind: ENGINE_KIND_ONEDNN is for a CPU"},
      {"engine { batch_threads: -1 }",
       "engine.batch_threads: -1 is not in [1, 1024]"},
      {"engine { inner_threads: 5000 }",
       "engine.inner_threads: 5000 is not in [1, 1024]"},
      {"pool_threads: -2", "pool_threads: -2 is not in [1, 1024]"},
      {"batcher { max_batch_tokens: -1 }",
       "batcher.max_batch_tokens: -1 is negative"},
      {"batcher { max_queue_tokens: -1 }",
       "batcher.max_queue_tokens: -1 is not in"},
      {"batcher { max_batch_tokens: 20 max_queue_tokens: 10 }",
       "batcher.max_batch_tokens: 20 > batcher.max_queue_tokens, 10"},
      {"limits { max_items: -1 }", "limits.max_items: -1 is not in"},
      {"limits { max_texts: -1 }", "limits.max_texts: -1 is not in"},
      {"limits { max_history: -1 }", "limits.max_history: -1 is not in"},
      {"limits { max_field_bytes: -1 }",
       "limits.max_field_bytes: -1 is not in"},
      {"limits { max_attributes: -1 }", "limits.max_attributes: -1 is not in"},
      {"limits { max_message_bytes: -1 }",
       "limits.max_message_bytes: -1 is not in"},
      {"limits { max_concurrent_calls: -1 }",
       "limits.max_concurrent_calls: -1 is not in"},
      {"limits { max_feedback: -1 }", "limits.max_feedback: -1 is not in"},
      {"store {}", "store.url: is required with store"},
      {"store { url: 'mysql://x' }", "store.url: begins with neither"},
      {"store { url: 'sqlite:a' max_waiting: -1 }",
       "store.max_waiting: -1 is not in"},
      {"store { url: 'sqlite:a' lock_timeout { seconds: -1 } }",
       "store.lock_timeout: -1s is negative"},
      {"models { name: 'a' activation: ACTIVATION_AUTOMATIC }",
       "models[0].activation: ACTIVATION_AUTOMATIC needs store"},
      {"store { url: 'sqlite:a' } "
       "models { name: 'a' version: 3 activation: ACTIVATION_AUTOMATIC }",
       "models[0].activation: ACTIVATION_AUTOMATIC with version 3 fixed"},
      {"models { name: 'a' activation: 9 }",
       "models[0].activation: 9 is unknown"},
      {"admin {}", "admin.listen: is required with admin"},
      {"admin { listen: 'x' }", "admin.listen: \"x\" is not host:port"},
      {"listen: 'a:9' admin { listen: 'a:9' }",
       "admin.listen: \"a:9\" is another listener's"},
      {"metrics_listen: 'a:9' admin { listen: 'a:9' }",
       "admin.listen: \"a:9\" is another listener's"},
      {"admin { listen: 'a:9' }", "admin.token_file: is required with admin"},
      {"admin { token_file: '/no/token' }", "admin.token_file: "},
      {"admin { tls {} }", "admin.tls.certificate_file: is required"},
      {"limits { default_deadline { seconds: -5 } }",
       "limits.default_deadline: -5s is negative"},
      {"drain_timeout { seconds: 100000 }", "drain_timeout: 27h46m40s > 24h"},
      {"drain_timeout { nanos: 1000000000 }",
       "drain_timeout: seconds: 0 nanos: 1000000000 is not a duration"},
      {"cache { item_vector_bytes: -2 }",
       "cache.item_vector_bytes: -2 is not in"},
      {"batcher { short_call_tokens: -2 }",
       "batcher.short_call_tokens: -2 is not in"},
      {"cache { token_bytes: -2 }", "cache.token_bytes: -2 is not in"},
      {"encoding { max_tokens: -1 }", "encoding.max_tokens: -1 is negative"},
      {"encoding { max_query_tokens: -1 }",
       "encoding.max_query_tokens: -1 is negative"},
      {"encoding { max_history_item_tokens: -1 }",
       "encoding.max_history_item_tokens: -1 is negative"},
      {"log { level: 9 }", "log.level: 9 is unknown"},
      {"log { format: 9 }", "log.format: 9 is unknown"},
      {"personalization_weight: 1.5",
       "personalization_weight: 1.5 is not in [0, 1]"},
      {"personalization_weight: nan",
       "personalization_weight: nan is not in [0, 1]"},
  };
  for (const auto& [text, error] : cases) {
    EXPECT_THAT(Errors(text), ::testing::Contains(StartsWith(error))) << text;
  }
}

TEST_F(ConfigTest, ReadsTheTokenOfTheFilesFirstLine) {
  const std::string file = folder_.File("token");
  const std::vector<std::pair<std::string, std::string>> good = {
      {"0123456789abcdef", "0123456789abcdef"},
      {"0123456789abcdef\r\nthe rest", "0123456789abcdef"},
      {"  a-Token_of.more/than+16=  \n", "a-Token_of.more/than+16="},
  };
  for (const auto& [text, token] : good) {
    ASSERT_TRUE(WriteFile(file, text).ok());
    EXPECT_EQ(*ReadAdminToken(file), token);
  }
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "a token of 0 characters is too short"},
      {"\n0123456789abcdef", "a token of 0 characters"},
      {"0123456789abcde", "a token of 15 characters"},
      {"0123456789 abcdef", "not printable ASCII"},
      {"0123456789abcd\xc3\xa9", "not printable ASCII"},
      {std::string("0123456789abcdef\0", 17), "not printable ASCII"},
      {std::string(5000, 'a'), "token"},
  };
  for (const auto& [text, error] : bad) {
    ASSERT_TRUE(WriteFile(file, text).ok());
    const absl::Status status = ReadAdminToken(file).status();
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(file), HasSubstr(error)));
    // The token itself is nobody's business, not even half of it.
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("0123")));
  }
  EXPECT_FALSE(ReadAdminToken(folder_.File("none")).ok());
}

TEST_F(ConfigTest, ListsEveryErrorAtOnce) {
  EXPECT_EQ(Errors("listen: 'x' pool_threads: -1 limits { max_items: -1 } "
                   "personalization_weight: 2 encoding { max_tokens: -3 }")
                .size(),
            5);
}

TEST_F(ConfigTest, NeedsARegistry) {
  internal::ServerConfig config;
  EXPECT_THAT(std::string(ResolveServerConfig(&config).message()),
              HasSubstr("registry: is required"));
}

TEST_F(ConfigTest, ReadsHostsAndPorts) {
  EXPECT_EQ(ParseHostPort("localhost:80")->port, 80);
  EXPECT_EQ(ParseHostPort("[::1]:80")->host, "::1");
  EXPECT_EQ(ParseHostPort("0.0.0.0:0")->host, "0.0.0.0");
  for (const char* bad : {"", ":", ":80", "a:", "a:b", "a:-1", "a:99999",
                          "::1:80", "[]:1", "a b:1", "a:1 ", "a,b:1"}) {
    EXPECT_FALSE(ParseHostPort(bad).ok()) << bad;
  }
}

TEST_F(ConfigTest, FlagsOverrideTheFile) {
  const std::string file = folder_.File("server.textproto");
  ASSERT_TRUE(WriteFile(file,
                        "registry: '/a' listen: '1.2.3.4:5' "
                        "models { name: 'x' } limits { max_items: 9 }")
                  .ok());
  const CommandLine command = Command({"--config",
                                       file,
                                       "--registry",
                                       folder_.path(),
                                       "--model",
                                       "shop:12",
                                       "--model",
                                       "other",
                                       "--metrics-listen",
                                       "off",
                                       "--device",
                                       "cpu",
                                       "--dtype",
                                       "BF16",
                                       "--batch-threads",
                                       "2",
                                       "--inner-threads",
                                       "3",
                                       "--port-file",
                                       "p",
                                       "--log-format",
                                       "json",
                                       "--log-level",
                                       "debug",
                                       "--drain-timeout",
                                       "1500ms",
                                       "--poll-interval",
                                       "-1s",
                                       "--store",
                                       "sqlite:labels.db",
                                       "--admin-listen",
                                       "127.0.0.1:8501",
                                       "--admin-token-file",
                                       "t",
                                       "--set",
                                       "cache { item_vector_bytes: 77 }",
                                       "--check"});
  ASSERT_FALSE(command.exit_code.has_value()) << command.text;
  EXPECT_TRUE(command.check);
  const internal::ServerConfig& config = command.config;
  EXPECT_EQ(config.registry(), folder_.path());
  EXPECT_EQ(config.listen(), "1.2.3.4:5");
  EXPECT_EQ(config.limits().max_items(), 9);
  EXPECT_EQ(config.cache().item_vector_bytes(), 77);
  ASSERT_EQ(config.models_size(), 2);
  EXPECT_EQ(config.models(0).name(), "shop");
  EXPECT_EQ(config.models(0).version(), 12);
  EXPECT_EQ(config.models(1).version(), 0);
  EXPECT_EQ(config.metrics_listen(), "off");
  EXPECT_EQ(config.engine().device(), internal::DEVICE_CPU);
  EXPECT_EQ(config.engine().dtype(), internal::DTYPE_BF16);
  EXPECT_EQ(config.engine().batch_threads(), 2);
  EXPECT_EQ(config.engine().inner_threads(), 3);
  EXPECT_EQ(config.port_file(), "p");
  EXPECT_EQ(config.log().format(), internal::LOG_FORMAT_JSON);
  EXPECT_EQ(config.log().level(), internal::LOG_LEVEL_DEBUG);
  EXPECT_EQ(config.drain_timeout().seconds(), 1);
  EXPECT_EQ(config.drain_timeout().nanos(), 500000000);
  EXPECT_EQ(config.poll_interval().seconds(), -1);
  EXPECT_EQ(config.store().url(), "sqlite:labels.db");
  EXPECT_EQ(config.admin().listen(), "127.0.0.1:8501");
  EXPECT_EQ(config.admin().token_file(), "t");
}

TEST_F(ConfigTest, NoFlagMeansNoStoreAndNoAdmin) {
  const CommandLine command = Command({"--registry", folder_.path()});
  EXPECT_FALSE(command.config.has_store());
  EXPECT_FALSE(command.config.has_admin());
}

TEST_F(ConfigTest, RefusesMistakesOfTheCommandLine) {
  const std::string file = folder_.File("bad.textproto");
  ASSERT_TRUE(WriteFile(file, "registry: 'x'\nlisten_on: 'y'\n").ok());
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--nonsense"}, "nonsense"},
      {{"--device", "tpu"}, "tpu"},
      {{"--batch-threads", "many"}, "many"},
      {{"--drain-timeout", "20"}, "20"},
      {{"--model", "shop:new"}, "shop:new"},
      {{"--config", "/no/such/file"}, "/no/such/file"},
      {{"--set", "limits { max_moose: 1 }"}, "max_moose"},
      {{"--config", file}, "bad.textproto:2:"},
  };
  for (const auto& [args, text] : cases) {
    const CommandLine command = Command(args);
    EXPECT_EQ(command.exit_code, 1) << args[0];
    EXPECT_THAT(command.text, HasSubstr(text));
  }
}

TEST_F(ConfigTest, HelpAndVersionExitWithZero) {
  const CommandLine help = Command({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.text,
              AllOf(HasSubstr("--registry"), HasSubstr("--admin-listen"),
                    HasSubstr("SIGNALS"), HasSubstr("EXIT STATUS")));
  const CommandLine version = Command({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.text, StartsWith("vitrine-server "));
}

TEST_F(ConfigTest, CountsTheCoresThatItMayUse) {
  EXPECT_GE(AvailableCores(), 1);
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableCores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace vitrine
