#include "trainer/stop_signal.h"

#include <signal.h>

namespace vitrine {
namespace {

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void OnSignal(int number) {
  g_stop = true;
  // A second one ends the process at once.
  signal(number, SIG_DFL);
}

}  // namespace

const std::atomic<bool>& StopOnSignal() {
  signal(SIGINT, OnSignal);
  signal(SIGTERM, OnSignal);
  return g_stop;
}

}  // namespace vitrine
