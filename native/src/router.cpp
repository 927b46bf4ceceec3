#include "linear.h"
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

namespace tunebook {
namespace {

// Logits of so many tokens and experts are worth more than one thread's choosing.
constexpr int64_t kShared = 4096;

using Entry = std::pair<float, int64_t>;

// The `choices` greatest first, in falling order. Which of several equal values are chosen, and in which order, torch.topk
// leaves open; these are the calls that PyTorch's implementation for the CPU makes, so that it is the same there and here.
template <typename Greater>
void choose(std::vector<Entry>& entries, int64_t choices, Greater greater) {
  const auto first = entries.begin(), last = entries.end();
  if (choices * 64 <= static_cast<int64_t>(entries.size())) {
    std::partial_sort(first, first + choices, last, greater);
  } else {
    std::nth_element(first, first + choices - 1, last, greater);
    std::sort(first, first + choices - 1, greater);
  }
}

void choose(std::vector<Entry>& entries, int64_t choices) {
  const auto is_nan = [](const Entry& entry) { return std::isnan(entry.first); };
  if (std::any_of(entries.begin(), entries.end(), is_nan)) {  // NaN counts as the greatest
    choose(entries, choices, [&](const Entry& one, const Entry& other) {
      return (is_nan(one) && !is_nan(other)) || one.first > other.first;
    });
  } else {
    choose(entries, choices, [](const Entry& one, const Entry& other) { return one.first > other.first; });
  }
}

// Logits of one token to its choices.
class Chooser {
 public:
  Chooser(const RouterCall& call, const Kernels& kernels)
      : call_(call), kernels_(kernels), entries_(static_cast<size_t>(call.experts)),
        values_(static_cast<size_t>(call.experts)) {}

  void operator()(int64_t token, const void* logits) {
    const auto count = static_cast<size_t>(call_.experts), chosen = static_cast<size_t>(call_.choices);
    float* values = values_.data();
    if (call_.dtype == Dtype::bf16) {
      kernels_.to_f32(static_cast<const uint16_t*>(logits), values, call_.experts);
    } else {
      std::memcpy(values, logits, count * 4);
    }
    if (call_.logits_dtype != call_.dtype) {
      std::memcpy(static_cast<float*>(call_.logits) + token * call_.experts, values, count * 4);
    }
    if (call_.scoring != Scoring::chosen) kernels_.rows_of->softmax(values, call_.experts);
    for (size_t i = 0; i < count; ++i) entries_[i] = {values[i], static_cast<int64_t>(i)};
    choose(entries_, call_.choices);
    float sum = 0.0f;
    for (size_t i = 0; i < chosen; ++i) {
      values[i] = entries_[i].first;
      sum += values[i];
      call_.index[token * call_.choices + static_cast<int64_t>(i)] = entries_[i].second;
    }
    if (call_.scoring == Scoring::chosen) kernels_.rows_of->softmax(values, call_.choices);
    if (call_.scoring == Scoring::all_renormalised) {
      for (size_t i = 0; i < chosen; ++i) values[i] /= sum;
    }
    if (call_.scores_dtype == Dtype::bf16) {
      kernels_.to_bf16(values, static_cast<uint16_t*>(call_.scores) + token * call_.choices, call_.choices);
    } else {
      std::memcpy(static_cast<float*>(call_.scores) + token * call_.choices, values, chosen * 4);
    }
  }

 private:
  const RouterCall& call_;
  const Kernels& kernels_;
  std::vector<Entry> entries_;
  std::vector<float> values_;
};

}  // namespace

void router(const RouterCall& call, const Kernels& kernels, int threads) {
  if (call.tokens == 0 || call.experts == 0) return;
  std::vector<char> rounded;
  void* logits = call.logits;
  if (call.logits_dtype != call.dtype) {
    rounded.resize(static_cast<size_t>(call.tokens * call.experts) * static_cast<size_t>(element_of(call.dtype)));
    logits = rounded.data();
  }
  Tactic tactic;
  tactic.kernels = &kernels;
  tactic.dot = call.dot;
  tactic.row_tile = kMaxRows;
  tactic.threads = threads;
  const Weights weight(call.weight, 1, call.experts, call.inner, call.dtype, false);
  linear(weight, {call.x, call.tokens, nullptr, logits, call.dtype, Dtype::f32}, tactic);

  const auto work = [&](int id, int count) {
    Chooser chooser(call, kernels);
    const int64_t share = (call.tokens + count - 1) / count;
    const int64_t end = std::min<int64_t>((id + 1) * share, call.tokens);
    for (int64_t token = id * share; token < end; ++token) {
      chooser(token, static_cast<const char*>(logits) + token * call.experts * element_of(call.dtype));
    }
  };
  if (threads > 1 && call.tokens > 1 && call.tokens * call.experts >= kShared) {
    parallel(static_cast<int>(std::min<int64_t>(threads, call.tokens)), Backend::automatic, [&](int id, int count) { work(id, count); });
  } else {
    work(0, 1);
  }
}

}  // namespace tunebook
