// A stack of weight matrices as the kernels read them: row-major, where they lie, or packed into blocks of columns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace tunebook {

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Zeroed memory in whole pages, huge ones where the system gives them: half of the address translations of a stream.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_;
  size_t size_;
};

// Where the rows of row-major matrices lie: in one piece of memory, or in several whose rows follow each other.
class Rows {
 public:
  struct Part {
    const void* data;
    int64_t rows;
  };
  Rows(std::vector<Part> parts, int64_t row_bytes) : parts_(std::move(parts)), row_bytes_(row_bytes) {}
  char* at(int64_t row) const;

 private:
  std::vector<Part> parts_;
  int64_t row_bytes_;
};

// `count` matrices [rows, inner]. Packed: each is a row of blocks, each block `block` columns, a column being a row of
// the matrix. Gated ones (rows = 2I, gate rows first) have `block`/2 gate columns and then the same columns of up in a
// block, and as many blocks as make I, rounded up to 32, columns: the products' K dimension. What does not exist is
// zero.
class Weights {
 public:
  // A row-major view; the memory must outlive it.
  Weights(const void* data, int64_t count, int64_t rows, int64_t inner, Dtype dtype, bool gated);

  // The same without memory, packed by `block`: for what depends on sizes only.
  Weights outline(int block) const;

  // A packed copy of the rows of `from`, in the shape of `view`. Throws std::bad_alloc.
  static Weights pack(const Weights& view, const Rows& from, int block, const Kernels&, int threads, Backend);
  // Writes the original rows, bit for bit.
  void unpack(const Rows& to, const Kernels&, int threads, Backend) const;

  // Why a view cannot be packed in the memory where it lies; null if it can.
  static const char* in_place_refusal(const Weights& view, int block);
  // The packed form takes the place of the original, block by block through a copy in the cache; and back again.
  // Afterwards this object is packed, or a view again. Memory must be writable, and nobody may read it meanwhile. Throw
  // std::invalid_argument with the refusal, or std::bad_alloc, before anything is written.
  void pack_in_place(int block, const Kernels&, int threads, Backend);
  void unpack_in_place(const Kernels&, int threads, Backend);

  // Rows of a view, or of the memory that in-place ones took over.
  Rows own_rows() const { return Rows({{data_, count_ * rows_}}, inner_ * element()); }

  int64_t count() const { return count_; }
  int64_t rows() const { return rows_; }
  int64_t inner() const { return inner_; }
  Dtype dtype() const { return dtype_; }
  bool gated() const { return gated_; }
  bool packed() const { return packed_; }
  bool in_place() const { return packed_ && !buffer_; }
  int element() const { return dtype_ == Dtype::bf16 ? 2 : 4; }
  // Columns of a block; of a row-major view, those that one task takes at a time.
  int block() const { return block_; }
  int blocks() const { return blocks_; }
  int64_t depth() const { return depth_; }
  size_t block_bytes() const { return static_cast<size_t>(depth_) * static_cast<size_t>(block_) * 4; }
  size_t packed_bytes() const { return static_cast<size_t>(count_) * static_cast<size_t>(blocks_) * block_bytes(); }
  // Bytes that this object owns.
  size_t bytes() const { return buffer_ ? buffer_->size() : 0; }

  const char* block_at(int64_t matrix, int index) const {
    const size_t before = static_cast<size_t>(matrix) * static_cast<size_t>(blocks_) + static_cast<size_t>(index);
    return data_ + before * block_bytes();
  }
  const char* row_at(int64_t matrix, int64_t row) const { return data_ + (matrix * rows_ + row) * inner_ * element(); }
  // Result columns that block `index` begins with: of act(gate) * up where gated.
  int64_t first_column(int index) const { return static_cast<int64_t>(index) * (gated_ ? block_ / 2 : block_); }
  // Those of them that exist.
  int valid_columns(int index) const;

  // Packs one block of a row-major matrix.
  void pack_block(int64_t matrix, int index, const Kernels&, void* to) const;

 private:
  void lay_out(int block, bool packed);
  // `apply` (packing or unpacking) on block `index` of `matrix`, whose rows lie in `rows`.
  void each_part(int64_t matrix, int index, void (*apply)(const Pack&), const Rows& rows, char* block) const;
  void change_in_place(bool pack, const Kernels&, int threads, Backend);
  void transpose_in_place(bool pack, int64_t task, const Kernels&, char* scratch);

  const char* data_;
  int64_t count_, rows_, inner_, depth_;
  Dtype dtype_;
  bool gated_, packed_ = false;
  int block_ = 0, blocks_ = 0;
  std::shared_ptr<Buffer> buffer_;
};

}  // namespace tunebook
