#pragma once

namespace vitrine {

// Shares `threads` (0: the processors) out among workers and LibTorch's
// operations of each, for the whole process; returns the number of workers.
// `max_products`: of oneDNN, as SetUpMathLibraries has it; with fewer than
// kAllProducts, bf16 products have to stay on one thread at a time, so there is
// one worker then.
int SetUpThreads(int threads, bool bf16, int max_products);

}  // namespace vitrine
