// `V` of generic.h for AVX-512 (F, BW, DQ, VL); with AVX-512-BF16 its conversion to bf16 is one instruction.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace tunebook {
namespace {

struct V {
  using reg = __m512;
  static constexpr int width = 16;
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static reg load(const float* p) { return _mm512_loadu_ps(p); }
  static reg load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static reg load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static reg even(const uint32_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
  static reg odd(const uint32_t* p) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
  }
  static void store(float* p, reg v) { _mm512_storeu_ps(p, v); }
  static void store_some(float* p, reg v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static __m256i bf16(reg v) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
  }
  static void store_bf16_some(uint16_t* p, reg v, int n) { _mm256_mask_storeu_epi16(p, first(n), bf16(v)); }
  static reg set1(float x) { return _mm512_set1_ps(x); }
  static reg fmadd(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
  static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
  static reg sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
  static reg div(reg a, reg b) { return _mm512_div_ps(a, b); }
  static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }  // b where one is NaN
  static reg min(reg a, reg b) { return _mm512_min_ps(a, b); }
  static reg abs(reg a) { return _mm512_abs_ps(a); }
  static reg copysign(reg size, reg sign) { return _mm512_or_ps(size, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f))); }
  static reg round(reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static reg scale_by_power(reg y, reg n) { return _mm512_scalef_ps(y, n); }
  static void use(reg& a) { __asm__ volatile("" : "+v"(a)); }  // the optimiser must not know the value
  static float sum(reg a) { return _mm512_reduce_add_ps(a); }
};

}  // namespace
}  // namespace tunebook
