// Activations and the gate of AVX2 and AVX-512, written against the struct `V` of the including unit; internal linkage.
#pragma once

#include "kernels.h"

namespace tunebook {
namespace {

// exp to about 1 ulp: Cody-Waite reduction and the polynomial of Cephes' expf. NaN stays NaN; the argument is clamped.
inline V::reg exp_of(V::reg x) {
  x = V::max(V::set1(-87.33654f), V::min(V::set1(88.37626f), x));
  const V::reg n = V::round(V::mul(x, V::set1(1.44269504088896341f)));
  x = V::fmadd(n, V::set1(-0.693359375f), x);
  x = V::fmadd(n, V::set1(2.12194440e-4f), x);
  V::reg y = V::set1(1.9875691500e-4f);
  y = V::fmadd(y, x, V::set1(1.3981999507e-3f));
  y = V::fmadd(y, x, V::set1(8.3334519073e-3f));
  y = V::fmadd(y, x, V::set1(4.1665795894e-2f));
  y = V::fmadd(y, x, V::set1(1.6666665459e-1f));
  y = V::fmadd(y, x, V::set1(5.0000001201e-1f));
  y = V::add(V::fmadd(y, V::mul(x, x), x), V::set1(1.0f));
  return V::scale_by_power(y, n);
}

inline V::reg sigmoid_of(V::reg x) {
  const V::reg one = V::set1(1.0f);
  return V::div(one, V::add(one, exp_of(V::sub(V::set1(0.0f), x))));
}

// tanh = 1 - 2 / (exp(2x) + 1): absolute error about 1e-7.
inline V::reg tanh_of(V::reg x) {
  const V::reg one = V::set1(1.0f);
  return V::sub(one, V::div(V::set1(2.0f), V::add(one, exp_of(V::add(x, x)))));
}

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
inline V::reg erf_of(V::reg x) {
  const V::reg one = V::set1(1.0f);
  const V::reg size = V::abs(x);
  const V::reg t = V::div(one, V::fmadd(V::set1(0.3275911f), size, one));
  V::reg y = V::set1(1.061405429f);
  y = V::fmadd(y, t, V::set1(-1.453152027f));
  y = V::fmadd(y, t, V::set1(1.421413741f));
  y = V::fmadd(y, t, V::set1(-0.284496736f));
  y = V::fmadd(y, t, V::set1(0.254829592f));
  y = V::mul(V::mul(y, t), exp_of(V::sub(V::set1(0.0f), V::mul(x, x))));
  return V::copysign(V::sub(one, y), x);
}

template <Activation A>
inline V::reg act(V::reg x) {
  if constexpr (A == Activation::silu) return V::mul(x, sigmoid_of(x));
  if constexpr (A == Activation::gelu) {
    const V::reg half = V::mul(x, V::set1(0.5f));
    return V::fmadd(half, erf_of(V::mul(x, V::set1(0.70710678118654752f))), half);
  }
  if constexpr (A == Activation::gelu_tanh) {
    const V::reg half = V::mul(x, V::set1(0.5f));
    const V::reg cube = V::mul(V::mul(x, x), V::mul(x, V::set1(0.044715f)));
    return V::fmadd(half, tanh_of(V::mul(V::add(x, cube), V::set1(0.79788456080286536f))), half);
  }
  if constexpr (A == Activation::relu) return V::max(V::set1(0.0f), x);
  if constexpr (A == Activation::relu6) return V::min(V::set1(6.0f), V::max(V::set1(0.0f), x));
  if constexpr (A == Activation::sigmoid) return sigmoid_of(x);
  if constexpr (A == Activation::tanh) return tanh_of(x);
  if constexpr (A == Activation::hardswish) {
    const V::reg inner = V::min(V::set1(6.0f), V::max(V::set1(0.0f), V::add(x, V::set1(3.0f))));
    return V::mul(V::mul(x, inner), V::set1(1.0f / 6.0f));
  }
  if constexpr (A == Activation::mish) {  // x * tanh(log(1 + e^x)), the tanh written out; e^x is cut where it is 1
    const V::reg e = exp_of(V::min(V::set1(20.0f), x));
    const V::reg p = V::mul(e, V::add(e, V::set1(2.0f)));
    return V::mul(x, V::div(p, V::add(p, V::set1(2.0f))));
  }
}

template <Activation A>
void gate_rows(const float* c, int ldc, int rows, int half, void* to, ptrdiff_t ldt, Dtype dtype) {
  for (int r = 0; r < rows; ++r) {
    const float* row = c + static_cast<ptrdiff_t>(r) * ldc;
    for (int i = 0; i < half; i += V::width) {
      const int n = half - i < V::width ? half - i : V::width;
      const V::reg value = V::mul(act<A>(V::load_some(row + i, n)), V::load_some(row + half + i, n));
      if (dtype == Dtype::bf16) {
        V::store_bf16_some(static_cast<uint16_t*>(to) + r * ldt + i, value, n);
      } else {
        V::store_some(static_cast<float*>(to) + r * ldt + i, value, n);
      }
    }
  }
}

void gate(Activation which, const float* c, int ldc, int rows, int half, void* to, ptrdiff_t ldt, Dtype dtype) {
  switch (which) {
#define TUNEBOOK_CASE(NAME) \
  case Activation::NAME:    \
    return gate_rows<Activation::NAME>(c, ldc, rows, half, to, ldt, dtype)
    TUNEBOOK_CASE(silu);
    TUNEBOOK_CASE(gelu);
    TUNEBOOK_CASE(gelu_tanh);
    TUNEBOOK_CASE(relu);
    TUNEBOOK_CASE(relu6);
    TUNEBOOK_CASE(sigmoid);
    TUNEBOOK_CASE(tanh);
    TUNEBOOK_CASE(hardswish);
    TUNEBOOK_CASE(mish);
#undef TUNEBOOK_CASE
  }
}

}  // namespace
}  // namespace tunebook
