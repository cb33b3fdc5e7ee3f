#include "trainer/threads.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <thread>

#include "model/math_libraries.h"

namespace vitrine {

int SetUpThreads(int threads, bool bf16, int max_products) {
  // More workers than this would mostly add up each other's gradients.
  constexpr int kMaxWorkers = 8;
  if (threads == 0) {
    threads =
        static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  const int workers =
      bf16 && max_products < kAllProducts ? 1 : std::min(threads, kMaxWorkers);
  at::set_num_threads(std::max(1, threads / workers));
  SetUpMathLibraries(max_products);
  return workers;
}

}  // namespace vitrine
