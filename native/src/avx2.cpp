// AVX2 with FMA, and the packing that all instruction sets share.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace tunebook {
namespace {

struct V {
  using reg = __m256;
  static constexpr int width = 8;
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static reg load(const float* p) { return _mm256_loadu_ps(p); }
  static reg load_some(const float* p, int n) { return n == width ? load(p) : _mm256_maskload_ps(p, first(n)); }
  static reg load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m256i words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static reg even(const uint32_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(words(p), 16)); }
  static reg odd(const uint32_t* p) {
    return _mm256_castsi256_ps(_mm256_and_si256(words(p), _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void store(float* p, reg v) { _mm256_storeu_ps(p, v); }
  static void store_some(float* p, reg v, int n) {
    if (n == width) {
      store(p, v);
    } else {
      _mm256_maskstore_ps(p, first(n), v);
    }
  }
  static void store_bf16_some(uint16_t* p, reg v, int n) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(lowest, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    if (n == width) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
    } else {
      alignas(16) uint16_t all[width];
      _mm_store_si128(reinterpret_cast<__m128i*>(all), narrow);
      memcpy(p, all, static_cast<size_t>(n) * 2);
    }
  }
  static reg set1(float x) { return _mm256_set1_ps(x); }
  static reg fmadd(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg sub(reg a, reg b) { return _mm256_sub_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
  static reg div(reg a, reg b) { return _mm256_div_ps(a, b); }
  static reg max(reg a, reg b) { return _mm256_max_ps(a, b); }  // b where one is NaN
  static reg min(reg a, reg b) { return _mm256_min_ps(a, b); }
  static reg abs(reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static reg copysign(reg size, reg sign) { return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f))); }
  static reg round(reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // n in -126..128: one power of two would overflow at 128, so that it is applied in two halves.
  static reg scale_by_power(reg y, reg n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i low = _mm256_srai_epi32(whole, 1);
    const __m256i high = _mm256_sub_epi32(whole, low);
    const __m256i bias = _mm256_set1_epi32(127);
    const reg a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(low, bias), 23));
    const reg b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(high, bias), 23));
    return mul(mul(y, a), b);
  }
  static void use(reg& a) { __asm__ volatile("" : "+x"(a)); }  // the optimiser must not know the value
  static float sum(reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

}  // namespace
}  // namespace tunebook

#include "generic.h"

namespace tunebook {
namespace {

void transpose8(__m256i r[8]) {
  __m256i t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
  }
}

}  // namespace

void pack_words(const Pack& p) {
  const int64_t whole = p.inner * p.element / 4;  // words that lie fully inside a row
  for (int64_t k = 0; k < p.depth; k += 16) {
    for (int c = 0; c < p.columns; c += 8) {
      if (k + 16 <= whole && c + 8 <= p.valid) {
        for (int64_t half = k; half < k + 16; half += 8) {
          __m256i r[8];
          for (int i = 0; i < 8; ++i) {
            r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.rows[c + i] + half * 4));
          }
          transpose8(r);
          for (int i = 0; i < 8; ++i) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.block + (half + i) * p.width + c), r[i]);
          }
        }
        continue;
      }
      for (int64_t word = k; word < p.depth && word < k + 16; ++word) {
        for (int i = c; i < c + 8; ++i) {
          uint32_t value = 0;
          if (i < p.valid && word < whole) {
            memcpy(&value, p.rows[i] + word * 4, 4);
          } else if (i < p.valid && word * 4 < p.inner * p.element) {
            memcpy(&value, p.rows[i] + word * 4, 2);
          }
          p.block[word * p.width + i] = value;
        }
      }
    }
  }
}

void unpack_words(const Pack& p) {
  const int64_t whole = p.inner * p.element / 4;
  for (int c = 0; c < p.valid; c += 8) {
    int64_t k = 0;
    if (c + 8 <= p.valid) {
      for (; k + 8 <= whole; k += 8) {
        __m256i r[8];
        for (int i = 0; i < 8; ++i) {
          r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.block + (k + i) * p.width + c));
        }
        transpose8(r);
        for (int i = 0; i < 8; ++i) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.rows[c + i] + k * 4), r[i]);
        }
      }
    }
    for (int i = c; i < c + 8 && i < p.valid; ++i) {
      int64_t word = k;
      for (; word < whole; ++word) memcpy(p.rows[i] + word * 4, p.block + word * p.width + i, 4);
      if (word * 4 < p.inner * p.element) memcpy(p.rows[i] + word * 4, p.block + word * p.width + i, 2);
    }
  }
}

const Kernels* avx2_kernels() {
  static const Kernels kernels = generic_kernels("avx2");
  return &kernels;
}

}  // namespace tunebook
