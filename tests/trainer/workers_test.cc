#include "trainer/workers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace vitrine {
namespace {

TEST(Workers, CallEachPartOnce) {
  for (const int count : {1, 2, 5}) {
    Workers workers(count);
    for (const int n : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> calls(n);
      workers.Run(n, [&calls](int i) { ++calls[i]; });
      for (int i = 0; i < n; ++i) EXPECT_EQ(calls[i], 1) << i;
    }
  }
}

TEST(Workers, RethrowWhatTheFirstPartThrew) {
  Workers workers(3);
  std::atomic<int> calls{0};
  try {
    workers.Run(10, [&calls](int i) {
      ++calls;
      if (i == 4 || i == 7) throw std::runtime_error(std::to_string(i));
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "4");
  }
  EXPECT_EQ(calls, 10);
  workers.Run(2, [&calls](int) { ++calls; });  // and go on
  EXPECT_EQ(calls, 12);
}

}  // namespace
}  // namespace vitrine
