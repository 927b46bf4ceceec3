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

// Tiles 0-3: sums; 4, 5: panel; 6, 7: weight. Sums 0 and 1 belong to the first row tile, 2 and 3 to the second; with
// one row tile, all four belong to it.
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

// Words of each column of a block that are multiplied with all rows of a panel before the next ones: 32 columns of them
// and as much of 32 rows stay in the first-level cache.
constexpr int64_t kChunk = 128;

// What one call of `columns` computes: rows from `row` on, `Tiles` tiles of 16 columns from tile `first` of the block
// on, over words [from, to) of K, in addition to what c holds unless from is 0; it prefetches part `part` of `parts` of
// the lines.
struct Step {
  int row, first;
  int64_t from, to;
  int part, parts;
};

// One row tile or two.
template <int Tiles, bool Two, bool Prefetch>
void columns(const Tile& t, const Step& step) {
  static_assert(!Two || Tiles <= 2, "eight tiles are all there are");
  constexpr bool second = Tiles > 1, third = Tiles > 2;
  const ptrdiff_t lda = t.lda * 2, ldb = t.block * 4, ldc = static_cast<ptrdiff_t>(t.ldc) * 4;
  const char* a = static_cast<const char*>(t.a) + step.row * lda + step.from * 4;
  const char* a_high = a + 16 * lda;
  const char* b = static_cast<const char*>(t.b) + step.from * ldb + step.first * 64;
  float* c = t.c + static_cast<ptrdiff_t>(step.row) * t.ldc + step.first * 16;
  float* c_high = c + 16 * static_cast<ptrdiff_t>(t.ldc);
  // The 16 words of a step are as many lines as the block has columns; this call takes its share of them.
  const char* ahead = static_cast<const char*>(t.b) + step.from * ldb + t.prefetch;
  const int line_from = t.block * step.part / step.parts, line_to = t.block * (step.part + 1) / step.parts;
  if (step.from == 0) {
    _tile_zero(0);
    if constexpr (second) _tile_zero(1);
    if constexpr (Two || third) _tile_zero(2);
    if constexpr ((Two && second) || third) _tile_zero(3);
  } else {
    _tile_loadd(0, c, ldc);
    if constexpr (second) _tile_loadd(1, c + 16, ldc);
    if constexpr (Two) _tile_loadd(2, c_high, ldc);
    if constexpr (Two && second) _tile_loadd(3, c_high + 16, ldc);
    if constexpr (third) {
      _tile_loadd(2, c + 32, ldc);
      _tile_loadd(3, c + 48, ldc);
    }
  }
  for (int64_t k = step.from; k < step.to; k += 16) {
    _tile_loadd(6, b, ldb);
    _tile_loadd(4, a, lda);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Two) {
      _tile_loadd(5, a_high, lda);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (second) {
      _tile_loadd(7, b + 64, ldb);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Two) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (third) {
      _tile_loadd(6, b + 128, ldb);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, b + 192, ldb);
      _tile_dpbf16ps(3, 4, 7);
    }
    if constexpr (Prefetch) {
      prefetch_lines(ahead, line_from, line_to);
      ahead += 16 * ldb;
    }
    b += 16 * ldb;
    a += 64;
    a_high += 64;
  }
  _tile_stored(0, c, ldc);
  if constexpr (second) _tile_stored(1, c + 16, ldc);
  if constexpr (Two) {
    _tile_stored(2, c_high, ldc);
    if constexpr (second) _tile_stored(3, c_high + 16, ldc);
  }
  if constexpr (third) {
    _tile_stored(2, c + 32, ldc);
    _tile_stored(3, c + 48, ldc);
  }
}

// Up to 32 rows, exactly as many as there are, the whole of K at once.
template <bool Prefetch>
void rows_32(const Tile& t) {
  const bool two = t.rows > 16;
  configure(two ? 16 : t.rows, two ? t.rows - 16 : 0);
  Step step{0, 0, 0, t.depth, t.prefetch_part, t.prefetch_parts};
  if (t.block == 16) {
    two ? columns<1, true, Prefetch>(t, step) : columns<1, false, Prefetch>(t, step);
  } else if (t.block == 32) {
    two ? columns<2, true, Prefetch>(t, step) : columns<2, false, Prefetch>(t, step);
  } else if (two) {
    step.parts *= 2;
    step.part *= 2;
    columns<2, true, Prefetch>(t, step);
    step.part += 1;
    step.first = 2;
    columns<2, true, Prefetch>(t, step);
  } else {
    columns<4, false, Prefetch>(t, step);
  }
}

// More rows: K in chunks, each for all rows before the next. Reads and writes whole tiles of 16 rows.
template <bool Prefetch>
void panel(const Tile& t) {
  configure(16, 16);
  const int calls = t.block == 64 ? 2 : 1, pairs = (t.rows + 31) / 32;
  for (int64_t from = 0; from < t.depth; from += kChunk) {
    Step step{0, 0, from, from + kChunk < t.depth ? from + kChunk : t.depth, t.prefetch_part * pairs * calls,
              t.prefetch_parts * pairs * calls};
    for (; step.row < t.rows; step.row += 32) {
      const bool two = t.rows - step.row > 16;
      for (step.first = 0; step.first < t.block / 16; step.first += 2, ++step.part) {
        if (t.block == 16) {
          two ? columns<1, true, Prefetch>(t, step) : columns<1, false, Prefetch>(t, step);
        } else {
          two ? columns<2, true, Prefetch>(t, step) : columns<2, false, Prefetch>(t, step);
        }
      }
    }
  }
}

void tile(const Tile& t) {
  if (t.rows > 32) {
    t.prefetch ? panel<true>(t) : panel<false>(t);
  } else {
    t.prefetch ? rows_32<true>(t) : rows_32<false>(t);
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
    k.rows[bf16] = kMaxRows;
    k.tile[bf16] = tile;
    k.enter = enter;
    k.leave = leave;
    k.peak = peak;
    return k;
  }();
  return &kernels;
}

}  // namespace tunebook
