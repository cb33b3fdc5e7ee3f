#pragma once

// What the stores promise, they promise on both databases: tests of a fixture
// derived from StoreTest run on each, with a fresh, empty one every time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "store/database.h"
#include "store/sql.h"
#include "tests/testing/postgres_server.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {

// One server for all tests of the process, started by the first that asks.
inline absl::StatusOr<testing::PostgresServer*> SharedPostgres() {
  // Destroyed when the program ends, which stops the server.
  static absl::StatusOr<std::unique_ptr<testing::PostgresServer>> server =
      testing::PostgresServer::Start();
  if (!server.ok()) return server.status();
  return server->get();
}

class StoreTest : public ::testing::TestWithParam<SqlDialect> {
 protected:
  void SetUp() override {
    if (GetParam() == SqlDialect::kSqlite) {
      url_ = "sqlite:" + folder_.File("store.db");
    } else {
      const auto server = SharedPostgres();
      if (absl::IsNotFound(server.status())) {
        GTEST_SKIP() << server.status().message();
      }
      ASSERT_TRUE(server.ok()) << server.status();
      const auto url = (*server)->NewDatabase();
      ASSERT_TRUE(url.ok()) << url.status();
      url_ = *url;
    }
    database_ = Open();
    ASSERT_NE(database_, nullptr);
  }

  // Another view of the database, as another process has it.
  std::unique_ptr<Database> Open() {
    auto database = Database::Open({.url = url_});
    EXPECT_TRUE(database.ok()) << database.status();
    return database.ok() ? *std::move(database) : nullptr;
  }

  absl::Status Execute(const std::string& sql) {
    return database_->sql().Write([&sql](SqlConnection& connection) {
      return connection.Execute(sql).status();
    });
  }

  TempFolder folder_;
  std::string url_;
  std::unique_ptr<Database> database_;
};

inline std::string DialectName(
    const ::testing::TestParamInfo<SqlDialect>& info) {
  return info.param == SqlDialect::kSqlite ? "Sqlite" : "Postgres";
}

#define INSTANTIATE_STORE_TEST(fixture)                              \
  INSTANTIATE_TEST_SUITE_P(                                          \
      , fixture,                                                     \
      ::testing::Values(SqlDialect::kSqlite, SqlDialect::kPostgres), \
      DialectName)

}  // namespace vitrine
