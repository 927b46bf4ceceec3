#include "routing.h"

#include <algorithm>

namespace tunebook {
namespace {

float score_at(const ExpertsCall& call, int64_t pair) {
  if (call.scores_dtype == Dtype::f32) return static_cast<const float*>(call.scores)[pair];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(call.scores)[pair]) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

Routing::Routing(const ExpertsCall& call, int64_t experts, bool by_token) {
  const int64_t all = call.tokens * call.choices;
  std::vector<int64_t> start(static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < all; ++i) {
    if (call.index[i] < experts) ++start[static_cast<size_t>(call.index[i]) + 1];
  }
  for (int64_t e = 0; e < experts; ++e) {
    int64_t first = start[static_cast<size_t>(e)];
    const int64_t last = first + start[static_cast<size_t>(e) + 1];
    start[static_cast<size_t>(e) + 1] = last;
    for (; first < last; first += kRowChunk) segments.push_back({e, first, std::min(kRowChunk, last - first)});
  }
  pairs = start.back();
  token.resize(static_cast<size_t>(pairs));
  scale.resize(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < all; ++i) {
    if (call.index[i] >= experts) continue;
    const auto pair = static_cast<size_t>(start[static_cast<size_t>(call.index[i])]++);
    token[pair] = static_cast<int32_t>(i / call.choices);
    scale[pair] = score_at(call, i);
  }
  if (!by_token) return;
  of_token.resize(static_cast<size_t>(all));
  choices.assign(static_cast<size_t>(call.tokens), 0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto row = static_cast<size_t>(token[static_cast<size_t>(pair)]);
    of_token[row * static_cast<size_t>(call.choices) + static_cast<size_t>(choices[row]++)] =
        static_cast<int32_t>(pair);
  }
}

}  // namespace tunebook
