// Running one function on several threads at once.
//
// PyTorch's wheels bring their own OpenMP runtime, whose threads spin for a while after each operation. Threads of ours
// would compete with them for the same processors. So the threads of that runtime are used: `openmp` looks it up among
// the libraries that are loaded already and never loads one. `pool` is for processes without it.
#pragma once

#include <atomic>

namespace tunebook {

enum class Backend : int { automatic, openmp, pool };

// Calls work(context, id, count) on `count` threads at once, id 0 on the caller; returns when all are done. `count` may
// be less than `threads`: a call from inside a parallel region, or one that finds the pool busy, runs on the caller alone.
void parallel(int threads, Backend, void (*work)(void* context, int id, int count), void* context);

template <typename Work>
void parallel(int threads, Backend backend, Work&& work) {
  parallel(
      threads, backend, [](void* context, int id, int count) { (*static_cast<Work*>(context))(id, count); }, &work);
}

// "openmp" or "pool": what `automatic` stands for now.
const char* chosen_backend();

// A meeting point inside `parallel`; may be used again and again.
class Barrier {
 public:
  void wait(int count);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

}  // namespace tunebook
