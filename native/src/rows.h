// Work on single rows of activations: what lies between the matrix products of a step.
#pragma once

#include <stdint.h>

#include "kernels.h"

namespace tunebook {

// What one instruction set offers for a row of `count` elements. x, residual, weight and `to` are of one dtype; `to` may be
// one of the inputs. fp32 inside; what PyTorch rounds to bf16 between two of its operations is rounded here too.
struct RowKernels {
  // to = weight * (x / sqrt(mean(x^2) + epsilon)), the quotient rounded before the product
  void (*rms_norm)(const void* x, const void* weight, float epsilon, int64_t count, void* to, Dtype);
  // to = residual + x * multiplier, the product rounded before the sum
  void (*residual_add)(const void* x, float multiplier, const void* residual, int64_t count, void* to, Dtype);
  // Softmax in place.
  void (*softmax)(float* values, int64_t count);
};

struct NormCall {
  const void* x;         // [rows, inner], contiguous
  const void* residual;  // [rows, inner] or null: the norm is of x itself
  float multiplier;
  const void* weight;  // [inner] or null: the sum alone
  float epsilon;
  int64_t rows, inner;
  void* sum;     // [rows, inner]; not used where there is no residual
  void* normed;  // [rows, inner]; not used where there is no weight
  Dtype dtype;
};

// sum = residual + x * multiplier, normed = rms_norm(sum). Rows are split over at most `threads`.
void add_rms_norm(const NormCall& call, const RowKernels& kernels, int threads);

enum class Scoring : int {
  chosen,            // the k greatest logits, softmax over them
  all,               // softmax over all, the k greatest of it
  all_renormalised,  // and those divided by their sum
};

struct RouterCall {
  const void* x;       // [tokens, inner], contiguous
  const void* weight;  // [experts, inner], contiguous
  int64_t tokens, experts, inner, choices;
  Scoring scoring;
  bool dot;            // dot products along the weight; else tiles, which read it less often for many tokens
  Dtype dtype;         // of x and weight; the logits are rounded to it
  void* logits;        // [tokens, experts]
  Dtype logits_dtype;  // `dtype` or fp32
  void* scores;        // [tokens, choices]
  Dtype scores_dtype;
  int64_t* index;  // [tokens, choices]
};

// Logits = x times weight transposed; of each token the `choices` greatest, in falling order, and their scores.
void router(const RouterCall& call, const Kernels& kernels, int threads);

}  // namespace tunebook
