// Heads of the projections made ready, written against `V` as generic.h is, which includes this file.
#pragma once

#include "attention_kernels.h"

namespace tunebook {
namespace {

inline void store_as(Dtype dtype, void* to, int64_t at, V::reg value, int n) {
  if (dtype == Dtype::bf16) {
    V::store_bf16_some(static_cast<uint16_t*>(to) + at, value, n);
  } else {
    V::store_some(static_cast<float*>(to) + at, value, n);
  }
}

inline int some(int64_t left) { return left < V::width ? static_cast<int>(left) : V::width; }

// x = weight * x / sqrt(mean(x^2) + eps)
void normalise(float* x, const float* weight, int64_t count, float eps) {
  V::reg squares = V::set1(0.0f);
  for (int64_t i = 0; i < count; i += V::width) {
    const V::reg value = V::load_some(x + i, some(count - i));
    squares = V::fmadd(value, value, squares);
  }
  const V::reg factor = V::set1(1.0f / __builtin_sqrtf(V::sum(squares) / static_cast<float>(count) + eps));
  for (int64_t i = 0; i < count; i += V::width) {
    const int n = some(count - i);
    V::store_some(x + i, V::mul(V::mul(V::load_some(x + i, n), factor), V::load_some(weight + i, n)), n);
  }
}

// Each pair (i, i + dim/2) is turned by its angle.
void turn(const HeadRow& h, const float* x, int64_t at) {
  const int half = h.dim / 2;
  for (int i = 0; i < half; i += V::width) {
    const int n = some(half - i);
    const V::reg low = V::load_some(x + i, n), high = V::load_some(x + half + i, n);
    const V::reg minus = V::mul(high, V::load_some(h.sin + i, n));
    const V::reg plus = V::mul(low, V::load_some(h.sin + half + i, n));
    store_as(h.dtype, h.to, at + i, V::sub(V::mul(low, V::load_some(h.cos + i, n)), minus), n);
    store_as(h.dtype, h.to, at + half + i, V::fmadd(high, V::load_some(h.cos + half + i, n), plus), n);
  }
}

void head_row(const HeadRow& h) {
  const int64_t count = static_cast<int64_t>(h.heads) * h.dim;
  float* x = h.scratch;
  if (h.dtype == Dtype::bf16) {
    to_f32(static_cast<const uint16_t*>(h.from), x, count);
  } else {
    memcpy(x, h.from, static_cast<size_t>(count) * 4);
  }
  if (h.weight && h.whole) normalise(x, h.weight, count, h.eps);
  for (int head = 0; head < h.heads; ++head) {
    float* own = x + static_cast<int64_t>(head) * h.dim;
    const int64_t at = head * h.stride;
    if (h.weight && !h.whole) normalise(own, h.weight, h.dim, h.eps);
    if (h.clip > 0) {
      // The bound comes first: min and max give the second where one is NaN.
      for (int i = 0; i < h.dim; i += V::width) {
        const int n = some(h.dim - i);
        const V::reg value = V::max(V::set1(-h.clip), V::min(V::set1(h.clip), V::load_some(own + i, n)));
        V::store_some(own + i, value, n);
      }
    }
    if (h.cos) {
      turn(h, own, at);
    } else {
      for (int i = 0; i < h.dim; i += V::width) {
        const int n = some(h.dim - i);
        store_as(h.dtype, h.to, at + i, V::load_some(own + i, n), n);
      }
    }
  }
}

}  // namespace
}  // namespace tunebook
