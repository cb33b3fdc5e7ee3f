#pragma once

namespace vitrine {

// Products in bf16 while it lives, on the calling thread: LibTorch's autocast
// for the CPU. Parameters stay fp32. Nothing where `on` is false.
class Autocast {
 public:
  explicit Autocast(bool on);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  const bool on_;
};

}  // namespace vitrine
