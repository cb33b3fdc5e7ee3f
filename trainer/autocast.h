#pragma once

namespace vitrine {

// Products in bf16 while it lives, on the calling thread: LibTorch's autocast,
// for the CPU or for CUDA. Parameters stay fp32. Nothing where `on` is false.
class Autocast {
 public:
  explicit Autocast(bool on, bool cuda = false);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  const bool on_;
  const bool cuda_;
};

}  // namespace vitrine
