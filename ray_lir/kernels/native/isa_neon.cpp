// The kernels for Arm processors with the dot product of Armv8.2: AWS Graviton 2, Ampere Altra and all later servers.
#include "loops.h"
#include "neon.h"

namespace ray_lir {
const Isa* neon_isa() {
  static const Isa isa = isa_of<Neon>("neon_dotprod");
  return &isa;
}
}  // namespace ray_lir
