#include "tests/testing/other_device.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace vitrine::testing {

PassDevice OtherDevice() {
  return {at::hasCUDA() ? PassDevice::Kind::kCuda : PassDevice::Kind::kOther};
}

namespace {

// One reserved range of addresses that hold nothing: what a tensor has is in
// another, of which the operators know. What is given back is kept for the next
// of its size.
class Memory : public c10::Allocator {
 public:
  static Memory& Get() {
    static Memory& memory = *new Memory;
    return memory;
  }

  // LibTorch's is const before 2.3, and not since.
  c10::DataPtr allocate(size_t bytes) const { return Take(bytes); }
  c10::DataPtr allocate(size_t bytes) { return Take(bytes); }
  // Since 2.3.
  void copy_data(void* to, const void* from, size_t bytes) const {
    std::memcpy(OnCpu(to), OnCpu(const_cast<void*>(from)), bytes);
  }

  // Where the CPU finds what is at a device's address.
  void* OnCpu(void* address) const {
    return cpu_ + (static_cast<char*>(address) - begin_);
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 30;
  struct Block {
    char* data;
    size_t size;
  };

  c10::DataPtr Take(size_t bytes) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    constexpr size_t kAlignment = 64;
    const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    std::vector<char*>& free = free_[size];
    char* data = begin_ + used_;
    if (!free.empty()) {
      data = free.back();
      free.pop_back();
    } else {
      used_ += size;
      TORCH_CHECK(used_ <= kBytes, "the other device's memory is full");
    }
    return {data, new Block{data, size}, &Free,
            at::Device(at::kPrivateUse1, 0)};
  }

  static void Free(void* block) {
    const std::unique_ptr<Block> freed(static_cast<Block*>(block));
    const std::lock_guard<std::mutex> lock(Get().mutex_);
    Get().free_[freed->size].push_back(freed->data);
  }

  Memory()
      : begin_(Reserve(PROT_NONE)), cpu_(Reserve(PROT_READ | PROT_WRITE)) {}
  static char* Reserve(int protection) {
    void* const range =
        mmap(nullptr, kBytes, protection,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) std::abort();
    return static_cast<char*>(range);
  }

  char* const begin_;  // nobody can touch it
  char* const cpu_;
  mutable std::mutex mutex_;
  mutable size_t used_ = 0;
  mutable std::map<size_t, std::vector<char*>> free_;
};

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor Empty(at::IntArrayRef size, c10::optional<at::ScalarType> dtype,
                 c10::optional<at::Layout> /*layout*/,
                 c10::optional<at::Device> /*device*/,
                 c10::optional<bool> /*pin_memory*/,
                 c10::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &Memory::Get(), kKeys,
                                   dtype.value_or(at::kFloat), format);
}

at::Tensor EmptyStrided(at::IntArrayRef size, at::IntArrayRef stride,
                        c10::optional<at::ScalarType> dtype,
                        c10::optional<at::Layout> /*layout*/,
                        c10::optional<at::Device> /*device*/,
                        c10::optional<bool> /*pin_memory*/) {
  return at::detail::empty_strided_generic(size, stride, &Memory::Get(), kKeys,
                                           dtype.value_or(at::kFloat));
}

// The same tensor, as the CPU finds it.
at::Tensor OnCpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(Memory::Get().OnCpu(tensor.data_ptr()), tensor.sizes(),
                       tensor.strides(),
                       at::TensorOptions().dtype(tensor.dtype()));
}

at::Tensor CopyFrom(const at::Tensor& from, const at::Tensor& to,
                    bool /*non_blocking*/) {
  OnCpu(to).copy_(OnCpu(from));
  return to;
}

at::Tensor CopyFromAndResize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return CopyFrom(from, to, false);
}

at::Tensor AsStrided(const at::Tensor& self, at::IntArrayRef size,
                     at::IntArrayRef stride, c10::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor View(const at::Tensor& self, at::IntArrayRef size) {
  return at::native::view(self, size);
}

at::Tensor ReshapeAlias(const at::Tensor& self, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

const at::Tensor& Resize(const at::Tensor& self, at::IntArrayRef size,
                         c10::optional<at::MemoryFormat> /*format*/) {
  const size_t bytes = c10::multiply_integers(size) * self.itemsize();
  const at::Storage& storage = self.storage();
  if (storage.nbytes() < bytes) {
    TORCH_CHECK(storage.nbytes() == 0, "the other device grows no tensors");
    storage.set_data_ptr_noswap(Memory::Get().allocate(bytes));
    storage.set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

// Everything else: on the CPU, with copies of what is in the stack.
void Compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto check = [&op](const at::Tensor& tensor) {
    // As on a GPU: a number may come from the CPU, a tensor may not.
    TORCH_CHECK(!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0,
                op.operator_name().name,
                ": a tensor of the CPU among the other device's");
  };
  const size_t arguments = op.schema().arguments().size();
  for (const c10::IValue& value :
       at::ArrayRef<c10::IValue>(*stack).slice(stack->size() - arguments)) {
    if (value.isTensor()) check(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) check(tensor);
    }
  }
  at::native::cpu_fallback(op, stack);
}

// One device with one stream, which nothing waits for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream OnlyStream() {
    return c10::Stream(c10::Stream::DEFAULT, at::Device(at::kPrivateUse1, 0));
  }
  c10::DeviceType type() const override { return at::kPrivateUse1; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const override { return OnlyStream().device(); }
  c10::Device exchangeDevice(c10::Device /*to*/) const override {
    return getDevice();
  }
  void setDevice(c10::Device /*to*/) const override {}
  void uncheckedSetDevice(c10::Device /*to*/) const noexcept override {}
  c10::Stream getStream(c10::Device /*of*/) const noexcept override {
    return OnlyStream();
  }
  c10::Stream getDefaultStream(c10::Device /*of*/) const override {
    return OnlyStream();
  }
  c10::Stream exchangeStream(c10::Stream /*to*/) const noexcept override {
    return OnlyStream();
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&Compute>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(Empty));
  m.impl("empty_strided", TORCH_FN(EmptyStrided));
  m.impl("_copy_from", TORCH_FN(CopyFrom));
  m.impl("_copy_from_and_resize", TORCH_FN(CopyFromAndResize));
  m.impl("as_strided", TORCH_FN(AsStrided));
  m.impl("view", TORCH_FN(View));
  m.impl("_reshape_alias", TORCH_FN(ReshapeAlias));
  m.impl("resize_", TORCH_FN(Resize));
  // Of lists of tensors: one by one.
  m.impl("_foreach_mul_.Scalar",
         TORCH_FN(at::native::foreach_tensor_mul_scalar_kernel_slow_));
  m.impl("_foreach_add_.Scalar",
         TORCH_FN(at::native::foreach_tensor_add_scalar_kernel_slow_));
  m.impl("_foreach_add_.List",
         TORCH_FN(at::native::foreach_tensor_add_list_kernel_slow_));
  m.impl("_foreach_addcmul_.Scalar",
         TORCH_FN(at::native::foreach_tensor_addcmul_scalar_slow_));
  m.impl("_foreach_addcdiv_.Scalar",
         TORCH_FN(at::native::foreach_tensor_addcdiv_scalar_slow_));
  m.impl("_foreach_sqrt", TORCH_FN(at::native::foreach_tensor_sqrt_slow));
  m.impl("_foreach_norm.Scalar",
         TORCH_FN(at::native::foreach_tensor_norm_slow));
}

}  // namespace
}  // namespace vitrine::testing
