#include "server/thread_priority.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

namespace vitrine {

void SetThreadName(const char* name) {
  constexpr size_t kMax = 15;
  pthread_setname_np(pthread_self(), std::string(name).substr(0, kMax).c_str());
}

void YieldToServing() {
  constexpr int kNicer = 10;
  // On Linux a thread has a niceness of its own, under its own number.
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + kNicer);
}

void RunWhenIdle() {
  const sched_param none = {};
  sched_setscheduler(0, SCHED_IDLE, &none);  // 0: this thread alone
}

}  // namespace vitrine
