#include "trainer/autocast.h"

#include <ATen/autocast_mode.h>
#include <torch/version.h>

namespace vitrine {
namespace {

// LibTorch has one function for all devices since 2.4, and one for each before.
void Switch(bool cuda, bool on) {
#if TORCH_VERSION_MAJOR > 2 || \
    (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
  const at::DeviceType device = cuda ? at::kCUDA : at::kCPU;
  at::autocast::set_autocast_dtype(device, at::kBFloat16);
  at::autocast::set_autocast_enabled(device, on);
#else
  if (cuda) {
    at::autocast::set_autocast_gpu_dtype(at::kBFloat16);
    at::autocast::set_enabled(on);
  } else {
    at::autocast::set_autocast_cpu_dtype(at::kBFloat16);
    at::autocast::set_cpu_enabled(on);
  }
#endif
  // The cache of casts is one for all threads, and workers must not share a
  // graph; within a pass each weight is used once anyway.
  at::autocast::set_autocast_cache_enabled(!on);
}

}  // namespace

Autocast::Autocast(bool on, bool cuda) : on_(on), cuda_(cuda) {
  if (on_) Switch(cuda_, true);
}

Autocast::~Autocast() {
  if (on_) Switch(cuda_, false);
}

}  // namespace vitrine
