// What can go wrong with a database, and that nothing is lost by it.

#include "store/database.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "store/migrations.h"
#include "tests/store/store_fixture.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kShort = absl::Milliseconds(100);

absl::Status AddLabels(Database& database, const std::string& prefix, int count,
                       int text_bytes = 10) {
  std::vector<v1::Feedback> labels(count);
  std::vector<const v1::Feedback*> pointers;
  for (int i = 0; i < count; ++i) {
    labels[i].set_feedback_id(absl::StrCat(prefix, i));
    labels[i].mutable_text_label()->set_text(std::string(text_bytes, 'x'));
    pointers.push_back(&labels[i]);
  }
  return LabelStore(database).Add("shop", pointers, absl::UnixEpoch()).status();
}

int64_t CountLabels(Database& database) {
  const auto count = LabelStore(database).Count("shop", 0, int64_t{1} << 60);
  EXPECT_TRUE(count.ok()) << count.status();
  return count.value_or(-1);
}

absl::Status OpenStatus(const std::string& url,
                        absl::Duration timeout = kShort) {
  return Database::Open({.url = url, .lock_timeout = timeout}).status();
}

class DatabaseTest : public StoreTest {};
INSTANTIATE_STORE_TEST(DatabaseTest);

TEST_P(DatabaseTest, OpensAgainWithWhatItHeld) {
  ASSERT_TRUE(AddLabels(*database_, "a", 3).ok());
  database_.reset();
  database_ = Open();
  EXPECT_EQ(CountLabels(*database_), 3);
}

TEST_P(DatabaseTest, RollsBackWhatFails) {
  const absl::Status status =
      database_->sql().Write([](SqlConnection& connection) {
        EXPECT_TRUE(connection
                        .Execute("insert into labels (model, feedback_id, "
                                 "kind, received_ms, payload) values "
                                 "('shop', 'a', 'none', 0, '')")
                        .ok());
        return absl::CancelledError("not so");
      });
  EXPECT_EQ(status, absl::CancelledError("not so"));
  EXPECT_EQ(CountLabels(*database_), 0);
  EXPECT_TRUE(AddLabels(*database_, "a", 1).ok());
}

TEST_P(DatabaseTest, AFailedStatementHarmsNoneAfterIt) {
  EXPECT_EQ(Execute("insert into nowhere values (1)").code(),
            absl::StatusCode::kInternal);
  EXPECT_TRUE(AddLabels(*database_, "a", 1).ok());
  EXPECT_EQ(CountLabels(*database_), 1);
}

TEST_P(DatabaseTest, RefusesASchemaThatIsNewer) {
  ASSERT_TRUE(Execute("insert into schema_migrations (number, applied_us) "
                      "values (999, 0)")
                  .ok());
  const absl::Status status = OpenStatus(url_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("step 999, and this program knows steps "
                                     "up to ",
                                     Migrations().back().number)));
}

TEST_P(DatabaseTest, AppliesWhatIsNewStepByStep) {
  std::vector<Migration> migrations = Migrations();
  const int64_t last = migrations.back().number;
  const std::vector<std::string> table = {"create table later (x integer)"};
  migrations.push_back({last + 1, table, table});
  const std::vector<std::string> broken = {"create table half (x integer)",
                                           "no SQL"};
  migrations.push_back({last + 2, broken, broken});
  const absl::Status status = Migrate(database_->sql(), migrations);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("schema step ", last + 2)));
  // The step before it stands, and the broken one left nothing.
  EXPECT_TRUE(Execute("insert into later (x) values (1)").ok());
  EXPECT_FALSE(Execute("insert into half (x) values (1)").ok());
  migrations.pop_back();
  EXPECT_TRUE(Migrate(database_->sql(), migrations).ok());
}

// As two processes that start at once, on a database that nobody has used.
TEST_P(DatabaseTest, OpensFromManyThreadsAtOnce) {
  std::string url = "sqlite:" + folder_.File("fresh.db");
  if (GetParam() == SqlDialect::kPostgres) {
    url = *(*SharedPostgres())->NewDatabase();
  }
  std::vector<std::thread> openers;
  for (int i = 0; i < 6; ++i) {
    openers.emplace_back([&url, i] {
      const auto database = Database::Open({.url = url});
      ASSERT_TRUE(database.ok()) << database.status();
      EXPECT_TRUE(AddLabels(**database, absl::StrCat(i, "-"), 5).ok());
    });
  }
  for (std::thread& opener : openers) opener.join();
  const auto database = Database::Open({.url = url});
  EXPECT_EQ(CountLabels(**database), 30);
}

TEST_P(DatabaseTest, ALockedDatabaseIsUnavailableAndLosesNothing) {
  const auto impatient = Database::Open({.url = url_, .lock_timeout = kShort});
  ASSERT_TRUE(impatient.ok()) << impatient.status();
  absl::Status while_locked;
  absl::Duration waited;
  ASSERT_TRUE(database_->sql()
                  .Write([&](SqlConnection& connection) {
                    const absl::Status locked =
                        connection.Lock(SqlLock::kLabels);
                    const absl::Time start = absl::Now();
                    while_locked = AddLabels(**impatient, "a", 3);
                    waited = absl::Now() - start;
                    return locked;
                  })
                  .ok());
  EXPECT_EQ(while_locked.code(), absl::StatusCode::kUnavailable)
      << while_locked;
  EXPECT_GE(waited, kShort / 2);
  EXPECT_LT(waited, absl::Seconds(4));
  EXPECT_EQ(CountLabels(**impatient), 0);
  EXPECT_TRUE(AddLabels(**impatient, "a", 3).ok());
  EXPECT_EQ(CountLabels(*database_), 3);
}

TEST_P(DatabaseTest, AWriterWaitsForAnotherWithinTheTimeout) {
  const std::unique_ptr<Database> other = Open();
  std::thread writer;
  ASSERT_TRUE(database_->sql()
                  .Write([&](SqlConnection& connection) {
                    const absl::Status locked =
                        connection.Lock(SqlLock::kLabels);
                    writer = std::thread([&other] {
                      EXPECT_TRUE(AddLabels(*other, "a", 1).ok());
                    });
                    absl::SleepFor(kShort);
                    return locked;
                  })
                  .ok());
  writer.join();
  EXPECT_EQ(CountLabels(*database_), 1);
}

// A bulk import writes without a pause; a worker in another process opens the
// store and renews its lease all the same.
TEST_P(DatabaseTest, AWriterWithoutPausesStarvesNoOther) {
  std::atomic<bool> stop{false};
  std::atomic<int> batches{0};
  std::thread writer([&] {
    for (; !stop; ++batches) {
      EXPECT_TRUE(
          AddLabels(*database_, absl::StrCat("a", batches.load(), "-"), 100)
              .ok());
    }
  });
  for (int i = 0; i < 20; ++i) {
    const int before = batches;
    while (batches == before) absl::SleepFor(absl::Milliseconds(1));
    const auto other =
        Database::Open({.url = url_, .lock_timeout = absl::Seconds(1)});
    EXPECT_TRUE(other.ok()) << other.status();
    if (!other.ok()) continue;
    const absl::Status added = AddLabels(**other, absl::StrCat("b", i), 1);
    EXPECT_TRUE(added.ok()) << added;
  }
  stop = true;
  writer.join();
  EXPECT_EQ(CountLabels(*database_), batches * 100 + 20);
}

// Readers do not wait for a writer.
TEST_P(DatabaseTest, ReadsWhileAnotherWrites) {
  ASSERT_TRUE(AddLabels(*database_, "a", 2).ok());
  int64_t count = 0;
  ASSERT_TRUE(database_->sql()
                  .Write([&](SqlConnection& connection) {
                    const absl::Status deleted =
                        connection.Execute("delete from labels").status();
                    count = CountLabels(*database_);
                    return deleted;
                  })
                  .ok());
  EXPECT_EQ(count, 2);
  EXPECT_EQ(CountLabels(*database_), 0);
}

// A child adds batch after batch and tells of each that was acknowledged; it
// is killed amid that, and all that it told of is there.
TEST_P(DatabaseTest, AKilledProcessLosesNothingAcknowledged) {
  constexpr int kBatch = 50;
  for (int round = 0; round < 3; ++round) {
    database_.reset();  // no connection crosses the fork
    int told[2];
    ASSERT_EQ(pipe(told), 0);
    const pid_t child = fork();
    if (child == 0) {
      const auto database = Database::Open({.url = url_});
      for (int b = 0; database.ok(); ++b) {
        const std::string prefix = absl::StrCat(round, "-", b, "-");
        if (!AddLabels(**database, prefix, kBatch).ok()) break;
        if (write(told[1], "+", 1) != 1) break;
      }
      _exit(1);
    }
    close(told[1]);
    int acknowledged = 0;
    char byte;
    while (acknowledged < 5 + round && read(told[0], &byte, 1) == 1) {
      ++acknowledged;
    }
    ASSERT_EQ(acknowledged, 5 + round);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(told[0], &byte, 1) == 1) ++acknowledged;
    close(told[0]);

    database_ = Open();
    ASSERT_NE(database_, nullptr);
    for (int b = 0; b < acknowledged; ++b) {
      std::vector<v1::Feedback> labels(kBatch);
      std::vector<const v1::Feedback*> pointers;
      for (int i = 0; i < kBatch; ++i) {
        labels[i].set_feedback_id(absl::StrCat(round, "-", b, "-", i));
        pointers.push_back(&labels[i]);
      }
      const auto again =
          LabelStore(*database_).Add("shop", pointers, absl::UnixEpoch());
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_THAT(*again, ::testing::Each(LabelStore::Outcome::kDuplicate));
    }
    EXPECT_EQ(CountLabels(*database_) % kBatch, 0);  // whole batches only
  }
}

TEST_P(DatabaseTest, DescribesItselfWithoutSecrets) {
  if (GetParam() == SqlDialect::kSqlite) {
    EXPECT_EQ(database_->Describe(), url_);
  } else {
    EXPECT_THAT(database_->Describe(),
                ::testing::MatchesRegex(
                    "postgresql://vitrine@/tmp/vitrine-postgres-[^:]*:5432/"
                    "test[0-9]+"));
  }
}

// What is tested without a fixture's database.

TEST(DatabaseAddress, RefusesWhatIsNone) {
  for (const std::string url :
       {"", "shop.db", "mysql://x",
        "sqlite:", "sqlite::memory:", "sqlite:/tmp/a\"b", "postgresql:/x",
        "postgresql://[::1/db", "postgresql://h/db?no_such_option=1"}) {
    EXPECT_EQ(OpenStatus(url).code(), absl::StatusCode::kInvalidArgument)
        << url;
  }
}

TEST(DatabaseAddress, RefusesAPasswordAndDoesNotRepeatIt) {
  for (const std::string url :
       {"postgresql://me:hunter2@localhost/db",
        "postgres://me@localhost/db?password=hunter2",
        "postgresql://me:hunter2@localhost/db?nonsense=1"}) {
    const absl::Status status = OpenStatus(url);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << url;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("hunter2")));
  }
}

class SqliteTest : public ::testing::Test {
 protected:
  std::string Url(const std::string& name) const {
    return "sqlite:" + folder_.File(name);
  }

  TempFolder folder_;
};

TEST_F(SqliteTest, PathsMayHoldWhatFileNamesHold) {
  for (const std::string name :
       {"with space.db", "a=b c=d.db", "it's.db", "sofa-\xC3\xBC.db", "?x=1"}) {
    ASSERT_TRUE(Database::Open({.url = Url(name)}).ok()) << name;
    EXPECT_TRUE(PathExists(folder_.File(name))) << name;
  }
}

TEST_F(SqliteTest, AFolderThatDoesNotExistIsNotMade) {
  const absl::Status status = OpenStatus(Url("none/store.db"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("there is no folder " + folder_.File("none")));
  EXPECT_FALSE(PathExists(folder_.File("none")));
}

TEST_F(SqliteTest, AFolderInPlaceOfTheFileIsRefused) {
  ASSERT_TRUE(MakeFolders(folder_.File("store.db")).ok());
  const absl::Status status = OpenStatus(Url("store.db"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Url("store.db")));
}

TEST_F(SqliteTest, AFileThatIsNoDatabaseIsRefusedAndLeftAlone) {
  const std::string garbage(5000, 'g');
  ASSERT_TRUE(WriteFile(folder_.File("store.db"), garbage).ok());
  const absl::Status status = OpenStatus(Url("store.db"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Url("store.db")));
  EXPECT_EQ(*ReadFile(folder_.File("store.db")), garbage);
}

TEST_F(SqliteTest, ADamagedDatabaseIsAnErrorAndNoCrash) {
  {
    const auto database = Database::Open({.url = Url("store.db")});
    ASSERT_TRUE(AddLabels(**database, "a", 200, 500).ok());
  }
  std::string bytes = *ReadFile(folder_.File("store.db"));
  ASSERT_GT(bytes.size(), 50000u);
  for (size_t i = 4096; i < bytes.size(); i += 7) bytes[i] ^= 0x5a;
  ASSERT_TRUE(WriteFile(folder_.File("store.db"), bytes).ok());
  const absl::Status status = OpenStatus(Url("store.db"));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
}

TEST_F(SqliteTest, OpenOfALockedFileIsUnavailable) {
  const auto database = Database::Open({.url = Url("store.db")});
  ASSERT_TRUE(database.ok());
  ASSERT_TRUE((*database)
                  ->sql()
                  .Write([&](SqlConnection&) {
                    EXPECT_EQ(OpenStatus(Url("store.db")).code(),
                              absl::StatusCode::kUnavailable);
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_TRUE(OpenStatus(Url("store.db")).ok());
}

// Permissions do not bind root: there the child is somebody else.
TEST_F(SqliteTest, AReadOnlyFileIsRefused) {
  {
    const auto database = Database::Open({.url = Url("store.db")});
    ASSERT_TRUE(AddLabels(**database, "a", 1).ok());
  }
  ASSERT_EQ(chmod(folder_.File("store.db").c_str(), 0444), 0);
  ASSERT_EQ(chmod(folder_.path().c_str(), 0777), 0);
  int answer[2];
  ASSERT_EQ(pipe(answer), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && setuid(65534) != 0) _exit(1);
    const std::string status = OpenStatus(Url("store.db")).ToString();
    _exit(write(answer[1], status.data(), status.size()) < 0);
  }
  close(answer[1]);
  char text[1000];
  const ssize_t size = read(answer[0], text, sizeof text);
  close(answer[0]);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(
      std::string(text, std::max<ssize_t>(size, 0)),
      absl::StrCat("FAILED_PRECONDITION: ", Url("store.db"), " is read-only"));
}

// SQLite's own limit of pages gives the error that a full disk gives.
TEST_F(SqliteTest, AFullDiskIsResourceExhaustedAndLosesNothing) {
  const auto database = Database::Open({.url = Url("store.db")});
  ASSERT_TRUE(database.ok());
  ASSERT_TRUE(AddLabels(**database, "a", 10).ok());
  const auto limit = [&database](int64_t pages) {
    return (*database)->sql().Write([&](SqlConnection& connection) {
      return connection
          .Query(absl::StrCat("pragma max_page_count = ", pages), 1)
          .status();
    });
  };
  ASSERT_TRUE(limit(40).ok());
  const absl::Status full = AddLabels(**database, "b", 500, 1000);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(CountLabels(**database), 10);
  ASSERT_TRUE(limit(1000000).ok());
  EXPECT_TRUE(AddLabels(**database, "b", 500, 1000).ok());
  EXPECT_EQ(CountLabels(**database), 510);
}

TEST_F(SqliteTest, CommitsToDisk) {
  const auto database = Database::Open({.url = Url("store.db")});
  ASSERT_TRUE((*database)
                  ->sql()
                  .Read([](SqlConnection& connection) {
                    const auto mode =
                        connection.Query("pragma journal_mode", 1);
                    EXPECT_EQ((*mode)[0][0], "wal");
                    const auto sync = connection.Query("pragma synchronous", 1);
                    EXPECT_EQ((*sync)[0][0], "2");  // full
                    return absl::OkStatus();
                  })
                  .ok());
}

class PostgresTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto server = SharedPostgres();
    if (absl::IsNotFound(server.status())) {
      GTEST_SKIP() << server.status().message();
    }
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *server;
    const auto url = server_->NewDatabase();
    ASSERT_TRUE(url.ok()) << url.status();
    url_ = *url;
  }

  testing::PostgresServer* server_ = nullptr;
  std::string url_;
};

TEST_F(PostgresTest, ReconnectsAfterTheServerWasAway) {
  const auto database = Database::Open({.url = url_});
  ASSERT_TRUE(AddLabels(**database, "a", 5).ok());
  EXPECT_EQ(CountLabels(**database), 5);
  server_->Stop();
  const absl::Status away = AddLabels(**database, "b", 5);
  EXPECT_EQ(away.code(), absl::StatusCode::kUnavailable) << away;
  EXPECT_EQ(LabelStore(**database).Watermark("shop").status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(AddLabels(**database, "b", 5).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(OpenStatus(url_).code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(server_->StartAgain().ok());
  EXPECT_TRUE(AddLabels(**database, "b", 5).ok());
  EXPECT_EQ(CountLabels(**database), 10);
}

TEST_F(PostgresTest, AReadOnlyDatabaseIsFailedPrecondition) {
  {
    const auto database = Database::Open({.url = url_});
    ASSERT_TRUE(database.ok()) << database.status();
    ASSERT_TRUE((*database)
                    ->sql()
                    .Read([](SqlConnection& connection) -> absl::Status {
                      const auto name =
                          connection.Query("select current_database()", 1);
                      return connection
                          .Execute(absl::StrCat(
                              "alter database ", (*name)[0][0],
                              " set default_transaction_read_only = on"))
                          .status();
                    })
                    .ok());
  }
  const absl::Status status = OpenStatus(url_);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST_F(PostgresTest, ConnectionsAreShared) {
  const auto database = Database::Open({.url = url_});
  std::vector<std::thread> threads;
  for (int t = 0; t < 12; ++t) {
    threads.emplace_back([&database, t] {
      for (int i = 0; i < 5; ++i) {
        EXPECT_TRUE(
            AddLabels(**database, absl::StrCat(t, "-", i, "-"), 3).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(CountLabels(**database), 12 * 5 * 3);
}

}  // namespace
}  // namespace vitrine
