#define VITRINE_KERNELS kAvx2Kernels
#define VITRINE_LANES 8
#include "model/vector_kernels_impl.h"
