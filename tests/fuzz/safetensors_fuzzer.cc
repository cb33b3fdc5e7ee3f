// Any bytes as a safetensors file.

#include <sys/mman.h>
#include <unistd.h>

#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = memfd_create("safetensors", MFD_CLOEXEC);
  FUZZ_CHECK(fd >= 0);
  FUZZ_CHECK(write(fd, data, size) == static_cast<ssize_t>(size));
  const auto file =
      vitrine::OpenSafetensors("/proc/self/fd/" + std::to_string(fd));
  if (file.ok()) {
    // Reads every byte that a tensor claims: none is outside of the file.
    size_t bytes = 0;
    for (const auto& [name, tensor] : (*file)->tensors()) {
      FUZZ_CHECK((*file)->Find(name) == &tensor);
      FUZZ_CHECK(tensor.elements() >= 0);
      volatile char sink = 0;
      for (const char byte : tensor.bytes) sink = byte;
      (void)sink;
      bytes += tensor.bytes.size();
      const auto floats = vitrine::ToFloats(tensor);
      if (floats.ok()) {
        FUZZ_CHECK(static_cast<int64_t>(floats->size()) == tensor.elements());
      }
    }
    FUZZ_CHECK(bytes <= size);
  }
  close(fd);
  return 0;
}
