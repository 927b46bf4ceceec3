#include "tactic.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace tunebook {
namespace {

thread_local std::unique_ptr<Buffer> arena;

}  // namespace

Product product_of(const Kernels& kernels, Dtype panel, Dtype weight) {
  if (weight == Dtype::f32) return Product::f32_f32;
  const bool native = panel == Dtype::bf16 && kernels.tile[static_cast<int>(Product::bf16_bf16)];
  return native ? Product::bf16_bf16 : Product::f32_bf16;
}

char* Arena::reserve(size_t bytes) {
  if (!arena || arena->size() < bytes) {
    arena.reset();  // before the new one is taken: both together may be too much
    arena = std::make_unique<Buffer>(bytes);
  }
  return arena->data();
}

size_t Arena::release() {
  const size_t bytes = arena ? arena->size() : 0;
  arena.reset();
  return bytes;
}

int group_of(int columns, int block_columns, size_t block_bytes) {
  if (columns > 0) return std::max(columns / block_columns, 1);
  return static_cast<int>(std::max<size_t>((size_t{32} << 10) / std::max<size_t>(block_bytes, 1), 1));
}

void to_panel(const Kernels& kernels, const void* from, Dtype from_dtype, void* to, Dtype to_dtype, int64_t inner,
              int64_t padded) {
  const auto size = static_cast<size_t>(element_of(to_dtype));
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(inner) * size);
  } else if (to_dtype == Dtype::f32) {
    kernels.to_f32(static_cast<const uint16_t*>(from), static_cast<float*>(to), inner);
  } else {
    kernels.to_bf16(static_cast<const float*>(from), static_cast<uint16_t*>(to), inner);
  }
  char* rest = static_cast<char*>(to) + static_cast<size_t>(inner) * size;
  std::memset(rest, 0, static_cast<size_t>(padded - inner) * size);
}

BlockProduct::BlockProduct(const Weights& weights, const Tactic& tactic, Product product, char* scratch)
    : weights_(weights), tactic_(tactic), product_(product), scratch_(scratch) {
  const int p = static_cast<int>(product);
  rows_ = std::clamp(tactic.row_tile, 1, tactic.dot ? tactic.kernels->dot_rows[p] : tactic.kernels->rows[p]);
}

void BlockProduct::select(int64_t matrix, int index) {
  matrix_ = matrix;
  index_ = index;
  if (weights_.packed()) {
    block_ = weights_.block_at(matrix, index);
  } else if (!tactic_.dot) {
    weights_.pack_block(matrix, index, *tactic_.kernels, scratch_);
    block_ = scratch_;
  }
}

void BlockProduct::multiply(const void* a, ptrdiff_t lda, int rows, int pass, int passes, float* c) const {
  const int p = static_cast<int>(product_);
  const int block = weights_.block();
  if (!tactic_.dot) {
    Tile t;
    t.a = a;
    t.lda = lda;
    t.b = block_;
    t.block = block;
    t.depth = weights_.depth();
    t.c = c;
    t.ldc = block;
    t.rows = rows;
    t.prefetch = 0;
    t.prefetch_part = 0;
    t.prefetch_parts = 1;
    if (tactic_.prefetch == kNextBlock && weights_.packed()) {
      t.prefetch = static_cast<int64_t>(weights_.block_bytes());
      t.prefetch_part = pass;
      t.prefetch_parts = passes;
    } else if (weights_.packed() && pass == 0) {
      t.prefetch = tactic_.prefetch;
    }
    return tactic_.kernels->tile[p](t);
  }
  Dot d;
  d.a = a;
  d.lda = lda;
  d.ldb = weights_.inner();
  d.columns = weights_.valid_columns(index_);
  d.inner = weights_.inner();
  d.ldc = block;
  d.rows = rows;
  const int parts = weights_.gated() ? 2 : 1, width = block / parts;
  for (int part = 0; part < parts; ++part) {
    d.c = c + part * width;
    if (d.columns > 0) {
      d.b = weights_.row_at(matrix_, weights_.first_column(index_) + part * (weights_.rows() / 2));
      tactic_.kernels->dot[p](d);
    }
    if (d.columns < width) {  // columns that pad K of the next product
      for (int r = 0; r < rows; ++r) std::fill(d.c + r * block + d.columns, d.c + r * block + width, 0.0f);
    }
  }
}

}  // namespace tunebook
