// Which instruction sets this processor and its operating system offer, and how many processors this process may use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace tunebook {

// Names of the usable instruction sets, best first: of "amx", "avx512_bf16", "avx512", "avx2". Empty where there is
// none.
const std::vector<std::string>& instruction_sets();

// Null where the name is unknown or its instruction set is not usable here.
const Kernels* kernels_of(const std::string& name);

// Processors that affinity and cgroup quota leave to this process, at least 1.
int usable_processors();

}  // namespace tunebook
