// Queries against keys and values, written against `V` as generic.h is, which includes this file.
#pragma once

#include "attention_kernels.h"
#include "heads_generic.h"

namespace tunebook {
namespace {

template <bool Bf16>
inline V::reg load_row(const void* row, int64_t at, int64_t dim) {
  return at + V::width <= dim ? load_weight<Bf16>(row, at) : load_rest<Bf16>(row, at, dim);
}

template <bool Bf16>
inline const void* row_of(const void* rows, int64_t index, ptrdiff_t stride) {
  return static_cast<const char*>(rows) + index * stride * (Bf16 ? 2 : 4);
}

// Heads' rows lie apart, in streams too short for the processor to see them coming. Values are fetched one row a key
// while the keys are read, and the next keys one row a value.
template <bool Bf16>
inline void fetch(const void* row, int dim) {
  for (int byte = 0; byte < dim * (Bf16 ? 2 : 4); byte += 64) __builtin_prefetch(static_cast<const char*>(row) + byte);
}

// The sums of four vectors.
inline void sum_each(const V::reg (&a)[4], float* to) {
#ifdef __AVX512F__
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
  const __m512d one = _mm512_castps_pd(ab), two = _mm512_castps_pd(cd);
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(one, two)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(one, two)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
  const __m256 half = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
#endif
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// acc[j][g] += products of q[g] and k[first + j], J keys and G queries.
template <bool Bf16, int G, int J>
inline void multiply_keys(const AttendPart& p, int from, const float* q, int64_t first, V::reg (&acc)[J][G]) {
#ifdef __AVX512BF16__
  if constexpr (Bf16) {
    for (int d = 0; d < p.dim; d += 32) {
      const __mmask32 mask = p.dim - d < 32 ? (1u << (p.dim - d)) - 1 : 0xffffffffu;
      __m512bh query[G];
      for (int g = 0; g < G; ++g) {
        const uint16_t* own = static_cast<const uint16_t*>(p.q) + (from + g) * p.q_stride;
        query[g] = (__m512bh)_mm512_maskz_loadu_epi16(mask, own + d);
      }
      for (int j = 0; j < J; ++j) {
        const uint16_t* row = static_cast<const uint16_t*>(row_of<true>(p.k, first + j, p.k_stride));
        const __m512bh key = (__m512bh)_mm512_maskz_loadu_epi16(mask, row + d);
        for (int g = 0; g < G; ++g) acc[j][g] = _mm512_dpbf16_ps(acc[j][g], query[g], key);
      }
    }
    return;
  }
#endif
  (void)from;
  const int64_t width = padded_dim(p.dim);
  for (int64_t d = 0; d < p.dim; d += V::width) {
    for (int j = 0; j < J; ++j) {
      const V::reg key = load_row<Bf16>(row_of<Bf16>(p.k, first + j, p.k_stride), d, p.dim);
      for (int g = 0; g < G; ++g) acc[j][g] = V::fmadd(key, V::load(q + g * width + d), acc[j][g]);
    }
  }
}

// scores[g][j] = scale * q[from + g] . k[first + j], J keys at a time.
template <bool Bf16, int G, int J>
inline void score_some(const AttendPart& p, int from, const float* q, int64_t first, int at, bool fetching,
                       float* scores) {
  V::reg acc[J][G];
  for (int j = 0; j < J; ++j) {
    if (fetching) fetch<Bf16>(row_of<Bf16>(p.v, first + at + j, p.v_stride), p.dim);
    for (int g = 0; g < G; ++g) acc[j][g] = V::set1(0.0f);
  }
  multiply_keys<Bf16, G, J>(p, from, q, first + at, acc);
  float sums[J * G];
  if constexpr (J * G == 4) {
    const V::reg all[4] = {acc[0][0], acc[1 / G][1 % G], acc[2 / G][2 % G], acc[3 / G][3 % G]};
    sum_each(all, sums);
  } else {
    for (int i = 0; i < J * G; ++i) sums[i] = V::sum(acc[i / G][i % G]);
  }
  for (int i = 0; i < J * G; ++i) scores[i % G * kKeyBlock + at + i / G] = p.scale * sums[i];
}

template <bool Bf16, int G>
void score(const AttendPart& p, int from, const float* q, int64_t first, int count, float* scores) {
  int j = 0;
  for (; j + 4 / G <= count; j += 4 / G) score_some<Bf16, G, 4 / G>(p, from, q, first, j, from == 0, scores);
  for (; j < count; ++j) score_some<Bf16, G, 1>(p, from, q, first, j, from == 0, scores);
}

// sum[g] = sum[g] * keep[g] + weights[g] times the values; N vectors of columns from `at` on.
template <bool Bf16, bool Whole, int G, int N>
void add_values(const AttendPart& p, int64_t at, int64_t first, int count, const void* next, const float* weights,
                const float* keep, float* sum) {
  V::reg acc[G][N];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < N; ++i) {
      const int64_t d = at + i * V::width;
      acc[g][i] = V::mul(V::set1(keep[g]), V::load_some(sum + g * p.dim + d, some(p.dim - d)));
    }
  for (int j = 0; j < count; ++j) {
    if (next) fetch<Bf16>(row_of<Bf16>(next, j, p.k_stride), p.dim);
    const void* row = row_of<Bf16>(p.v, first + j, p.v_stride);
    V::reg value[N];
    for (int i = 0; i < N; ++i) {
      value[i] = Whole ? load_weight<Bf16>(row, at + i * V::width) : load_row<Bf16>(row, at + i * V::width, p.dim);
    }
    for (int g = 0; g < G; ++g) {
      const V::reg weight = V::set1(weights[g * kKeyBlock + j]);
      for (int i = 0; i < N; ++i) acc[g][i] = V::fmadd(weight, value[i], acc[g][i]);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < N; ++i) {
      const int64_t d = at + i * V::width;
      V::store_some(sum + g * p.dim + d, acc[g][i], some(p.dim - d));
    }
}

constexpr int kVectors = V::width == 8 ? 2 : 4;

template <bool Bf16, int G>
void add_all_values(const AttendPart& p, int64_t first, int count, const void* next, const float* weights,
                    const float* keep, float* sum) {
  int64_t d = 0;
  for (; d + kVectors * V::width <= p.dim; d += kVectors * V::width) {
    add_values<Bf16, true, G, kVectors>(p, d, first, count, d ? nullptr : next, weights, keep, sum);
  }
  for (; d < p.dim; d += V::width) {
    add_values<Bf16, false, G, 1>(p, d, first, count, d ? nullptr : next, weights, keep, sum);
  }
}

inline float mask_of(const AttendPart& p, int64_t key) {
  if (p.mask_kind == Mask::allowed) {
    return static_cast<const uint8_t*>(p.mask)[key] ? 0.0f : -__builtin_inff();
  }
  if (p.mask_kind == Mask::f32) return static_cast<const float*>(p.mask)[key];
  const uint32_t word = static_cast<uint32_t>(static_cast<const uint16_t*>(p.mask)[key]) << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

inline float exp_one(float x) {
  float out[V::width];
  V::store(out, exp_of(V::set1(x)));
  return out[0];
}

// Scores become weights against the new greatest score; returns what the sums so far are to be multiplied with.
inline float soften(float* scores, int count, bool masked, float* most, float* total) {
  constexpr float never = -__builtin_inff();
  const int whole = (count + V::width - 1) / V::width * V::width;
  for (int j = count; j < whole; ++j) scores[j] = never;
  V::reg most_of = V::set1(*most);
  // A score that is NaN is passed over here; its weight will be NaN.
  for (int j = 0; j < whole; j += V::width) most_of = V::max(V::load(scores + j), most_of);
  float lanes[V::width];
  V::store(lanes, most_of);
  float greatest = lanes[0];
  for (float lane : lanes) greatest = lane > greatest ? lane : greatest;
  if (greatest == never) {  // nothing is seen yet, unless a score is NaN
    bool odd = false;
    for (int j = 0; j < count; ++j) {
      odd = odd || scores[j] != scores[j];
      scores[j] = scores[j] != scores[j] ? scores[j] : 0.0f;
    }
    if (odd) *total = __builtin_nanf("");
    return 1.0f;
  }
  const float keep = *most == never ? 0.0f : exp_one(*most - greatest);
  V::reg sum = V::set1(0.0f);
  float weights[kKeyBlock];
  for (int j = 0; j < whole; j += V::width) {
    V::store(weights + j, exp_of(V::sub(V::load(scores + j), V::set1(greatest))));
  }
  // exp_of ends at its least argument instead of reaching zero.
  for (int j = masked ? 0 : count; j < whole; ++j) weights[j] = scores[j] == never ? 0.0f : weights[j];
  for (int j = 0; j < whole; j += V::width) {
    const V::reg value = V::load(weights + j);
    sum = V::add(sum, value);
    V::store(scores + j, value);
  }
  *most = greatest;
  *total = *total * keep + V::sum(sum);
  return keep;
}

// `next`: the keys after this block, where nobody else fetches them.
template <bool Bf16, int G>
void attend_block(const AttendPart& p, int from, int64_t first, int count, const void* next, float* q, float* scores) {
  score<Bf16, G>(p, from, q, first, count, scores);
  float keep[G];
  if (p.mask_kind != Mask::none) {
    for (int j = 0; j < count; ++j) {
      const float added = mask_of(p, first + j);
      for (int g = 0; g < G; ++g) scores[g * kKeyBlock + j] += added;
    }
  }
  for (int g = 0; g < G; ++g) {
    keep[g] = soften(scores + g * kKeyBlock, count, p.mask_kind != Mask::none, p.most + from + g, p.total + from + g);
  }
  add_all_values<Bf16, G>(p, first, count, next, scores, keep, p.sum + static_cast<int64_t>(from) * p.dim);
}

template <int N>
struct Queries {
  static constexpr int count = N;
};

template <bool Bf16>
void attend_keys(const AttendPart& p) {
  const int64_t width = padded_dim(p.dim);
  float* q = p.scratch;
  float* scores = q + p.group * width;
  for (int g = 0; g < p.group; ++g) {
    p.most[g] = -__builtin_inff();
    p.total[g] = 0.0f;
#ifdef __AVX512BF16__
    if constexpr (Bf16) continue;  // read where they are
#endif
    float* own = q + g * width;
    memset(own, 0, static_cast<size_t>(width) * 4);
    const void* row = row_of<Bf16>(p.q, g, p.q_stride);
    if constexpr (Bf16) {
      to_f32(static_cast<const uint16_t*>(row), own, p.dim);
    } else {
      memcpy(own, row, static_cast<size_t>(p.dim) * 4);
    }
  }
  memset(p.sum, 0, static_cast<size_t>(p.group) * static_cast<size_t>(p.dim) * 4);
  for (int64_t first = 0; first < p.keys; first += kKeyBlock) {
    const int count = p.keys - first < kKeyBlock ? static_cast<int>(p.keys - first) : kKeyBlock;
    const void* next = first + count < p.keys ? row_of<Bf16>(p.k, first + count, p.k_stride) : p.next_k;
    const auto step = [&](auto tile, int g) {
      constexpr int queries = decltype(tile)::count;
      attend_block<Bf16, queries>(p, g, first, count, g ? nullptr : next, q + g * width, scores + g * kKeyBlock);
      return g + queries;
    };
    int g = 0;
    while (g + 4 <= p.group) g = step(Queries<4>(), g);
    while (g + 2 <= p.group) g = step(Queries<2>(), g);
    while (g < p.group) g = step(Queries<1>(), g);
  }
}

void attend_part(const AttendPart& p) { p.dtype == Dtype::bf16 ? attend_keys<true>(p) : attend_keys<false>(p); }

void merge_parts(const AttendMerge& m) {
  for (int g = 0; g < m.group; ++g) {
    float greatest = m.most[g];
    for (int part = 1; part < m.parts; ++part) {
      const float other = m.most[part * m.group + g];
      greatest = other > greatest ? other : greatest;
    }
    float total = 0.0f;
    float* sum = m.sum + static_cast<int64_t>(g) * m.dim;
    for (int part = 0; part < m.parts; ++part) {
      const int64_t at = static_cast<int64_t>(part) * m.group + g;
      const float own = m.most[at];
      const float scale = own == greatest ? 1.0f : own == -__builtin_inff() ? 0.0f : exp_one(own - greatest);
      total += scale * m.total[at];
      if (part == 0 && scale == 1.0f) continue;
      const V::reg factor = V::set1(scale), keep = V::set1(part == 0 ? 0.0f : 1.0f);
      for (int d = 0; d < m.dim; d += V::width) {
        const int n = some(m.dim - d);
        const V::reg value = V::mul(factor, V::load_some(m.sum + at * m.dim + d, n));
        V::store_some(sum + d, V::fmadd(keep, V::load_some(sum + d, n), value), n);
      }
    }
    const V::reg factor = V::set1(total == 0.0f ? 0.0f : 1.0f / total);
    for (int d = 0; d < m.dim; d += V::width) {
      const int n = some(m.dim - d);
      store_as(m.dtype, m.to, static_cast<int64_t>(g) * m.dim + d, V::mul(V::load_some(sum + d, n), factor), n);
    }
  }
}

constexpr AttentionKernels kAttention = {head_row, attend_part, merge_parts};

}  // namespace
}  // namespace tunebook
