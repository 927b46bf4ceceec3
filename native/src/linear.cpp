#include "linear.h"

#include <algorithm>

namespace tunebook {
namespace {

// Rows a panel needs before copying x into one with a stride that spreads over the cache's sets pays.
constexpr int64_t kCopyRows = 8;
// Rows that a thread converts at a time.
constexpr int64_t kFillRows = 8;

struct LinearPlan {
  LinearPlan(const Weights& weights, int64_t rows, Dtype dtype, const Tactic& tactic)
      : product(product_of(*tactic.kernels, dtype, weights.dtype())),
        panel_dtype(product == Product::bf16_bf16 ? Dtype::bf16 : Dtype::f32),
        panel_size(static_cast<size_t>(element_of(panel_dtype))),
        padded(round_up(std::max<int64_t>(weights.inner(), 1), kDepth)),
        direct(dtype == panel_dtype && weights.inner() == padded && rows < kCopyRows),
        stride(direct ? weights.inner() : padded + kDepth),
        scratch_bytes(BlockProduct::needs_scratch(weights, tactic) ? weights.block_bytes() : 0) {
    Layout layout;
    panel_at = layout.add(direct ? 0 : static_cast<size_t>((rows + kSpareRows) * stride) * panel_size);
    scratch_at = layout.add(scratch_bytes * static_cast<size_t>(std::max(tactic.threads, 1)));
    total = layout.total();
  }

  Product product;
  Dtype panel_dtype;
  size_t panel_size;
  int64_t padded;
  bool direct;  // x itself is the panel
  int64_t stride;
  size_t scratch_bytes, panel_at, scratch_at, total;
};

}  // namespace

size_t linear_workspace(const Weights& weights, int64_t rows, Dtype dtype, const Tactic& tactic) {
  return LinearPlan(weights, rows, dtype, tactic).total;
}

void linear(const Weights& weights, const LinearCall& call, const Tactic& tactic) {
  if (call.rows == 0 || weights.rows() == 0) return;
  const Kernels& kernels = *tactic.kernels;
  const LinearPlan plan(weights, call.rows, call.dtype, tactic);
  const int64_t inner = weights.inner(), stride = plan.stride;
  const size_t panel_size = plan.panel_size;
  const int threads = std::max(tactic.threads, 1);
  char* memory = Arena::reserve(plan.total);
  const char* panel = plan.direct ? static_cast<const char*>(call.x) : memory + plan.panel_at;

  const int block = weights.block(), blocks = weights.blocks();
  int64_t chunk = kRowChunk;
  if (tactic.split == Split::tokens) chunk = std::max<int64_t>((call.rows + threads - 1) / threads, 1);
  const int64_t chunks = (call.rows + chunk - 1) / chunk;
  const int group = group_of(tactic.columns, block, weights.block_bytes());
  const int64_t groups = (blocks + group - 1) / group, tasks = chunks * groups;

  Queue fills((call.rows + kFillRows - 1) / kFillRows, threads), blocks_left(tasks, threads);
  Barrier barrier;
  const auto fill = [&](int64_t row) {
    to_panel(kernels, static_cast<const char*>(call.x) + row * inner * element_of(call.dtype), call.dtype,
             memory + plan.panel_at + static_cast<size_t>(row * stride) * panel_size, plan.panel_dtype, inner,
             plan.padded);
  };
  const bool fill_first = !plan.direct && call.rows * inner <= 32768;
  if (fill_first) {
    for (int64_t row = 0; row < call.rows; ++row) fill(row);
  }
  parallel(static_cast<int>(std::min<int64_t>(threads, tasks)), tactic.backend, [&](int id, int count) {
    if (!plan.direct && !fill_first) {
      for (int64_t task; (task = fills.take(id)) >= 0;) {
        for (int64_t r = task * kFillRows; r < std::min((task + 1) * kFillRows, call.rows); ++r) fill(r);
      }
      barrier.wait(count);
    }
    kernels.enter();
    BlockProduct multiplier(weights, tactic, plan.product,
                            memory + plan.scratch_at + static_cast<size_t>(id) * plan.scratch_bytes);
    const int64_t most = multiplier.most_rows();
    alignas(64) float c[kMaxRows * kMaxBlock];
    alignas(64) float bias[kMaxBlock];
    for (int64_t task; (task = blocks_left.take(id)) >= 0;) {
      const int64_t first = task / groups * chunk, last = std::min(first + chunk, call.rows);
      const int from = static_cast<int>(task % groups) * group;
      for (int index = from; index < std::min(from + group, blocks); ++index) {
        const int columns = weights.valid_columns(index);
        const int64_t column = weights.first_column(index);
        if (call.bias && call.bias_dtype == Dtype::bf16) {
          kernels.to_f32(static_cast<const uint16_t*>(call.bias) + column, bias, columns);
        } else if (call.bias) {
          std::copy_n(static_cast<const float*>(call.bias) + column, columns, bias);
        }
        multiplier.select(0, index);
        const int passes = static_cast<int>((last - first + most - 1) / most);
        for (int64_t row = first; row < last; row += most) {
          const int rows = static_cast<int>(std::min(most, last - row));
          multiplier.multiply(panel + static_cast<size_t>(row * stride) * panel_size, stride, rows,
                              static_cast<int>((row - first) / most), passes, c);
          kernels.store(c, block, rows, columns, call.bias ? bias : nullptr,
                        static_cast<char*>(call.out) + (row * weights.rows() + column) * element_of(call.dtype),
                        weights.rows(), call.dtype);
        }
      }
    }
    kernels.leave();
  });
}

}  // namespace tunebook
