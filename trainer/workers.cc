#include "trainer/workers.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <latch>
#include <vector>

namespace vitrine {

Workers::Workers(int count)
    : count_(std::max(1, count)),
      pool_("train", std::max(1, count - 1), /*max_queued=*/1 << 16) {}

void Workers::Run(int n, const std::function<void(int)>& f) {
  std::atomic<int> next{0};
  std::vector<std::exception_ptr> thrown(n);
  const auto work = [&] {
    for (int i = next++; i < n; i = next++) {
      try {
        f(i);
      } catch (...) {
        thrown[i] = std::current_exception();
      }
    }
  };
  const int helpers = std::min(count_, n) - 1;
  std::latch done(std::max(0, helpers));
  for (int i = 0; i < helpers; ++i) {
    const bool posted = pool_.Post([&work, &done] {
      work();
      done.count_down();
    });
    if (!posted) done.count_down();
  }
  work();
  done.wait();
  for (const std::exception_ptr& e : thrown) {
    if (e) std::rethrow_exception(e);
  }
}

}  // namespace vitrine
