// Calls whose weights and tactic are settled: Python functions of tensors alone, with as little between as there can
// be.
#pragma once

#include <nanobind/nanobind.h>

#include "tactic.h"

namespace tunebook {

// Throw std::invalid_argument for weights that the tactic cannot read, or that do not fit each other.
void check_tactic(const Weights& weights, const Tactic& tactic);
void check_experts(const Weights& gate_up, const Weights& down, const Tactic& tactic);

// Adds use_exchange, bind_linear and bind_experts to the module.
void add_bound_calls(nanobind::module_& m);

}  // namespace tunebook
