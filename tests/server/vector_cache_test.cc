#include "server/vector_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

std::shared_ptr<const VectorCache::Entry> Entry(float value) {
  auto entry = std::make_shared<VectorCache::Entry>();
  entry->vector.assign(100, value);
  return entry;
}

std::string Key(int i) { return absl::StrCat("key-", i); }

TEST(VectorCacheTest, GivesBackWhatWasPutIn) {
  VectorCache cache(10000, {});
  EXPECT_EQ(cache.Find("a"), nullptr);
  cache.Insert("a", Entry(3));
  ASSERT_NE(cache.Find("a"), nullptr);
  EXPECT_EQ(cache.Find("a")->vector[99], 3);
}

TEST(VectorCacheTest, StaysUnderItsBoundAndDropsTheLeastRecentlyUsed) {
  VectorCache cache(5000, {});
  for (int i = 0; i < 100; ++i) {
    cache.Insert(Key(i), Entry(i));
    EXPECT_LE(cache.bytes(), 5000);
    EXPECT_NE(cache.Find(Key(0)), nullptr) << "used all the time";
  }
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  EXPECT_NE(cache.Find(Key(99)), nullptr);
  EXPECT_GT(cache.bytes(), 4000);
}

TEST(VectorCacheTest, KeepsNothingWhenOff) {
  VectorCache cache(-1, {});
  cache.Insert("a", Entry(1));
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_FALSE(cache.enabled());
}

TEST(VectorCacheTest, DoesNotKeepWhatIsLargerThanItself) {
  VectorCache cache(100, {});
  cache.Insert("a", Entry(1));
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_EQ(cache.bytes(), 0);
}

TEST(VectorCacheTest, CountsHitsAndMisses) {
  prometheus::Counter hits, misses;
  prometheus::Gauge bytes;
  VectorCache cache(10000, {&hits, &misses, &bytes});
  cache.Find("a");
  cache.Insert("a", Entry(1));
  cache.Find("a");
  cache.Find("a");
  EXPECT_EQ(hits.Value(), 2);
  EXPECT_EQ(misses.Value(), 1);
  EXPECT_EQ(bytes.Value(), cache.bytes());
}

TEST(VectorCacheTest, KeysDependOnEveryTextTheVersionAndTheHeadOnly) {
  v1::Item item;
  item.set_title("sofa");
  item.set_brand("acme");
  item.add_categories("living");
  (*item.mutable_attributes())["color"] = "red";
  const std::string key = VectorCache::KeyOf("m", "1", "h", item);
  v1::Item same = item;
  same.set_id("another id");
  EXPECT_EQ(VectorCache::KeyOf("m", "1", "h", same), key);
  EXPECT_NE(VectorCache::KeyOf("m", "2", "h", item), key);
  EXPECT_NE(VectorCache::KeyOf("n", "1", "h", item), key);
  EXPECT_NE(VectorCache::KeyOf("m", "1", "g", item), key);
  std::vector<v1::Item> others(6, item);
  others[0].set_title("sofas");
  others[1].set_brand("");
  others[2].set_description("x");
  others[3].add_categories("");
  (*others[4].mutable_attributes())["color"] = "blue";
  (*others[5].mutable_attributes())["colour"] = "red";
  for (const v1::Item& other : others) {
    EXPECT_NE(VectorCache::KeyOf("m", "1", "h", other), key)
        << other.ShortDebugString();
  }
  // Text that moves from one field to the next.
  v1::Item a, b;
  a.set_title("ab");
  a.set_brand("c");
  b.set_title("a");
  b.set_brand("bc");
  EXPECT_NE(VectorCache::KeyOf("m", "1", "h", a),
            VectorCache::KeyOf("m", "1", "h", b));
}

TEST(VectorCacheTest, ServesManyThreads) {
  VectorCache cache(20000, {});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&cache, t] {
      for (int i = 0; i < 1000; ++i) {
        const int n = (i * 31 + t) % 60;
        const auto found = cache.Find(Key(n));
        if (found != nullptr) {
          EXPECT_EQ(found->vector[0], n);
        } else {
          cache.Insert(Key(n), Entry(n));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.bytes(), 20000);
}

}  // namespace
}  // namespace vitrine
