#include "trainer/autocast.h"

#include <ATen/autocast_mode.h>

namespace vitrine {

Autocast::Autocast(bool on, bool cuda) : on_(on), cuda_(cuda) {
  if (!on_) return;
  if (cuda_) {
    at::autocast::set_autocast_gpu_dtype(at::kBFloat16);
    at::autocast::set_enabled(true);
  } else {
    at::autocast::set_autocast_cpu_dtype(at::kBFloat16);
    at::autocast::set_cpu_enabled(true);
  }
  // The cache of casts is one for all threads, and workers must not share a
  // graph; within a pass each weight is used once anyway.
  at::autocast::set_autocast_cache_enabled(false);
}

Autocast::~Autocast() {
  if (!on_) return;
  at::autocast::set_autocast_cache_enabled(true);
  cuda_ ? at::autocast::set_enabled(false)
        : at::autocast::set_cpu_enabled(false);
}

}  // namespace vitrine
