// What attention needs of an instruction set: heads of the projections made ready, and a few queries against many keys.
//
// As in kernels.h, nothing of the C++ library here.
#pragma once

#include "kernels.h"

namespace tunebook {

// One token's heads of one projection: normalised, clipped and turned, in this order and each only where asked for.
//
// All of it is computed in fp32 and rounded once, at the end.
struct HeadRow {
  const void* from;     // [heads * dim]
  int heads, dim;       // dim is even where heads are turned
  const float* weight;  // of an RMS norm: [dim], or [heads * dim] where it is `whole`; null: none
  bool whole;           // the norm is over all heads together, not over each
  float eps;
  float clip;           // values are clipped to -clip..clip; 0: they are not
  const float* cos;     // [dim] each, of the token's position; null: heads are not turned
  const float* sin;
  float* scratch;       // [heads * dim]
  void* to;             // [heads][dim]
  ptrdiff_t stride;     // elements from head to head of `to`
  Dtype dtype;          // of `from` and `to`
};

// `allowed`: a byte for each key, 0: it is not seen. The others are added to the scores.
enum class Mask : int { none, allowed, bf16, f32 };

// `group` queries that share a head's keys and values, against some of them: a softmax that is not divided yet.
struct AttendPart {
  const void* q;  // [group][dim]
  ptrdiff_t q_stride;
  int group, dim;
  const void* k;  // [keys][dim]
  const void* v;
  ptrdiff_t k_stride, v_stride;  // elements
  int64_t keys;
  float scale;
  const void* mask;  // [keys], of the first of them
  Mask mask_kind;
  Dtype dtype;
  const void* next_k;  // rows that are wanted after these, to be fetched meanwhile; null: none
  float* scratch;      // attend_scratch(group, dim)
  float* most;         // [group]: the greatest score
  float* total;        // [group]: sum of exp(score - most)
  float* sum;          // [group][dim]: sum of exp(score - most) * v
};

// Keys that are scored before their values are added.
constexpr int kKeyBlock = 64;

static constexpr int64_t padded_dim(int dim) { return (dim + 15) / 16 * 16; }
// Floats.
static constexpr int64_t attend_scratch(int group, int dim) { return group * (padded_dim(dim) + kKeyBlock); }

// to[group][dim] from `parts` results over different keys; zeros where no key was seen.
struct AttendMerge {
  int parts, group, dim;
  const float* most;   // [parts][group]
  const float* total;  // [parts][group]
  float* sum;          // [parts][group][dim]; the first part is overwritten
  void* to;
  Dtype dtype;
};

struct AttentionKernels {
  void (*head_row)(const HeadRow&);
  void (*attend)(const AttendPart&);
  void (*merge)(const AttendMerge&);
};

}  // namespace tunebook
