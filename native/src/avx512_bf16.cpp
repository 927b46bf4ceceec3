// AVX-512-BF16: products of bf16 by bf16 with _mm512_dpbf16_ps, two elements of K at a time, sums in fp32.
#include "vector_avx512.h"

#include "generic.h"

namespace tunebook {
namespace {

inline __m512bh as_bf16(__m512i v) { return (__m512bh)v; }

template <int MR, int S, int U, bool Prefetch>
void bf16_tile(const Tile& t) {
  __m512 acc[U][MR][S];
  for (int u = 0; u < U; ++u)
    for (int r = 0; r < MR; ++r)
      for (int s = 0; s < S; ++s) acc[u][r][s] = _mm512_setzero_ps();
  const uint16_t* a = static_cast<const uint16_t*>(t.a);
  const char* b = static_cast<const char*>(t.b);
  const auto step = [&](int64_t k, int u) __attribute__((always_inline)) {
    const char* words = b + k * S * 64;
    __m512bh w[S];
    for (int s = 0; s < S; ++s) {
      if constexpr (Prefetch) _mm_prefetch(words + s * 64 + t.prefetch, _MM_HINT_T0);
      w[s] = as_bf16(_mm512_load_si512(words + s * 64));
    }
    for (int r = 0; r < MR; ++r) {
      int32_t pair;
      memcpy(&pair, a + r * t.lda + 2 * k, 4);
      const __m512bh x = as_bf16(_mm512_set1_epi32(pair));
      for (int s = 0; s < S; ++s) acc[u][r][s] = _mm512_dpbf16_ps(acc[u][r][s], x, w[s]);
    }
  };
  int64_t k = 0;
  for (; k + U <= t.depth; k += U)
    for (int u = 0; u < U; ++u) step(k + u, u);
  for (; k < t.depth; ++k) step(k, 0);
  for (int r = 0; r < MR; ++r)
    for (int s = 0; s < S; ++s) {
      __m512 sum = acc[0][r][s];
      for (int u = 1; u < U; ++u) sum = _mm512_add_ps(sum, acc[u][r][s]);
      _mm512_store_ps(t.c + static_cast<ptrdiff_t>(r) * t.ldc + s * 16, sum);
    }
}

template <int MR, bool Prefetch>
void bf16_tile_columns(const Tile& t) {
  if (t.block == 64) bf16_tile<MR, 4, 1, Prefetch>(t);
  if (t.block == 32) bf16_tile<MR, 2, 2, Prefetch>(t);
  if (t.block == 16) bf16_tile<MR, 1, 4, Prefetch>(t);
}

template <int MR>
void bf16_tile_rows(const Tile& t) {
  if (t.rows != MR) {
    if constexpr (MR > 1) bf16_tile_rows<MR - 1>(t);
  } else if (t.prefetch && t.prefetch_part == 0) {
    bf16_tile_columns<MR, true>(t);
  } else {
    bf16_tile_columns<MR, false>(t);
  }
}

template <int MR, int NC>
void bf16_dot(const Dot& d, int column) {
  __m512 acc[MR][NC];
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < NC; ++c) acc[r][c] = _mm512_setzero_ps();
  const uint16_t* a = static_cast<const uint16_t*>(d.a);
  const uint16_t* b = static_cast<const uint16_t*>(d.b) + column * d.ldb;
  const auto step = [&](int64_t k, __mmask32 mask) __attribute__((always_inline)) {
    __m512bh w[NC];
    for (int c = 0; c < NC; ++c) w[c] = as_bf16(_mm512_maskz_loadu_epi16(mask, b + c * d.ldb + k));
    for (int r = 0; r < MR; ++r) {
      const __m512bh x = as_bf16(_mm512_loadu_si512(a + r * d.lda + k));
      for (int c = 0; c < NC; ++c) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], x, w[c]);
    }
  };
  int64_t k = 0;
  for (; k + 32 <= d.inner; k += 32) step(k, 0xffffffffu);
  if (k < d.inner) step(k, (1u << (d.inner - k)) - 1);
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < NC; ++c) d.c[static_cast<ptrdiff_t>(r) * d.ldc + column + c] = _mm512_reduce_add_ps(acc[r][c]);
}

template <int MR>
void bf16_dot_rows(const Dot& d) {
  if (d.rows != MR) {
    if constexpr (MR > 1) bf16_dot_rows<MR - 1>(d);
    return;
  }
  int column = 0;
  for (; column + 4 <= d.columns; column += 4) bf16_dot<MR, 4>(d, column);
  for (; column < d.columns; ++column) bf16_dot<MR, 1>(d, column);
}

int64_t bf16_peak(int64_t rounds) {
  constexpr int chains = 16;
  __m512 sums[chains];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512 x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(0.5f);
  V::use(x);
  V::use(y);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
      V::use(sum);
    }
  }
  return rounds * chains * 32 * 2;
}

}  // namespace

const Kernels* avx512_bf16_kernels() {
  static const Kernels kernels = [] {
    Kernels k = generic_kernels("avx512_bf16");
    constexpr int bf16 = static_cast<int>(Product::bf16_bf16);
    k.rows[bf16] = 6;
    k.dot_rows[bf16] = 4;
    k.tile[bf16] = bf16_tile_rows<6>;
    k.dot[bf16] = bf16_dot_rows<4>;
    k.peak = bf16_peak;
    return k;
  }();
  return &kernels;
}

}  // namespace tunebook
