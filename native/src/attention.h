// Attention around its matrix products: heads made ready, keys and values appended, and one token's query against them.
#pragma once

#include "attention_kernels.h"
#include "tactic.h"

namespace tunebook {

// How one projection becomes heads; see HeadRow.
struct Projection {
  int heads = 0;
  const float* norm = nullptr;
  float eps = 0.0f;
  bool turned = false;
};

// The three projections of a layer: `packed` holds their columns beside each other.
struct HeadsCall {
  const void* packed;  // [batch * tokens, columns of q, of k and of v]
  int64_t batch, tokens;
  Projection projection[3];
  int dim;
  bool whole;
  float clip;
  const void* cos;  // [batch or 1, tokens, dim]
  const void* sin;
  bool positions_differ;  // cos and sin have a batch of their own
  Dtype angle_dtype;
  void* out[3];  // [batch, heads, tokens, dim] each
  Dtype dtype;
};

void heads(const HeadsCall& call, const Kernels& kernels, int threads, Backend backend);

// Copies new [count, tokens, row] to old [count, capacity, row] from row `at` on.
struct AppendCall {
  const void* from;
  void* to;
  int64_t count, tokens, capacity, at, row_bytes;
};

void append(const AppendCall& call);

struct AttendCall {
  const void* q;  // [batch, heads, 1, dim]
  const void* k;  // [batch, kv_heads, capacity, dim], the first `keys` of which count
  const void* v;
  int64_t batch, heads, kv_heads, dim, capacity, keys;
  float scale;
  const void* mask;  // [batch or 1, keys]
  bool masks_differ;
  Mask mask_kind;
  void* out;  // [batch, heads * dim]
  Dtype dtype;
};

void attend(const AttendCall& call, const Kernels& kernels, int threads, Backend backend);

}  // namespace tunebook
