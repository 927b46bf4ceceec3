// How the memory of a call of experts is laid out and its work is cut.
#pragma once

#include "tactic.h"

namespace tunebook {

struct ExpertsPlan {
  // For so many pairs of a token and a choice, on so many threads.
  ExpertsPlan(const Weights& gate_up, const Weights& down, int64_t tokens, int64_t pairs, Dtype dtype,
              const Tactic& tactic, int threads);

  Product product;
  Dtype panel_dtype;
  size_t size;  // of a panel's element
  int64_t panel_stride, hidden_stride, output_stride;  // elements from row to row
  int up_group, down_group;  // blocks of a task
  size_t panel_at, hidden_at, output_at, scratch_at, scratch_bytes, sums_at, sums_bytes, total;
};

}  // namespace tunebook
