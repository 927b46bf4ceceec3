// The row kernels that AVX2 and AVX-512 share, written against `V`; included by generic.h, whose helpers they use.
#pragma once

#include "rows.h"

namespace tunebook {
namespace {

template <bool Bf16>
inline void store_row(void* row, int64_t at, V::reg value, int count) {
  if constexpr (Bf16) {
    V::store_bf16_some(static_cast<uint16_t*>(row) + at, value, count);
  } else {
    V::store_some(static_cast<float*>(row) + at, value, count);
  }
}

// The value after a round trip through the row's dtype. Of fp32 too, the compiler must not join the product with the sum
// that follows: that would round once instead of twice.
template <bool Bf16>
inline V::reg rounded(V::reg value) {
  if constexpr (Bf16) {
    alignas(64) uint16_t half[V::width];
    V::store_bf16_some(half, value, V::width);
    return V::load_bf16(half);
  }
  V::use(value);
  return value;
}

// Calls body(position, elements, whole) for each vector of a row; only the last may be less than whole.
template <typename Body>
inline __attribute__((always_inline)) void each_vector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) body(i, V::width, true);
  if (i < count) body(i, static_cast<int>(count - i), false);
}

template <bool Bf16>
inline V::reg load_part(const void* row, int64_t at, int64_t count, bool whole) {
  return whole ? load_weight<Bf16>(row, at) : load_rest<Bf16>(row, at, count);
}

template <bool Bf16>
void rms_norm_row(const void* x, const void* weight, float epsilon, int64_t count, void* to) {
  V::reg sums[4] = {V::set1(0.0f), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
  int64_t i = 0;
  for (; i + 4 * V::width <= count; i += 4 * V::width) {
    for (int u = 0; u < 4; ++u) {
      const V::reg value = load_weight<Bf16>(x, i + u * V::width);
      sums[u] = V::fmadd(value, value, sums[u]);
    }
  }
  for (; i < count; i += V::width) {
    const V::reg value = load_part<Bf16>(x, i, count, i + V::width <= count);
    sums[0] = V::fmadd(value, value, sums[0]);
  }
  const float square = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
  const V::reg scale = V::set1(1.0f / __builtin_sqrtf(square / static_cast<float>(count) + epsilon));
  each_vector(count, [&](int64_t at, int n, bool whole) __attribute__((always_inline)) {
    const V::reg normed = rounded<Bf16>(V::mul(load_part<Bf16>(x, at, count, whole), scale));
    store_row<Bf16>(to, at, V::mul(load_part<Bf16>(weight, at, count, whole), normed), n);
  });
}

template <bool Bf16>
void residual_add_row(const void* x, float multiplier, const void* residual, int64_t count, void* to) {
  const V::reg scale = V::set1(multiplier);
  each_vector(count, [&](int64_t at, int n, bool whole) __attribute__((always_inline)) {
    const V::reg scaled = rounded<Bf16>(V::mul(load_part<Bf16>(x, at, count, whole), scale));
    store_row<Bf16>(to, at, V::add(load_part<Bf16>(residual, at, count, whole), scaled), n);
  });
}

void rms_norm(const void* x, const void* weight, float epsilon, int64_t count, void* to, Dtype dtype) {
  (dtype == Dtype::bf16 ? rms_norm_row<true> : rms_norm_row<false>)(x, weight, epsilon, count, to);
}

void residual_add(const void* x, float multiplier, const void* residual, int64_t count, void* to, Dtype dtype) {
  (dtype == Dtype::bf16 ? residual_add_row<true> : residual_add_row<false>)(x, multiplier, residual, count, to);
}

// A NaN among the values makes all of them NaN, as in PyTorch.
void softmax(float* values, int64_t count) {
  if (count == 0) return;
  float most = values[0];
  for (int64_t i = 1; i < count; ++i) most = values[i] > most ? values[i] : most;
  const V::reg shift = V::set1(most);
  float sum = 0.0f;
  each_vector(count, [&](int64_t at, int n, bool whole) __attribute__((always_inline)) {
    V::store_some(values + at, exp_of(V::sub(load_part<false>(values, at, count, whole), shift)), n);
  });
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  const V::reg total = V::set1(sum);
  each_vector(count, [&](int64_t at, int n, bool whole) __attribute__((always_inline)) {
    V::store_some(values + at, V::div(load_part<false>(values, at, count, whole), total), n);
  });
}

constexpr RowKernels kRowKernels = {rms_norm, residual_add, softmax};

}  // namespace
}  // namespace tunebook
