#include "weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <new>

namespace tunebook {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kPage = 4096;

int blocks_for(int64_t rows, bool gated, int block) {
  const int64_t columns = gated ? round_up(rows / 2, kDepth) : rows;
  return static_cast<int>((columns + (gated ? block / 2 : block) - 1) / (gated ? block / 2 : block));
}

}  // namespace

Buffer::Buffer(size_t bytes) : data_(nullptr), size_((std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage) {
  const bool huge = size_ >= kHuge;
  const size_t reserve = size_ + (huge ? kHuge : 0);
  void* at = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<char*>(at);
  if (!huge) return;
  const size_t before = (kHuge - reinterpret_cast<uintptr_t>(at) % kHuge) % kHuge;
  if (before) munmap(data_, before);
  data_ += before;
  if (kHuge > before) munmap(data_ + size_, kHuge - before);
  madvise(data_, size_, MADV_HUGEPAGE);  // advice: where it is refused, small pages serve
}

Buffer::~Buffer() { munmap(data_, size_); }

Weights::Weights(const void* data, int64_t count, int64_t rows, int64_t inner, Dtype dtype, bool gated)
    : data_(static_cast<const char*>(data)),
      count_(count),
      rows_(rows),
      inner_(inner),
      depth_(dtype == Dtype::bf16 ? round_up(inner, kDepth) / 2 : inner),
      dtype_(dtype),
      gated_(gated),
      packed_(false),
      block_(kMaxBlock),
      blocks_(blocks_for(rows, gated, kMaxBlock)) {}

Weights::Weights(const Weights& from, int block, const Kernels& kernels, int threads, Backend backend) : Weights(from) {
  packed_ = true;
  block_ = block;
  blocks_ = blocks_for(rows_, gated_, block);
  buffer_ = std::make_shared<Buffer>(static_cast<size_t>(count_) * static_cast<size_t>(blocks_) * block_bytes());
  data_ = buffer_->data();
  std::atomic<int64_t> next{0};
  const int64_t tasks = count_ * blocks_;
  parallel(threads, backend, [&](int, int) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      each_part(task / blocks_, static_cast<int>(task % blocks_), kernels.pack, from.data_,
                buffer_->data() + static_cast<size_t>(task) * block_bytes());
    }
  });
}

void Weights::unpack(void* to, const Kernels& kernels, int threads, Backend backend) const {
  std::atomic<int64_t> next{0};
  const int64_t tasks = count_ * blocks_;
  parallel(threads, backend, [&](int, int) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      each_part(task / blocks_, static_cast<int>(task % blocks_), kernels.unpack, static_cast<char*>(to),
                buffer_->data() + static_cast<size_t>(task) * block_bytes());
    }
  });
}

int Weights::valid_columns(int index) const {
  const int64_t columns = gated_ ? rows_ / 2 : rows_;
  const int64_t width = gated_ ? block_ / 2 : block_;
  return static_cast<int>(std::clamp<int64_t>(columns - first_column(index), 0, width));
}

void Weights::pack_block(int64_t matrix, int index, const Kernels& kernels, void* to) const {
  each_part(matrix, index, kernels.pack, data_, static_cast<char*>(to));
}

void Weights::each_part(int64_t matrix, int index, void (*apply)(const Pack&), const char* rows, char* block) const {
  const int parts = gated_ ? 2 : 1;
  for (int part = 0; part < parts; ++part) {
    const int64_t row = matrix * rows_ + part * (rows_ / 2) + first_column(index);
    Pack p;
    p.stride = inner_ * element();
    p.valid = valid_columns(index);
    p.rows = rows + (p.valid ? row * p.stride : 0);
    p.columns = block_ / parts;
    p.inner = inner_;
    p.depth = depth_;
    p.element = element();
    p.block = reinterpret_cast<uint32_t*>(block) + part * p.columns;
    p.width = block_;
    apply(p);
  }
}

}  // namespace tunebook
