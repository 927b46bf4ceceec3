// Kernels that AVX2 and AVX-512 share, written against a struct `V` that the including unit defines in its own
// anonymous namespace. Everything here has internal linkage, so that no copy compiled for one instruction set serves
// another.
#pragma once

#include <string.h>

#include "activations.h"
#include "kernels.h"
#include "limits.h"

namespace tunebook {
namespace {

// ---- rows in and out ----------------------------------------------------------------------------------------------

void to_f32(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) V::store(to + i, V::load_bf16(from + i));
  for (; i < count; ++i) {
    const uint32_t word = static_cast<uint32_t>(from[i]) << 16;
    memcpy(to + i, &word, 4);
  }
}

void to_bf16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += V::width) {
    const int n = count - i < V::width ? static_cast<int>(count - i) : V::width;
    V::store_bf16_some(to + i, V::load_some(from + i, n), n);
  }
}

void store(const float* c, int ldc, int rows, int columns, const float* bias, void* to, ptrdiff_t ldt, Dtype dtype) {
  for (int r = 0; r < rows; ++r) {
    const float* row = c + static_cast<ptrdiff_t>(r) * ldc;
    for (int i = 0; i < columns; i += V::width) {
      const int n = columns - i < V::width ? columns - i : V::width;
      V::reg value = V::load_some(row + i, n);
      if (bias) value = V::add(value, V::load_some(bias + i, n));
      if (dtype == Dtype::bf16) {
        V::store_bf16_some(static_cast<uint16_t*>(to) + r * ldt + i, value, n);
      } else {
        V::store_some(static_cast<float*>(to) + r * ldt + i, value, n);
      }
    }
  }
}

void axpy(float scale, const float* from, float* to, int64_t count) {
  const V::reg s = V::set1(scale);
  for (int64_t i = 0; i < count; i += V::width) {
    const int n = count - i < V::width ? static_cast<int>(count - i) : V::width;
    V::store_some(to + i, V::fmadd(s, V::load_some(from + i, n), V::load_some(to + i, n)), n);
  }
}

void scatter(const float* c, int ldc, int rows, int columns, const float* scale, const int32_t* token, float* to,
             ptrdiff_t ldt) {
  for (int r = 0; r < rows; ++r) axpy(scale[r], c + static_cast<ptrdiff_t>(r) * ldc, to + token[r] * ldt, columns);
}

// ---- tiles of fp32 panels -----------------------------------------------------------------------------------------

// S vectors of columns from `column` on, MR rows. U chains of sums per element, folded at the end: the order of the sum
// depends on the block's width only, never on the number of rows, so that a row's result is the same in every batch.
template <bool Bf16, int MR, int S, int U, bool Prefetch>
void f32_tile(const Tile& t, int column) {
  V::reg acc[U][MR][S];
  for (int u = 0; u < U; ++u)
    for (int r = 0; r < MR; ++r)
      for (int s = 0; s < S; ++s) acc[u][r][s] = V::set1(0.0f);
  const float* a = static_cast<const float*>(t.a);
  const uint32_t* b = static_cast<const uint32_t*>(t.b) + column;
  const ptrdiff_t width = t.block;
  const auto step = [&](int64_t k, int u) __attribute__((always_inline)) {
    const uint32_t* words = b + k * width;
    if constexpr (Prefetch) {
      const char* ahead = reinterpret_cast<const char*>(words) + t.prefetch;
      for (int s = 0; s < S * V::width; s += 16) __builtin_prefetch(ahead + s * 4);
    }
    V::reg w[S];
    if constexpr (Bf16) {
      for (int s = 0; s < S; ++s) w[s] = V::even(words + s * V::width);
      for (int r = 0; r < MR; ++r) {
        const V::reg x = V::set1(a[r * t.lda + 2 * k]);
        for (int s = 0; s < S; ++s) acc[u][r][s] = V::fmadd(x, w[s], acc[u][r][s]);
      }
      for (int s = 0; s < S; ++s) w[s] = V::odd(words + s * V::width);
      for (int r = 0; r < MR; ++r) {
        const V::reg x = V::set1(a[r * t.lda + 2 * k + 1]);
        for (int s = 0; s < S; ++s) acc[u][r][s] = V::fmadd(x, w[s], acc[u][r][s]);
      }
    } else {
      for (int s = 0; s < S; ++s) w[s] = V::load(reinterpret_cast<const float*>(words + s * V::width));
      for (int r = 0; r < MR; ++r) {
        const V::reg x = V::set1(a[r * t.lda + k]);
        for (int s = 0; s < S; ++s) acc[u][r][s] = V::fmadd(x, w[s], acc[u][r][s]);
      }
    }
  };
  int64_t k = 0;
  for (; k + U <= t.depth; k += U)
    for (int u = 0; u < U; ++u) step(k + u, u);
  for (; k < t.depth; ++k) step(k, 0);
  for (int r = 0; r < MR; ++r)
    for (int s = 0; s < S; ++s) {
      V::reg sum = acc[0][r][s];
      for (int u = 1; u < U; ++u) sum = V::add(sum, acc[u][r][s]);
      V::store(t.c + static_cast<ptrdiff_t>(r) * t.ldc + column + s * V::width, sum);
    }
}

template <bool Bf16, int MR, bool Prefetch>
void f32_tile_columns(const Tile& t) {
  if constexpr (V::width == 8) {  // 16 registers: strips of 16 columns
    for (int column = 0; column < t.block; column += 16) f32_tile<Bf16, MR, 2, 1, Prefetch>(t, column);
  } else {
    if (t.block == 64) f32_tile<Bf16, MR, 4, 1, Prefetch>(t, 0);
    if (t.block == 32) f32_tile<Bf16, MR, 2, 2, Prefetch>(t, 0);
    if (t.block == 16) f32_tile<Bf16, MR, 1, 4, Prefetch>(t, 0);
  }
}

template <bool Bf16, int MR>
void f32_tile_rows(const Tile& t) {
  if (t.rows != MR) {
    if constexpr (MR > 1) f32_tile_rows<Bf16, MR - 1>(t);
  } else if (t.prefetch && t.prefetch_part == 0) {
    f32_tile_columns<Bf16, MR, true>(t);
  } else {
    f32_tile_columns<Bf16, MR, false>(t);
  }
}

// ---- row-major dot products ---------------------------------------------------------------------------------------

template <bool Bf16>
inline V::reg load_weight(const void* row, int64_t k) {
  if constexpr (Bf16) return V::load_bf16(static_cast<const uint16_t*>(row) + k);
  return V::load(static_cast<const float*>(row) + k);
}

// What is left of a row, less than a vector, followed by zeros: the next row's values must not be read, they may be
// NaN.
template <bool Bf16>
inline V::reg load_rest(const void* row, int64_t k, int64_t inner) {
  alignas(64) unsigned char rest[V::width * (Bf16 ? 2 : 4)] = {};
  constexpr int size = Bf16 ? 2 : 4;
  memcpy(rest, static_cast<const unsigned char*>(row) + k * size, static_cast<size_t>(inner - k) * size);
  return load_weight<Bf16>(rest, 0);
}

template <bool Bf16, int MR, int NC>
void f32_dot(const Dot& d, int column) {
  constexpr int size = Bf16 ? 2 : 4;
  V::reg acc[MR][NC];
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < NC; ++c) acc[r][c] = V::set1(0.0f);
  const float* a = static_cast<const float*>(d.a);
  const char* rows[NC];
  for (int c = 0; c < NC; ++c) rows[c] = static_cast<const char*>(d.b) + (column + c) * d.ldb * size;
  int64_t k = 0;
  for (; k + V::width <= d.inner; k += V::width) {
    V::reg w[NC];
    for (int c = 0; c < NC; ++c) w[c] = load_weight<Bf16>(rows[c], k);
    for (int r = 0; r < MR; ++r) {
      const V::reg x = V::load(a + r * d.lda + k);
      for (int c = 0; c < NC; ++c) acc[r][c] = V::fmadd(x, w[c], acc[r][c]);
    }
  }
  if (k < d.inner) {
    V::reg w[NC];
    for (int c = 0; c < NC; ++c) w[c] = load_rest<Bf16>(rows[c], k, d.inner);
    for (int r = 0; r < MR; ++r) {
      const V::reg x = V::load(a + r * d.lda + k);
      for (int c = 0; c < NC; ++c) acc[r][c] = V::fmadd(x, w[c], acc[r][c]);
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < NC; ++c) d.c[static_cast<ptrdiff_t>(r) * d.ldc + column + c] = V::sum(acc[r][c]);
}

template <bool Bf16, int MR>
void f32_dot_rows(const Dot& d) {
  if (d.rows != MR) {
    if constexpr (MR > 1) f32_dot_rows<Bf16, MR - 1>(d);
    return;
  }
  constexpr int NC = V::width == 8 ? 2 : 4;
  int column = 0;
  for (; column + NC <= d.columns; column += NC) f32_dot<Bf16, MR, NC>(d, column);
  for (; column < d.columns; ++column) f32_dot<Bf16, MR, 1>(d, column);
}

void nothing() {}

}  // namespace

void pack_words(const Pack& p);
void unpack_words(const Pack& p);
}  // namespace tunebook

#include "rows_generic.h"
#include "attention_generic.h"

namespace tunebook {

namespace {

Kernels generic_kernels(const char* name) {
  Kernels k = {};
  k.name = name;
  constexpr int mixed = static_cast<int>(Product::f32_bf16), full = static_cast<int>(Product::f32_f32);
  k.rows[mixed] = V::width == 8 ? 4 : 6;
  k.rows[full] = 6;
  k.dot_rows[mixed] = k.dot_rows[full] = 4;
  k.tile[mixed] = f32_tile_rows<true, V::width == 8 ? 4 : 6>;
  k.tile[full] = f32_tile_rows<false, 6>;
  k.dot[mixed] = f32_dot_rows<true, 4>;
  k.dot[full] = f32_dot_rows<false, 4>;
  k.enter = k.leave = nothing;
  k.to_f32 = to_f32;
  k.to_bf16 = to_bf16;
  k.gate = gate;
  k.store = store;
  k.scatter = scatter;
  k.axpy = axpy;
  k.read = read;
  k.peak = peak;
  k.pack = pack_words;
  k.unpack = unpack_words;
  k.rows_of = &kRowKernels;
  k.attention = &kAttention;
  return k;
}

}  // namespace
}  // namespace tunebook
