#include "base/openmp.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

namespace vitrine {
namespace {

// Rounds of a busy loop before a thread sleeps: some microseconds, enough for
// the barriers between one product and the next when all threads do run.
constexpr char kSpinCount[] = "1000";

}  // namespace

void LimitOpenMpSpinning(char** argv) {
  if (getenv("GOMP_SPINCOUNT") != nullptr) return;
  if (getenv("OMP_WAIT_POLICY") != nullptr) return;
  // The path itself, since the process takes its name from it. Where this
  // fails (no /proc), the program goes on, spinning.
  char path[PATH_MAX + 1];
  const ssize_t size = readlink("/proc/self/exe", path, PATH_MAX);
  if (size <= 0) return;
  path[size] = '\0';
  if (setenv("GOMP_SPINCOUNT", kSpinCount, 0) == 0) execv(path, argv);
}

}  // namespace vitrine
