#define VITRINE_KERNELS kAvx512Bf16Kernels
#define VITRINE_LANES 16
#include "model/vector_kernels_impl.h"
