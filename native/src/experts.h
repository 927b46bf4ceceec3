// A gated mixture of experts in one call: gate and up, activation, down, and the weighted sum over each token's
// choices.
#pragma once

#include "tactic.h"

namespace tunebook {

struct ExpertsCall {
  const void* x;         // [tokens, H], contiguous
  int64_t tokens;
  const int64_t* index;  // [tokens, choices]: 0..E, E: no expert
  int64_t choices;
  const void* scores;    // [tokens, choices]
  Dtype scores_dtype;
  Activation activation;
  void* out;             // [tokens, H], contiguous
  Dtype dtype;           // of x and out
};

// Bytes for intermediate values that a call needs at most, whatever its routing.
size_t experts_workspace(const Weights& gate_up, const Weights& down, int64_t tokens, int64_t choices, Dtype dtype,
                         const Tactic& tactic);

// Throws std::out_of_range for an index outside 0..E, before anything is written.
void experts(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic);

}  // namespace tunebook
