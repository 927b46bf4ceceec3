#include "threads.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <string.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace tunebook {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Spins about 20 us before it gives the processor away: long enough for the gap between two operations of a decode
// step, short enough not to matter to whoever else wants the processor.
constexpr int kSpins = 1000;

template <typename Ready>
void spin_until(Ready&& ready) {
  for (int i = 0; !ready(); ++i) {
    if (i < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

// ---- the OpenMP runtime that is loaded ----------------------------------------------------------------------------

struct OpenMp {
  void (*run)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel; LLVM's and Intel's have it too
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;
  int (*inside)() = nullptr;
};

int visit(dl_phdr_info* info, size_t, void* into) {
  const char* slash = strrchr(info->dlpi_name, '/');
  const char* name = slash ? slash + 1 : info->dlpi_name;
  const auto begins = [name](const char* with) { return strncmp(name, with, strlen(with)) == 0; };
  if (!begins("libgomp") && !begins("libomp") && !begins("libiomp5")) return 0;
  void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return 0;
  OpenMp found;
  found.run = reinterpret_cast<decltype(found.run)>(dlsym(library, "GOMP_parallel"));
  found.thread = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_thread_num"));
  found.threads = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_num_threads"));
  found.inside = reinterpret_cast<int (*)()>(dlsym(library, "omp_in_parallel"));
  if (!found.run || !found.thread || !found.threads || !found.inside) {
    dlclose(library);
    return 0;
  }
  *static_cast<OpenMp*>(into) = found;  // the library stays open: its functions are used from now on
  return 1;
}

// Looked up again as long as none is found: PyTorch may be imported later.
const OpenMp* openmp() {
  static std::mutex mutex;
  static OpenMp found;
  static std::atomic<bool> ready{false};
  if (ready.load(std::memory_order_acquire)) return &found;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!ready.load(std::memory_order_relaxed) && dl_iterate_phdr(visit, &found) == 1) {
    ready.store(true, std::memory_order_release);
  }
  return ready.load(std::memory_order_relaxed) ? &found : nullptr;
}

// ---- our own pool -------------------------------------------------------------------------------------------------

class Pool {
 public:
  void run(int threads, void (*work)(void*, int, int), void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn) return work(context, 0, 1);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      const int id = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, id, seen = round_.load()] { serve(id, seen); }).detach();
    }
    work_ = work;
    context_ = context;
    count_ = threads;
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(context, 0, threads);
    spin_until([this] { return pending_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void serve(int id, unsigned seen) {
    for (;;) {
      for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) pause();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (id < count_) work_(context_, id, count_);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> pending_{0};
  void (*work_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int count_ = 0;
};

// Never destroyed: its workers wait in it until the process ends. A forked child has none of them and starts anew.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current) return *current;
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); }); });
  auto* fresh = new Pool;
  if (the_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; no worker has started in ours
  return *current;
}

thread_local bool in_pool = false;

}  // namespace

void parallel(int threads, Backend backend, void (*work)(void*, int, int), void* context) {
  if (threads <= 1 || in_pool) return work(context, 0, 1);
  const OpenMp* omp = backend == Backend::pool ? nullptr : openmp();
  if (!omp) {
    struct Entered {
      void (*work)(void*, int, int);
      void* context;
    } entered{work, context};
    return pool().run(
        threads,
        [](void* into, int id, int count) {
          const auto* call = static_cast<Entered*>(into);
          in_pool = true;
          call->work(call->context, id, count);
          in_pool = false;
        },
        &entered);
  }
  if (omp->inside()) return work(context, 0, 1);
  struct Call {
    void (*work)(void*, int, int);
    void* context;
    const OpenMp* omp;
  } call{work, context, omp};
  omp->run(
      [](void* into) {
        const auto* c = static_cast<Call*>(into);
        c->work(c->context, c->omp->thread(), c->omp->threads());
      },
      &call, static_cast<unsigned>(threads), 0);
}

const char* chosen_backend() { return openmp() ? "openmp" : "pool"; }

void Queue::deal(int64_t count, int threads) {
  ranges_ = threads < 1 ? 1 : threads < kRanges ? threads : kRanges;
  for (int i = 0; i < ranges_; ++i) {
    range_[i].next.store(count * i / ranges_, std::memory_order_relaxed);
    range_[i].end = count * (i + 1) / ranges_;
  }
}

int64_t Queue::take(int id) {
  for (int i = 0; i < ranges_; ++i) {
    Range& range = range_[(id + i) % ranges_];
    if (range.next.load(std::memory_order_relaxed) >= range.end) continue;
    const int64_t task = range.next.fetch_add(1, std::memory_order_relaxed);
    if (task < range.end) return task;
  }
  return -1;
}

void Barrier::wait(int count) {
  if (count <= 1) return;
  const int round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

}  // namespace tunebook
