// Packing: row-major matrices into blocks of columns and back, into other memory or in place.
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "weights.h"

namespace tunebook {
namespace {

template <typename Task>
void each(int64_t tasks, int threads, Backend backend, Task&& task) {
  std::atomic<int64_t> next{0};
  parallel(threads, backend, [&](int id, int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i, id);
  });
}

// Moves `2 * half` pieces: the first half to the even places, the second to the odd ones, or back. Each cycle of the
// permutation starts with one piece in `spare`.
void shuffle(char* pieces, size_t bytes, int64_t half, bool back, char* spare) {
  const auto source = [&](int64_t to) {
    if (!back) return to / 2 + to % 2 * half;
    return to < half ? 2 * to : 2 * (to - half) + 1;
  };
  std::vector<bool> done(static_cast<size_t>(2 * half));
  for (int64_t first = 0; first < 2 * half; ++first) {
    if (done[static_cast<size_t>(first)] || source(first) == first) continue;
    std::memcpy(spare, pieces + static_cast<size_t>(first) * bytes, bytes);
    int64_t to = first;
    for (int64_t from; (from = source(to)) != first; to = from) {
      std::memcpy(pieces + static_cast<size_t>(to) * bytes, pieces + static_cast<size_t>(from) * bytes, bytes);
      done[static_cast<size_t>(to)] = true;
    }
    std::memcpy(pieces + static_cast<size_t>(to) * bytes, spare, bytes);
    done[static_cast<size_t>(to)] = true;
  }
}

}  // namespace

char* Rows::at(int64_t row) const {
  for (const Part& part : parts_) {
    if (row < part.rows) return static_cast<char*>(const_cast<void*>(part.data)) + row * row_bytes_;
    row -= part.rows;
  }
  return nullptr;
}

void Weights::each_part(int64_t matrix, int index, void (*apply)(const Pack&), const Rows& rows, char* block) const {
  const int parts = gated_ ? 2 : 1;
  char* addresses[kMaxBlock];
  for (int part = 0; part < parts; ++part) {
    const int64_t row = matrix * rows_ + part * (rows_ / 2) + first_column(index);
    Pack p;
    p.valid = valid_columns(index);
    for (int i = 0; i < p.valid; ++i) addresses[i] = rows.at(row + i);
    p.rows = addresses;
    p.columns = block_ / parts;
    p.inner = inner_;
    p.depth = depth_;
    p.element = element();
    p.block = reinterpret_cast<uint32_t*>(block) + part * p.columns;
    p.width = block_;
    apply(p);
  }
}

void Weights::pack_block(int64_t matrix, int index, const Kernels& kernels, void* to) const {
  each_part(matrix, index, kernels.pack, own_rows(), static_cast<char*>(to));
}

Weights Weights::pack(const Weights& view, const Rows& from, int block, const Kernels& kernels, int threads,
                      Backend backend) {
  Weights packed = view.outline(block);
  packed.buffer_ = std::make_shared<Buffer>(packed.packed_bytes());
  packed.data_ = packed.buffer_->data();
  each(packed.count_ * packed.blocks_, threads, backend, [&](int64_t task, int) {
    packed.each_part(task / packed.blocks_, static_cast<int>(task % packed.blocks_), kernels.pack, from,
                     packed.buffer_->data() + static_cast<size_t>(task) * packed.block_bytes());
  });
  return packed;
}

void Weights::unpack(const Rows& to, const Kernels& kernels, int threads, Backend backend) const {
  each(count_ * blocks_, threads, backend, [&](int64_t task, int) {
    each_part(task / blocks_, static_cast<int>(task % blocks_), kernels.unpack, to,
              const_cast<char*>(data_) + static_cast<size_t>(task) * block_bytes());
  });
}

const char* Weights::in_place_refusal(const Weights& view, int block) {
  const Weights packed = view.outline(block);
  if (view.packed_) return "the weights are packed already";
  if (view.dtype_ == Dtype::bf16 && view.inner_ % kDepth) return "K is not a multiple of 32";
  if (view.gated_ && view.rows_ / 2 % kDepth) return "I is not a multiple of 32";
  if (packed.packed_bytes() != static_cast<size_t>(view.count_ * view.rows_ * view.inner_ * view.element())) {
    return "N is not a multiple of the block";
  }
  if (reinterpret_cast<uintptr_t>(view.data_) % 64) return "its memory is not aligned to 64 bytes";
  return nullptr;
}

// Block `task` of all matrices, whose rows lie where the block does: gate rows, then up rows.
void Weights::transpose_in_place(bool pack, int64_t task, const Kernels& kernels, char* scratch) {
  char* at = const_cast<char*>(data_) + static_cast<size_t>(task) * block_bytes();
  std::memcpy(scratch, at, block_bytes());
  const int parts = gated_ ? 2 : 1, columns = block_ / parts;
  char* addresses[kMaxBlock];
  for (int i = 0; i < block_; ++i) addresses[i] = (pack ? scratch : at) + i * inner_ * element();
  for (int part = 0; part < parts; ++part) {
    Pack p;
    p.rows = addresses + part * columns;
    p.valid = p.columns = columns;
    p.inner = inner_;
    p.depth = depth_;
    p.element = element();
    p.block = reinterpret_cast<uint32_t*>(pack ? at : scratch) + part * columns;
    p.width = block_;
    pack ? kernels.pack(p) : kernels.unpack(p);
  }
}

void Weights::change_in_place(bool pack, const Kernels& kernels, int threads, Backend backend) {
  const size_t scratch_bytes = block_bytes(), matrix_bytes = scratch_bytes * static_cast<size_t>(blocks_);
  Buffer scratch(scratch_bytes * static_cast<size_t>(threads));
  const auto of = [&](int id) { return scratch.data() + scratch_bytes * static_cast<size_t>(id); };
  const auto shuffle_matrix = [&](int64_t matrix, int id) {
    if (!gated_) return;
    char* first = const_cast<char*>(data_) + static_cast<size_t>(matrix) * matrix_bytes;
    shuffle(first, block_bytes() / 2, blocks_, !pack, of(id));
  };
  if (count_ < threads) {  // few matrices: the threads share the blocks of all
    if (pack) each(count_, threads, backend, shuffle_matrix);
    each(count_ * blocks_, threads, backend,
         [&](int64_t task, int id) { transpose_in_place(pack, task, kernels, of(id)); });
    if (!pack) each(count_, threads, backend, shuffle_matrix);
    return;
  }
  each(count_, threads, backend, [&](int64_t matrix, int id) {  // one after the other, each while it is in the cache
    if (pack) shuffle_matrix(matrix, id);
    for (int index = 0; index < blocks_; ++index) transpose_in_place(pack, matrix * blocks_ + index, kernels, of(id));
    if (!pack) shuffle_matrix(matrix, id);
  });
}

void Weights::pack_in_place(int block, const Kernels& kernels, int threads, Backend backend) {
  if (const char* refusal = in_place_refusal(*this, block)) throw std::invalid_argument(refusal);
  Weights packed = *this;
  packed.lay_out(block, true);
  packed.change_in_place(true, kernels, threads, backend);
  *this = packed;
}

void Weights::unpack_in_place(const Kernels& kernels, int threads, Backend backend) {
  if (!in_place()) throw std::invalid_argument("the weights were not packed in place");
  change_in_place(false, kernels, threads, backend);
  lay_out(kMaxBlock, false);
}

}  // namespace tunebook
