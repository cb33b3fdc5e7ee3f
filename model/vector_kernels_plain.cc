#define VITRINE_KERNELS kPlainKernels
#define VITRINE_LANES 4
#include "model/vector_kernels_impl.h"
