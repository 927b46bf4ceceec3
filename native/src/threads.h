// Running one function on several threads at once.
//
// PyTorch's wheels bring their own OpenMP runtime, whose threads spin for a while after each operation. Threads of ours
// would compete with them for the same processors. So the threads of that runtime are used: `openmp` looks it up among
// the libraries that are loaded already and never loads one. Measured with decode's small linears and two threads: with
// operations of PyTorch between them, each linear takes 1.4 to 1.9 times as long on our own pool; without, as long.
// `pool` is for processes without such a runtime.
#pragma once

#include <atomic>
#include <cstdint>

namespace tunebook {

enum class Backend : int { automatic, openmp, pool };

// Calls work(context, id, count) on `count` threads at once, id 0 on the caller; returns when all are done. `count` may
// be less than `threads`: a call from inside a parallel region, or one that finds the pool busy, runs on the caller
// alone.
void parallel(int threads, Backend, void (*work)(void* context, int id, int count), void* context);

template <typename Work>
void parallel(int threads, Backend backend, Work&& work) {
  parallel(
      threads, backend, [](void* context, int id, int count) { (*static_cast<Work*>(context))(id, count); }, &work);
}

// "openmp" or "pool": what `automatic` stands for now.
const char* chosen_backend();

// Tasks 0 to count - 1 for the threads of `parallel`: each takes those of its own range in order, so that it reads
// memory in one stream, and then what is left of the others'.
class Queue {
 public:
  Queue() = default;
  Queue(int64_t count, int threads) { deal(count, threads); }
  // Not while a thread takes.
  void deal(int64_t count, int threads);
  // The next task for thread `id`, or -1.
  int64_t take(int id);

 private:
  static constexpr int kRanges = 16;  // with more threads, some share one
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  int ranges_ = 1;
  Range range_[kRanges];
};

// A meeting point inside `parallel`; may be used again and again.
class Barrier {
 public:
  void wait(int count);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

}  // namespace tunebook
