// AMX-BF16: tiles of up to 16 rows by 32 elements of K, products with _tile_dpbf16ps; all else as AVX-512-BF16.
#include <immintrin.h>

#include "kernels.h"

namespace tunebook {
namespace {

struct alignas(64) Config {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Rows of the first and second row tile that this thread's configuration is for.
thread_local int configured_low = -1, configured_high = -1;

// Tiles 0-3: sums; 4, 5: panel; 6, 7: weight. Sums 0 and 1 belong to the first row tile, 2 and 3 to the second; with one
// row tile, all four belong to it.
void configure(int low, int high) {
  if (low == configured_low && high == configured_high) return;
  Config config;
  for (int i = 0; i < 8; ++i) {
    config.bytes[i] = 64;
    config.rows[i] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(low);
  config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(high ? high : low);
  // GCC's intrinsic says that it reads eight bytes only: make it see that all of them are used.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  configured_low = low;
  configured_high = high;
}

inline void prefetch_lines(const char* at, int from, int to) {
  for (int i = from; i < to; ++i) _mm_prefetch(at + i * 64, _MM_HINT_T1);
}

// `Tiles` tiles of 16 columns from tile `first` of the block on; one row tile or two.
template <int Tiles, bool Two, bool Prefetch>
void columns(const Tile& t, int first) {
  static_assert(!Two || Tiles <= 2, "eight tiles are all there are");
  const char* a = static_cast<const char*>(t.a);
  const ptrdiff_t lda = t.lda * 2, ldb = t.block * 4;
  const char* a_high = a + 16 * lda;
  const char* b = static_cast<const char*>(t.b) + first * 64;
  float* c = t.c + first * 16;
  // The 16 rows of a step are as many lines as the block has columns; this call takes its share of them.
  const char* ahead = static_cast<const char*>(t.b) + t.prefetch;
  const int calls = t.block / (Tiles * 16), parts = t.prefetch_parts * calls, part = t.prefetch_part * calls + first / Tiles;
  const int from = t.block * part / parts, to = t.block * (part + 1) / parts;
  _tile_zero(0);
  if constexpr (Tiles > 1) _tile_zero(1);
  if constexpr (Two || Tiles > 2) _tile_zero(2);
  if constexpr ((Two && Tiles > 1) || Tiles > 3) _tile_zero(3);
  for (int64_t k = 0; k < t.depth; k += 16) {
    _tile_loadd(6, b, ldb);
    _tile_loadd(4, a, lda);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Two) {
      _tile_loadd(5, a_high, lda);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (Tiles > 1) {
      _tile_loadd(7, b + 64, ldb);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Two) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (Tiles > 2) {
      _tile_loadd(6, b + 128, ldb);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, b + 192, ldb);
      _tile_dpbf16ps(3, 4, 7);
    }
    if constexpr (Prefetch) {
      prefetch_lines(ahead, from, to);
      ahead += 16 * ldb;
    }
    b += 16 * ldb;
    a += 64;
    a_high += 64;
  }
  const ptrdiff_t ldc = static_cast<ptrdiff_t>(t.ldc) * 4;
  _tile_stored(0, c, ldc);
  if constexpr (Tiles > 1) _tile_stored(1, c + 16, ldc);
  if constexpr (Two) {
    float* high = c + 16 * static_cast<ptrdiff_t>(t.ldc);
    _tile_stored(2, high, ldc);
    if constexpr (Tiles > 1) _tile_stored(3, high + 16, ldc);
  }
  if constexpr (Tiles > 2) {
    _tile_stored(2, c + 32, ldc);
    _tile_stored(3, c + 48, ldc);
  }
}

template <bool Prefetch>
void block(const Tile& t) {
  const bool two = t.rows > 16;
  configure(two ? 16 : t.rows, two ? t.rows - 16 : 0);
  if (t.block == 16) {
    two ? columns<1, true, Prefetch>(t, 0) : columns<1, false, Prefetch>(t, 0);
  } else if (t.block == 32) {
    two ? columns<2, true, Prefetch>(t, 0) : columns<2, false, Prefetch>(t, 0);
  } else if (two) {
    columns<2, true, Prefetch>(t, 0);
    columns<2, true, Prefetch>(t, 2);
  } else {
    columns<4, false, Prefetch>(t, 0);
  }
}

void tile(const Tile& t) {
  if (t.prefetch) {
    block<true>(t);
  } else {
    block<false>(t);
  }
}

void enter() { configured_low = -1; }  // another library may have configured this thread's tiles since

void leave() {
  if (configured_low >= 0) _tile_release();
  configured_low = -1;
}

int64_t peak(int64_t rounds) {
  enter();
  configure(16, 16);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  leave();
  return rounds * 4 * 16 * 16 * 32 * 2;
}

}  // namespace

const Kernels* amx_kernels() {
  static const Kernels kernels = [] {
    Kernels k = *avx512_bf16_kernels();
    constexpr int bf16 = static_cast<int>(Product::bf16_bf16);
    k.name = "amx";
    k.rows[bf16] = 32;
    k.tile[bf16] = tile;
    k.enter = enter;
    k.leave = leave;
    k.peak = peak;
    return k;
  }();
  return &kernels;
}

}  // namespace tunebook
