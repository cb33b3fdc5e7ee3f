#include "server/lru_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

using Cache = LruCache<std::string, std::string>;

std::shared_ptr<const std::string> Value(int i) {
  return std::make_shared<const std::string>(400, static_cast<char>('0' + i));
}

std::string Key(int i) { return absl::StrCat("key-", i); }

TEST(LruCacheTest, GivesBackWhatWasPutIn) {
  Cache cache(10000, {});
  EXPECT_EQ(cache.Find("a"), nullptr);
  cache.Insert("a", Value(3), 400);
  ASSERT_NE(cache.Find("a"), nullptr);
  EXPECT_EQ(*cache.Find("a"), *Value(3));
}

TEST(LruCacheTest, StaysUnderItsBoundAndDropsTheLeastRecentlyUsed) {
  Cache cache(6000, {});
  for (int i = 0; i < 100; ++i) {
    cache.Insert(Key(i), Value(i), 400);
    EXPECT_LE(cache.bytes(), 6000);
    EXPECT_NE(cache.Find(Key(0)), nullptr) << "used all the time";
  }
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  EXPECT_NE(cache.Find(Key(99)), nullptr);
  EXPECT_GT(cache.bytes(), 5000);
}

TEST(LruCacheTest, StaysUnderItsBoundInAllItsParts) {
  prometheus::Gauge bytes;
  Cache cache(20 << 20, {.bytes = &bytes});
  for (int i = 0; i < 30000; ++i) cache.Insert(Key(i), Value(i), 1000);
  EXPECT_LE(cache.bytes(), 20 << 20);
  // Keys are spread evenly: every part is filled.
  EXPECT_GT(cache.bytes(), 19 << 20);
  EXPECT_EQ(bytes.Value(), cache.bytes());
}

TEST(LruCacheTest, KeepsNothingWhenOff) {
  Cache cache(-1, {});
  cache.Insert("a", Value(1), 400);
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_FALSE(cache.enabled());
}

TEST(LruCacheTest, DoesNotKeepWhatIsLargerThanItself) {
  Cache cache(500, {});
  cache.Insert("a", Value(1), 400);
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_EQ(cache.bytes(), 0);
}

TEST(LruCacheTest, KeepsTheFirstOfTwoValuesOfAKey) {
  Cache cache(10000, {});
  cache.Insert("a", Value(1), 400);
  const int64_t bytes = cache.bytes();
  cache.Insert("a", Value(2), 400);
  EXPECT_EQ(*cache.Find("a"), *Value(1));
  EXPECT_EQ(cache.bytes(), bytes);
}

TEST(LruCacheTest, AValueOutlivesItsEntry) {
  Cache cache(1000, {});
  cache.Insert("a", Value(1), 400);
  const auto held = cache.Find("a");
  ASSERT_NE(held, nullptr);
  cache.Insert("b", Value(2), 400);
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_EQ(*held, *Value(1));
}

TEST(LruCacheTest, CountsHitsMissesAndBytes) {
  prometheus::Counter hits, misses;
  prometheus::Gauge bytes;
  Cache cache(1000, {&hits, &misses, &bytes});
  cache.Find("a");
  cache.Insert("a", Value(1), 400);
  cache.Find("a");
  cache.Find("a");
  EXPECT_EQ(hits.Value(), 2);
  EXPECT_EQ(misses.Value(), 1);
  EXPECT_GT(bytes.Value(), 400);
  cache.Insert("b", Value(1), 500);  // drives out "a"
  EXPECT_EQ(bytes.Value(), cache.bytes());
}

TEST(LruCacheTest, ServesManyThreads) {
  // Of several parts, too small for all.
  Cache cache(4 << 20, {});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&cache, t] {
      for (int i = 0; i < 2000; ++i) {
        const int n = (i * 31 + t) % 60;
        const auto found = cache.Find(Key(n));
        if (found != nullptr) {
          EXPECT_EQ(*found, *Value(n));
        } else {
          cache.Insert(Key(n), Value(n), 100000);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.bytes(), 4 << 20);
}

}  // namespace
}  // namespace vitrine
