#include "experts_plan.h"

#include <algorithm>

namespace tunebook {
namespace {

// Bytes of sums that a task of the down product keeps, when the driver chooses its columns: half of a usual
// second-level cache.
constexpr int64_t kSumBytes = 1 << 20;

}  // namespace

ExpertsPlan::ExpertsPlan(const Weights& gate_up, const Weights& down, int64_t tokens, int64_t pairs, Dtype dtype,
                         const Tactic& tactic, int threads)
    : product(product_of(*tactic.kernels, dtype, gate_up.dtype())),
      panel_dtype(product == Product::bf16_bf16 ? Dtype::bf16 : Dtype::f32),
      size(static_cast<size_t>(element_of(panel_dtype))),
      // A stride that is no power of two spreads the rows of a tile over the cache's sets.
      panel_stride(round_up(gate_up.inner(), kDepth) + kDepth),
      hidden_stride(round_up(down.inner(), kDepth) + kDepth),
      output_stride(round_up(down.rows(), 16)) {
  const bool by_experts = tactic.split == Split::experts;
  const int up_width = gate_up.block() / 2, down_width = down.block();
  up_group = group_of(tactic.columns, up_width, gate_up.block_bytes());
  down_group = group_of(tactic.columns, down_width, down.block_bytes());
  if (tactic.columns == 0 && !by_experts) {  // a task reads its columns of every expert: wide ones read longer streams
    const int64_t fits = kSumBytes / (4 * std::max<int64_t>(tokens, 1) * down_width);
    down_group = static_cast<int>(std::clamp<int64_t>(down.blocks() / (threads * 4), 1, std::max<int64_t>(fits, 1)));
  }
  down_group = std::min(down_group, std::max(down.blocks(), 1));

  Layout layout;
  panel_at = layout.add(static_cast<size_t>((pairs + kSpareRows) * panel_stride) * size);
  hidden_at = layout.add(static_cast<size_t>((pairs + kSpareRows) * hidden_stride) * size);
  output_at = layout.add(by_experts ? static_cast<size_t>(pairs * output_stride) * 4 : 0);
  const bool needs = BlockProduct::needs_scratch(gate_up, tactic) || BlockProduct::needs_scratch(down, tactic);
  scratch_bytes = needs ? std::max(gate_up.block_bytes(), down.block_bytes()) : 0;
  scratch_at = layout.add(scratch_bytes * static_cast<size_t>(threads));
  sums_bytes = by_experts ? static_cast<size_t>(output_stride) * 4
                          : static_cast<size_t>(tokens) * static_cast<size_t>(down_group * down_width) * 4;
  sums_at = layout.add(sums_bytes * static_cast<size_t>(threads));
  total = layout.total();
}

}  // namespace tunebook
