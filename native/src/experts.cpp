#include "experts.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>

namespace tunebook {
namespace {

// Bytes of sums that a task of the down product keeps, when the driver chooses its columns: half of a usual second-level
// cache.
constexpr int64_t kSumBytes = 1 << 20;
// Elements below which the calling thread fills the panel alone: starting threads for it and meeting again costs more.
constexpr int64_t kSerialFill = 32768;
// Rows that a thread gathers at a time.
constexpr int64_t kFillRows = 8;

float score_at(const ExpertsCall& call, int64_t pair) {
  if (call.scores_dtype == Dtype::f32) return static_cast<const float*>(call.scores)[pair];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(call.scores)[pair]) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Rows of one expert that one task takes: pairs [first, first + rows) in the order of experts.
struct Segment {
  int64_t expert;
  int64_t first;
  int64_t rows;
};

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
  void route();
  void fill(int64_t pair);
  void gate_up(int id);
  void down_by_columns(int id);
  void down_by_experts(int id);
  void sum_tokens(int id);
  char* scratch(int id) { return memory_ + scratch_at_ + static_cast<size_t>(id) * scratch_bytes_; }
  char* panel(int64_t pair) { return memory_ + panel_at_ + static_cast<size_t>(pair * panel_stride_) * size_; }
  char* hidden(int64_t pair) { return memory_ + hidden_at_ + static_cast<size_t>(pair * hidden_stride_) * size_; }
  float* sums(int id) { return reinterpret_cast<float*>(memory_ + sums_at_ + static_cast<size_t>(id) * sums_bytes_); }

  const Weights& gate_up_;
  const Weights& down_;
  const ExpertsCall& call_;
  const Tactic& tactic_;
  const Kernels& kernels_;
  const Product product_;
  const Dtype panel_dtype_;
  const size_t size_;  // of a panel's element

  int64_t pairs_ = 0;
  std::vector<int32_t> token_;      // of each pair
  std::vector<float> scale_;        // of each pair
  std::vector<int32_t> of_token_;   // [tokens, choices]: its pairs, ascending
  std::vector<int32_t> choices_;    // [tokens]: how many of them
  std::vector<Segment> segments_;

  int64_t panel_stride_, hidden_stride_, output_stride_ = 0;
  int up_group_, down_group_;
  bool fill_first_;
  size_t panel_at_, hidden_at_, output_at_, scratch_at_, scratch_bytes_, sums_at_, sums_bytes_;
  char* memory_;

  Queue fills_, ups_, downs_, tokens_;
  Barrier barrier_;
};

Job::Job(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic, int threads)
    : gate_up_(gate_up),
      down_(down),
      call_(call),
      tactic_(tactic),
      kernels_(*tactic.kernels),
      product_(product_of(*tactic.kernels, call.dtype, gate_up.dtype())),
      panel_dtype_(product_ == Product::bf16_bf16 ? Dtype::bf16 : Dtype::f32),
      size_(static_cast<size_t>(element_of(panel_dtype_))) {
  route();
  // A stride that is no power of two spreads the rows of a tile over the cache's sets.
  panel_stride_ = round_up(gate_up_.inner(), kDepth) + kDepth;
  hidden_stride_ = round_up(down_.inner(), kDepth) + kDepth;

  const int up_width = gate_up_.block() / 2, down_width = down_.block();
  const bool by_experts = tactic.split == Split::experts;
  up_group_ = group_of(tactic.columns, up_width, gate_up_.block_bytes());
  down_group_ = group_of(tactic.columns, down_width, down_.block_bytes());
  if (tactic.columns == 0 && !by_experts) {  // a task reads its columns of every expert: wide ones read longer streams
    const int64_t fits = kSumBytes / (4 * std::max<int64_t>(call.tokens, 1) * down_width);
    down_group_ = static_cast<int>(std::clamp<int64_t>(down_.blocks() / (threads * 4), 1, std::max<int64_t>(fits, 1)));
  }
  down_group_ = std::min(down_group_, std::max(down_.blocks(), 1));

  Layout layout;
  panel_at_ = layout.add(static_cast<size_t>(pairs_ * panel_stride_) * size_);
  hidden_at_ = layout.add(static_cast<size_t>(pairs_ * hidden_stride_) * size_);
  output_stride_ = round_up(down_.rows(), 16);
  output_at_ = layout.add(by_experts ? static_cast<size_t>(pairs_ * output_stride_) * 4 : 0);
  const bool needs = BlockProduct::needs_scratch(gate_up_, tactic) || BlockProduct::needs_scratch(down_, tactic);
  scratch_bytes_ = needs ? std::max(gate_up_.block_bytes(), down_.block_bytes()) : 0;
  scratch_at_ = layout.add(scratch_bytes_ * static_cast<size_t>(threads));
  sums_bytes_ = by_experts ? static_cast<size_t>(output_stride_) * 4
                           : static_cast<size_t>(call.tokens) * static_cast<size_t>(down_group_ * down_width) * 4;
  sums_at_ = layout.add(sums_bytes_ * static_cast<size_t>(threads));
  memory_ = Arena::reserve(layout.total());

  const auto segments = static_cast<int64_t>(segments_.size());
  const auto groups = [](int blocks, int group) { return (blocks + group - 1) / group; };
  fills_.deal((pairs_ + kFillRows - 1) / kFillRows, threads);
  ups_.deal(segments * groups(gate_up_.blocks(), up_group_), threads);
  downs_.deal((by_experts ? segments : 1) * groups(down_.blocks(), down_group_), threads);
  tokens_.deal(call.tokens, threads);

  fill_first_ = pairs_ * gate_up_.inner() <= kSerialFill;
  if (fill_first_) {
    for (int64_t pair = 0; pair < pairs_; ++pair) fill(pair);
  }
}

void Job::route() {
  const int64_t all = call_.tokens * call_.choices, experts = gate_up_.count();
  std::vector<int64_t> start(static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < all; ++i) {
    if (call_.index[i] < experts) ++start[static_cast<size_t>(call_.index[i]) + 1];
  }
  for (int64_t e = 0; e < experts; ++e) {
    int64_t first = start[static_cast<size_t>(e)];
    const int64_t last = first + start[static_cast<size_t>(e) + 1];
    start[static_cast<size_t>(e) + 1] = last;
    for (; first < last; first += kRowChunk) segments_.push_back({e, first, std::min(kRowChunk, last - first)});
  }
  pairs_ = start.back();
  token_.resize(static_cast<size_t>(pairs_));
  scale_.resize(static_cast<size_t>(pairs_));
  for (int64_t i = 0; i < all; ++i) {
    if (call_.index[i] >= experts) continue;
    const auto pair = static_cast<size_t>(start[static_cast<size_t>(call_.index[i])]++);
    token_[pair] = static_cast<int32_t>(i / call_.choices);
    scale_[pair] = score_at(call_, i);
  }
  if (tactic_.split != Split::experts) return;
  of_token_.resize(static_cast<size_t>(all));
  choices_.assign(static_cast<size_t>(call_.tokens), 0);
  for (int64_t pair = 0; pair < pairs_; ++pair) {
    const auto token = static_cast<size_t>(token_[static_cast<size_t>(pair)]);
    of_token_[token * static_cast<size_t>(call_.choices) + static_cast<size_t>(choices_[token]++)] =
        static_cast<int32_t>(pair);
  }
}

void Job::fill(int64_t pair) {
  const int64_t inner = gate_up_.inner();
  const int64_t token = token_[static_cast<size_t>(pair)];
  to_panel(kernels_, static_cast<const char*>(call_.x) + token * inner * element_of(call_.dtype), call_.dtype, panel(pair),
           panel_dtype_, inner, panel_stride_ - kDepth);
}

void Job::work(int id, int count) {
  if (!fill_first_) {
    for (int64_t task; (task = fills_.take(id)) >= 0;) {
      for (int64_t pair = task * kFillRows; pair < std::min((task + 1) * kFillRows, pairs_); ++pair) fill(pair);
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
  BlockProduct multiplier(gate_up_, tactic_, product_, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = gate_up_.blocks(), block = gate_up_.block();
  const int64_t groups = (blocks + up_group_ - 1) / up_group_;
  for (int64_t task; (task = ups_.take(id)) >= 0;) {
    const Segment& segment = segments_[static_cast<size_t>(task / groups)];
    const int from = static_cast<int>(task % groups) * up_group_;
    const int passes = static_cast<int>((segment.rows + most - 1) / most);
    for (int index = from; index < std::min(from + up_group_, blocks); ++index) {
      multiplier.select(segment.expert, index);
      for (int pass = 0; pass < passes; ++pass) {
        const int64_t pair = segment.first + pass * most;
        const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
        multiplier.multiply(panel(pair), panel_stride_, rows, pass, passes, c);
        kernels_.gate(call_.activation, c, block, rows, block / 2,
                      hidden(pair) + static_cast<size_t>(gate_up_.first_column(index)) * size_, hidden_stride_,
                      panel_dtype_);
      }
    }
  }
}

void Job::down_by_columns(int id) {
  BlockProduct multiplier(down_, tactic_, product_, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = down_.blocks(), block = down_.block();
  const int64_t width = static_cast<int64_t>(down_group_) * block;
  float* sum = sums(id);
  for (int64_t task; (task = downs_.take(id)) >= 0;) {
    const int from = static_cast<int>(task) * down_group_, to = std::min(from + down_group_, blocks);
    std::fill_n(sum, call_.tokens * width, 0.0f);
    for (const Segment& segment : segments_) {
      const int passes = static_cast<int>((segment.rows + most - 1) / most);
      for (int index = from; index < to; ++index) {
        multiplier.select(segment.expert, index);
        for (int pass = 0; pass < passes; ++pass) {
          const int64_t pair = segment.first + pass * most;
          const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
          multiplier.multiply(hidden(pair), hidden_stride_, rows, pass, passes, c);
          kernels_.scatter(c, block, rows, block, scale_.data() + pair, token_.data() + pair,
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
  BlockProduct multiplier(down_, tactic_, product_, scratch(id));
  alignas(64) float c[kMaxRows * kMaxBlock];
  const int64_t most = multiplier.most_rows();
  const int blocks = down_.blocks(), block = down_.block();
  const int64_t groups = (blocks + down_group_ - 1) / down_group_;
  auto* output = reinterpret_cast<float*>(memory_ + output_at_);
  for (int64_t task; (task = downs_.take(id)) >= 0;) {
    const Segment& segment = segments_[static_cast<size_t>(task / groups)];
    const int from = static_cast<int>(task % groups) * down_group_;
    const int passes = static_cast<int>((segment.rows + most - 1) / most);
    for (int index = from; index < std::min(from + down_group_, blocks); ++index) {
      multiplier.select(segment.expert, index);
      for (int pass = 0; pass < passes; ++pass) {
        const int64_t pair = segment.first + pass * most;
        const int rows = static_cast<int>(std::min(most, segment.first + segment.rows - pair));
        multiplier.multiply(hidden(pair), hidden_stride_, rows, pass, passes, c);
        kernels_.store(c, block, rows, down_.valid_columns(index), nullptr,
                       output + pair * output_stride_ + down_.first_column(index), output_stride_, Dtype::f32);
      }
    }
  }
}

void Job::sum_tokens(int id) {
  const auto* output = reinterpret_cast<const float*>(memory_ + output_at_);
  float* sum = sums(id);
  const int64_t columns = down_.rows();
  for (int64_t token; (token = tokens_.take(id)) >= 0;) {
    std::fill_n(sum, columns, 0.0f);
    for (int32_t i = 0; i < choices_[static_cast<size_t>(token)]; ++i) {
      const int32_t pair = of_token_[static_cast<size_t>(token * call_.choices + i)];
      kernels_.axpy(scale_[static_cast<size_t>(pair)], output + pair * output_stride_, sum, columns);
    }
    kernels_.store(sum, 0, 1, static_cast<int>(columns), nullptr,
                   static_cast<char*>(call_.out) + token * columns * element_of(call_.dtype), columns, call_.dtype);
  }
}

}  // namespace

void experts(const Weights& gate_up, const Weights& down, const ExpertsCall& call, const Tactic& tactic) {
  for (int64_t i = 0; i < call.tokens * call.choices; ++i) {
    if (call.index[i] < 0 || call.index[i] > gate_up.count()) throw std::out_of_range("an expert's index is outside 0..E");
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
