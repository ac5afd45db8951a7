// The kernels for AVX2, FMA and F16C: every x86 server of the last ten years.
#include "loops.h"
#include "avx2.h"

namespace ray_lir {
const Isa* avx2_isa() {
  static const Isa isa = isa_of<Avx2>("avx2");
  return &isa;
}
}  // namespace ray_lir
