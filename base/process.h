#pragma once

#include <string>

namespace vitrine {

// "host:pid": who this process is to the others that share a store with it.
std::string HostAndPid();

}  // namespace vitrine
