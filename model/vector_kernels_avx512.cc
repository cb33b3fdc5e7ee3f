#define VITRINE_KERNELS kAvx512Kernels
#define VITRINE_LANES 16
#include "model/vector_kernels_impl.h"
