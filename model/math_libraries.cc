#include "model/math_libraries.h"

#include <dlfcn.h>

namespace vitrine {
namespace {

// Where this process has no such function, the library is another one, or part
// of LibTorch itself: nothing is to be set.
void CallIfThere(const char* name, int value) {
  using Setter = int (*)(int);
  if (void* const setter = dlsym(RTLD_DEFAULT, name)) {
    reinterpret_cast<Setter>(setter)(value);
  }
}

}  // namespace

void SetUpMathLibraries(int max_products) {
  CallIfThere("openblas_set_num_threads", 1);
  CallIfThere("dnnl_set_primitive_cache_capacity", max_products);
}

}  // namespace vitrine
