#include "server/thread_priority.h"

#include <pthread.h>
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
  constexpr int kNice = 10;
  // On Linux a thread has a niceness of its own, under its own number.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kNice);
}

}  // namespace vitrine
