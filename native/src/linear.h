// x [rows, K] times a weight [N, K] transposed, plus a bias [N].
#pragma once

#include "tactic.h"

namespace tunebook {

struct LinearCall {
  const void* x;   // [rows, K], contiguous
  int64_t rows;
  const void* bias;  // [N] or null
  void* out;         // [rows, N], contiguous
  Dtype dtype;       // of x and out
  Dtype bias_dtype;
};

// Bytes for intermediate values that a call of so many rows needs.
size_t linear_workspace(const Weights& weights, int64_t rows, Dtype dtype, const Tactic& tactic);

void linear(const Weights& weights, const LinearCall& call, const Tactic& tactic);

}  // namespace tunebook
