// The kernels for AVX-512 with VNNI.
#include "loops.h"
#include "avx512.h"

namespace ray_lir {
const Isa* avx512_isa() {
  static const Isa isa = isa_of<Avx512>("avx512_vnni");
  return &isa;
}
}  // namespace ray_lir
