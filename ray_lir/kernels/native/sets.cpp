// The instruction sets that this processor can run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "sets.h"

#if defined(RAY_LIR_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(RAY_LIR_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ray_lir {
namespace {

#if defined(RAY_LIR_X86)
bool has_avx512() {
#if defined(RAY_LIR_EMULATE)
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
}

bool may_use_tiles() {
#if defined(RAY_LIR_EMULATE)
  return true;
#elif defined(__linux__)
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-int8")) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const Isa*> supported() {
  std::vector<const Isa*> sets = {portable_isa()};
#ifdef RAY_LIR_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return sets;
  sets.push_back(avx2_isa());
  if (!has_avx512()) return sets;
  sets.push_back(avx512_isa());
  if (may_use_tiles()) sets.push_back(amx_isa());
#elif defined(RAY_LIR_NEON)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) sets.push_back(neon_isa());
#endif
  return sets;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Isa* isa : supported()) names.emplace_back(isa->name);
  return names;
}

}  // namespace

const Isa& isa_named(const std::string& name) {
  for (const Isa* isa : supported())
    if (name == isa->name) return *isa;
  throw std::invalid_argument("this processor cannot run " + name);
}

void add_sets(nb::module_& m) { m.def("instruction_sets", &instruction_sets); }

}  // namespace ray_lir
