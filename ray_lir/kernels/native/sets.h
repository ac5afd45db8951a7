// The instruction sets that this processor runs.
#pragma once
#include <string>

#include "isa.h"

namespace ray_lir {

// Return an instruction set by name. Throws an exception if this processor cannot run it.
const Isa& isa_named(const std::string& name);

}  // namespace ray_lir
