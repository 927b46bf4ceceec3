#include "experts.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>

#include "experts_plan.h"
#include "routing.h"

namespace tunebook {
namespace {

// Elements below which the calling thread fills the panel alone: starting threads for it and meeting again costs more.
constexpr int64_t kSerialFill = 32768;
// Rows that a thread gathers at a time.
constexpr int64_t kFillRows = 8;

// One call, or the part of it that one thread computes alone.
//
// The pairs (token, choice) that have an expert are ordered by expert, then token, then choice. Every sum runs in that
// order, whatever the split, the threads and the tiles are: equal inputs give equal bits.
class Job {
 public:
  Job(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic, int threads);
  // Work of thread `id` of `count`; all of them at once.
  void work(int id, int count);

 private:
  void fill(int64_t pair);
  void gate_up(int id);
  void down_by_columns(int id);
  void down_by_experts(int id);
  void sum_tokens(int id);
  char* scratch(int id) { return memory_ + plan_.scratch_at + static_cast<size_t>(id) * plan_.scratch_bytes; }
  char* row(size_t at, int64_t pair, int64_t stride) {
    return memory_ + at + static_cast<size_t>(pair * stride) * plan_.size;
  }
  char* panel(int64_t pair) { return row(plan_.panel_at, pair, plan_.panel_stride); }
  char* hidden(int64_t pair) { return row(plan_.hidden_at, pair, plan_.hidden_stride); }
  float* sums(int id) {
    return reinterpret_cast<float*>(memory_ + plan_.sums_at + static_cast<size_t>(id) * plan_.sums_bytes);
  }

  const Weights& gate_up_;
  const Weights& down_;
  const ExpertsCall& call_;
  const Tactic& tactic_;
  const Kernels& kernels_;
  const Routing routing_;
  const ExpertsPlan plan_;
  char* const memory_;
  bool fill_first_;
  Queue fills_, ups_, downs_, tokens_;
  Barrier barrier_;
};

Job::Job(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic, int threads)
    : gate_up_(gate_up),
      down_(down),
      call_(call),
      tactic_(tactic),
      kernels_(*tactic.kernels),
      routing_(call, gate_up.count(), tactic.split == Split::experts),
      plan_(gate_up, down, call.tokens, routing_.pairs, call.dtype, tactic, threads),
      memory_(Arena::reserve(plan_.total)) {
  const auto segments = static_cast<int64_t>(routing_.segments.size());
  const auto groups = [](int blocks, int group) { return (blocks + group - 1) / group; };
  fills_.deal((routing_.pairs + kFillRows - 1) / kFillRows, threads);
  ups_.deal(segments * groups(gate_up_.blocks(), plan_.up_group), threads);
  downs_.deal((tactic.split == Split::experts ? segments : 1) * groups(down_.blocks(), plan_.down_group), threads);
  tokens_.deal(call.tokens, threads);
  fill_first_ = routing_.pairs * gate_up_.inner() <= kSerialFill;
  if (fill_first_) {
    for (int64_t pair = 0; pair < routing_.pairs; ++pair) fill(pair);
  }
}

void Job::fill(int64_t pair) {
  const int64_t inner = gate_up_.inner();
  const int64_t token = routing_.token[static_cast<size_t>(pair)];
  const char* from = static_cast<const char*>(call_.x) + token * inner * element_of(call_.dtype);
  to_panel(kernels_, from, call_.dtype, panel(pair),
           plan_.panel_dtype, inner, plan_.panel_stride - kDepth);
}

void Job::work(int id, int count) {
  if (!fill_first_) {
    for (int64_t task; (task = fills_.take(id)) >= 0;) {
      for (int64_t pair = task * kFillRows; pair < std::min((task + 1) * kFillRows, routing_.pairs); ++pair) fill(pair);
    }
    barrier_.wait(count);
  }
  kernels_.enter();
  gate_up(id);
  barrier_.wait(count);
  if (tactic_.split == Split::experts) {
    down_by_experts(id);
    kernels_.leave();
    barrier_.wait(count);
    sum_tokens(id);
  } else {
    down_by_columns(id);
    kernels_.leave();
  }
}

void Job::gate_up(int id) {
  BlockProduct multiplier(gate_up_, tactic_, plan_.product, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = gate_up_.blocks(), block = gate_up_.block();
  const int64_t groups = (blocks + plan_.up_group - 1) / plan_.up_group;
  for (int64_t task; (task = ups_.take(id)) >= 0;) {
    const Segment& segment = routing_.segments[static_cast<size_t>(task / groups)];
    const int from = static_cast<int>(task % groups) * plan_.up_group;
    const int passes = static_cast<int>((segment.rows + most - 1) / most);
    for (int index = from; index < std::min(from + plan_.up_group, blocks); ++index) {
      multiplier.select(segment.expert, index);
      for (int pass = 0; pass < passes; ++pass) {
        const int64_t pair = segment.first + pass * most;
        const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
        multiplier.multiply(panel(pair), plan_.panel_stride, rows, pass, passes, c);
        kernels_.gate(call_.activation, c, block, rows, block / 2,
                      hidden(pair) + static_cast<size_t>(gate_up_.first_column(index)) * plan_.size,
                      plan_.hidden_stride,
                      plan_.panel_dtype);
      }
    }
  }
}

void Job::down_by_columns(int id) {
  BlockProduct multiplier(down_, tactic_, plan_.product, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = down_.blocks(), block = down_.block();
  const int64_t width = static_cast<int64_t>(plan_.down_group) * block;
  float* sum = sums(id);
  for (int64_t task; (task = downs_.take(id)) >= 0;) {
    const int from = static_cast<int>(task) * plan_.down_group, to = std::min(from + plan_.down_group, blocks);
    std::fill_n(sum, call_.tokens * width, 0.0f);
    for (const Segment& segment : routing_.segments) {
      const int passes = static_cast<int>((segment.rows + most - 1) / most);
      for (int index = from; index < to; ++index) {
        multiplier.select(segment.expert, index);
        for (int pass = 0; pass < passes; ++pass) {
          const int64_t pair = segment.first + pass * most;
          const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
          multiplier.multiply(hidden(pair), plan_.hidden_stride, rows, pass, passes, c);
          kernels_.scatter(c, block, rows, block, routing_.scale.data() + pair, routing_.token.data() + pair,
                           sum + static_cast<int64_t>(index - from) * block, width);
        }
      }
    }
    const int64_t column = down_.first_column(from);
    const int columns = static_cast<int>(std::min(width, down_.rows() - column));
    kernels_.store(sum, static_cast<int>(width), static_cast<int>(call_.tokens), columns, nullptr,
                   static_cast<char*>(call_.out) + column * element_of(call_.dtype), down_.rows(), call_.dtype);
  }
}

void Job::down_by_experts(int id) {
  BlockProduct multiplier(down_, tactic_, plan_.product, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = down_.blocks(), block = down_.block();
  const int64_t groups = (blocks + plan_.down_group - 1) / plan_.down_group;
  auto* output = reinterpret_cast<float*>(memory_ + plan_.output_at);
  for (int64_t task; (task = downs_.take(id)) >= 0;) {
    const Segment& segment = routing_.segments[static_cast<size_t>(task / groups)];
    const int from = static_cast<int>(task % groups) * plan_.down_group;
    const int passes = static_cast<int>((segment.rows + most - 1) / most);
    for (int index = from; index < std::min(from + plan_.down_group, blocks); ++index) {
      multiplier.select(segment.expert, index);
      for (int pass = 0; pass < passes; ++pass) {
        const int64_t pair = segment.first + pass * most;
        const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
        multiplier.multiply(hidden(pair), plan_.hidden_stride, rows, pass, passes, c);
        kernels_.store(c, block, rows, down_.valid_columns(index), nullptr,
                       output + pair * plan_.output_stride + down_.first_column(index), plan_.output_stride,
                       Dtype::f32);
      }
    }
  }
}

void Job::sum_tokens(int id) {
  const auto* output = reinterpret_cast<const float*>(memory_ + plan_.output_at);
  float* sum = sums(id);
  const int64_t columns = down_.rows();
  for (int64_t token; (token = tokens_.take(id)) >= 0;) {
    std::fill_n(sum, columns, 0.0f);
    for (int32_t i = 0; i < routing_.choices[static_cast<size_t>(token)]; ++i) {
      const int32_t pair = routing_.of_token[static_cast<size_t>(token * call_.choices + i)];
      kernels_.axpy(routing_.scale[static_cast<size_t>(pair)], output + pair * plan_.output_stride, sum, columns);
    }
    kernels_.store(sum, 0, 1, static_cast<int>(columns), nullptr,
                   static_cast<char*>(call_.out) + token * columns * element_of(call_.dtype), columns, call_.dtype);
  }
}

}  // namespace

size_t experts_workspace(const Weights& gate_up, const Weights& down, int64_t tokens, int64_t choices, Dtype dtype,
                         const Tactic& tactic) {
  const int threads = std::max(tactic.threads, 1);
  const int64_t parts = tactic.split == Split::tokens ? std::min<int64_t>(threads, std::max<int64_t>(tokens, 1)) : 1;
  size_t total = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t own = tokens * (part + 1) / parts - tokens * part / parts;
    const ExpertsPlan plan(gate_up, down, own, own * choices, dtype, tactic, parts > 1 ? 1 : threads);
    // Of the routing: token and weight of each pair, pairs by token, and segments.
    total += plan.total + static_cast<size_t>(own * choices) * 12 + static_cast<size_t>(own) * 4 +
             static_cast<size_t>(gate_up.count() + own * choices / kRowChunk) * 32;
  }
  return total;
}

void experts(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic) {
  for (int64_t i = 0; i < call.tokens * call.choices; ++i) {
    if (call.index[i] < 0 || call.index[i] > gate_up.count()) {
      throw std::out_of_range("an expert's index is outside 0..E");
    }
  }
  if (call.tokens == 0 || down.rows() == 0) return;
  const int threads = std::max(tactic.threads, 1);
  if (tactic.split != Split::tokens || threads == 1) {
    Job job(gate_up, down, call, tactic, threads);
    parallel(threads, tactic.backend, [&](int id, int count) { job.work(id, count); });
    return;
  }
  const int64_t parts = std::min<int64_t>(threads, call.tokens);
  std::atomic<int64_t> next{0};
  std::atomic<bool> exhausted{false};  // an exception must not leave a thread that is not the caller's
  parallel(static_cast<int>(parts), tactic.backend, [&](int, int) {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      const int64_t first = call.tokens * part / parts, last = call.tokens * (part + 1) / parts;
      ExpertsCall own = call;
      own.tokens = last - first;
      own.x = static_cast<const char*>(call.x) + first * gate_up.inner() * element_of(call.dtype);
      own.index = call.index + first * call.choices;
      own.scores = static_cast<const char*>(call.scores) + first * call.choices * element_of(call.scores_dtype);
      own.out = static_cast<char*>(call.out) + first * down.rows() * element_of(call.dtype);
      try {
        Job(gate_up, down, own, tactic, 1).work(0, 1);
      } catch (const std::bad_alloc&) {
        exhausted.store(true, std::memory_order_relaxed);
      }
    }
  });
  if (exhausted.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

}  // namespace tunebook
