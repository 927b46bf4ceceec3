// AVX-512 without bf16 instructions: bf16 is widened to fp32, which is exact.
#include "vector_avx512.h"

#include "generic.h"

namespace tunebook {

const Kernels* avx512_kernels() {
  static const Kernels kernels = generic_kernels("avx512");
  return &kernels;
}

}  // namespace tunebook
