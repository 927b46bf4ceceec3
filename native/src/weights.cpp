#include "weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace tunebook {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kPage = 4096;

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
      gated_(gated) {
  lay_out(kMaxBlock, false);
}

void Weights::lay_out(int block, bool packed) {
  const int64_t width = gated_ ? block / 2 : block, columns = gated_ ? round_up(rows_ / 2, kDepth) : rows_;
  packed_ = packed;
  block_ = block;
  blocks_ = static_cast<int>((columns + width - 1) / width);
}

Weights Weights::outline(int block) const {
  Weights packed = *this;
  packed.buffer_.reset();
  packed.data_ = nullptr;
  packed.lay_out(block, true);
  return packed;
}

int Weights::valid_columns(int index) const {
  const int64_t columns = gated_ ? rows_ / 2 : rows_;
  const int64_t width = gated_ ? block_ / 2 : block_;
  return static_cast<int>(std::clamp<int64_t>(columns - first_column(index), 0, width));
}

}  // namespace tunebook
