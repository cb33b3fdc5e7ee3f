#pragma once

namespace vitrine {

// Products whose code oneDNN keeps where several threads multiply: all of them.
// Each holds a quarter of a MiB; a model that is served has some hundred, since
// bert_cpu.cc rounds their sizes.
inline constexpr int kAllProducts = 1 << 16;

// Sets up the libraries that LibTorch multiplies with on a CPU, for the whole
// process; the last call counts.
//
// OpenBLAS gets one thread: it has its own beside OpenMP's, and a lock around
// them. oneDNN makes code for each shape of a bf16 product and keeps that of
// the `max_products` used last. Where that is fewer than there are, only one
// thread may multiply: in 2.6, a thread that looks up a product just as
// another's drives it out reads freed memory.
void SetUpMathLibraries(int max_products);

}  // namespace vitrine
