#include "base/process.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace vitrine {

std::string HostAndPid() {
  char host[256] = "";
  (void)gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host, ":", getpid());
}

}  // namespace vitrine
