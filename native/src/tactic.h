// How a call is to be computed, and what linear and experts share: the block under work and scratch memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "threads.h"
#include "weights.h"

namespace tunebook {

enum class Split : int { columns, experts, tokens };

struct Tactic {
  const Kernels* kernels = nullptr;
  bool dot = false;       // row-major weights only: dot products along K instead of tiles
  int row_tile = 4;       // rows of a tile, at most what the kernels have
  int columns = 0;        // result columns of a task; 0: chosen by the driver
  Split split = Split::columns;
  int64_t prefetch = 0;   // bytes ahead; 0: none; kNextBlock: the whole next block, spread over the row tiles
  int threads = 1;
  Backend backend = Backend::automatic;
};
constexpr int64_t kNextBlock = -1;

// Rows that one task takes at a time, so that its panel stays in the second-level cache.
constexpr int64_t kRowChunk = 256;

// What a weight is multiplied with: as bf16 where both are and the kernels can, else as fp32.
Product product_of(const Kernels& kernels, Dtype panel, Dtype weight);

inline int element_of(Dtype dtype) { return dtype == Dtype::bf16 ? 2 : 4; }

// Memory of a calling thread for intermediate values: kept for its next call, so that pages are faulted in once.
class Arena {
 public:
  // 64-byte aligned memory until the next `reserve`.
  static char* reserve(size_t bytes);
  // Gives this thread's memory back; returns how many bytes it was.
  static size_t release();
};

// Hands out parts of one reservation: first every part is counted, then they have addresses.
class Layout {
 public:
  size_t add(size_t bytes) {
    const size_t at = total_;
    total_ += (bytes + 63) / 64 * 64;
    return at;
  }
  size_t total() const { return total_; }

 private:
  size_t total_ = 0;
};

// Blocks that one task takes: those of so many result columns, or, with 0, as many as make a stream of 32 KiB.
int group_of(int columns, int block_columns, size_t block_bytes);

// Converts one row of `inner` elements to a panel's, followed by zeros up to `padded`.
void to_panel(const Kernels& kernels, const void* from, Dtype from_dtype, void* to, Dtype to_dtype, int64_t inner,
              int64_t padded);

// One block of a weight, ready to be multiplied with rows of a panel.
class BlockProduct {
 public:
  // `scratch`: block_bytes of memory for tiles over row-major weights, of this thread alone.
  BlockProduct(const Weights& weights, const Tactic& tactic, Product product, char* scratch);

  static bool needs_scratch(const Weights& weights, const Tactic& tactic) { return !weights.packed() && !tactic.dot; }

  void select(int64_t matrix, int index);

  // Most rows that `multiply` takes.
  int most_rows() const { return rows_; }
  // c[rows][block] = a[rows] times the selected block. `pass` of `passes` over it, for prefetching.
  void multiply(const void* a, ptrdiff_t lda, int rows, int pass, int passes, float* c) const;

 private:
  const Weights& weights_;
  const Tactic& tactic_;
  Product product_;
  char* scratch_;
  int rows_;
  const char* block_ = nullptr;
  int64_t matrix_ = 0;
  int index_ = 0;
};

}  // namespace tunebook
