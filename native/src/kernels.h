// What one instruction set offers: tiles of matrix products and what is done with their results.
//
// Each instruction set fills one `Kernels` table in a translation unit of its own, compiled with its own flags. Such a
// unit includes nothing from the C++ library that has inline functions: the linker keeps one copy of those, and a copy
// compiled for AVX-512 must not end up in code that runs everywhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace tunebook {

enum class Dtype : int { bf16 = 0, f32 = 1 };

// What is multiplied: panel (activations) by weight. A panel of fp32 serves bf16 activations too, converted once.
enum class Product : int { bf16_bf16 = 0, f32_bf16 = 1, f32_f32 = 2 };
constexpr int kProducts = 3;

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu6, sigmoid, tanh, hardswish, mish };

// Most columns of a packed block, and most rows of a tile on any instruction set.
constexpr int kMaxBlock = 64;
constexpr int kMaxRows = 128;
// Panels are followed by so many readable rows: a tile of more than 32 rows takes whole tiles of 16.
constexpr int kSpareRows = 16;
// Panels are padded with zeros to a multiple of this many elements of K.
constexpr int kDepth = 32;

// c[rows][ldc] = a[rows][lda] times one packed block of `block` columns. With more than 32 rows, c and a have
// kSpareRows more, whose values do not matter.
//
// A block holds `depth` rows of `block` 32-bit words: two successive bf16 of a column (VNNI order), or one fp32.
struct Tile {
  const void* a;    // fp32 or bf16, by product
  ptrdiff_t lda;    // elements
  const void* b;    // 64-byte aligned
  int block;        // 16, 32 or 64
  int64_t depth;    // 32-bit words of each column
  float* c;         // 64-byte aligned
  int ldc;
  int rows;
  int64_t prefetch;              // bytes ahead of the block's words to prefetch; 0: none
  int prefetch_part, prefetch_parts;  // this tile is one of so many passes over the block: each prefetches its part
};

// c[rows][ldc] = a[rows][lda] times `columns` rows of a row-major weight. At most 4 rows.
struct Dot {
  const void* a;
  ptrdiff_t lda;
  const void* b;     // first row of the weight
  ptrdiff_t ldb;     // elements
  int columns;
  int64_t inner;     // K, any
  float* c;
  int ldc;
  int rows;
};

// Words of rows of a row-major weight, transposed: block[depth][columns] <-> rows of `inner` elements.
struct Pack {
  char* const* rows;  // where each row begins
  int valid;          // rows that exist; the block's other columns are zero
  int columns;        // columns of the block to fill, a multiple of 8
  int64_t inner;      // K
  int64_t depth;      // words of a column, at least what K needs; the others are zero
  int element;        // 2 or 4 bytes
  uint32_t* block;    // the first of the columns
  int width;          // words from one row of the block to the next
};

struct RowKernels;  // rows.h
struct AttentionKernels;  // attention_kernels.h

struct Kernels {
  const char* name;
  int rows[kProducts];  // most rows of a tile; 0: this product is not there
  int dot_rows[kProducts];
  void (*tile[kProducts])(const Tile&);
  void (*dot[kProducts])(const Dot&);
  // Before a thread's first tile and after its last.
  void (*enter)();
  void (*leave)();

  void (*to_f32)(const uint16_t* from, float* to, int64_t count);
  void (*to_bf16)(const float* from, uint16_t* to, int64_t count);
  // to[rows][ldt] = act(c[:, :half]) * c[:, half:2*half]; half is a multiple of 8.
  void (*gate)(Activation, const float* c, int ldc, int rows, int half, void* to, ptrdiff_t ldt, Dtype);
  // to[rows][ldt] = c + bias
  void (*store)(const float* c, int ldc, int rows, int columns, const float* bias, void* to, ptrdiff_t ldt, Dtype);
  // to[token[r]][:columns] += scale[r] * c[r]
  void (*scatter)(const float* c, int ldc, int rows, int columns, const float* scale, const int32_t* token, float* to,
                  ptrdiff_t ldt);
  // to[:count] += scale * from
  void (*axpy)(float scale, const float* from, float* to, int64_t count);
  // Reads `bytes` (a multiple of 256, 64-byte aligned) and nothing else, prefetching so many bytes ahead: the memory's
  // speed.
  void (*read)(const char* from, int64_t bytes, int64_t ahead);
  // So many rounds of the fastest multiplication on registers alone; returns its floating-point operations.
  int64_t (*peak)(int64_t rounds);
  void (*pack)(const Pack&);
  void (*unpack)(const Pack&);
  const RowKernels* rows_of;
  const AttentionKernels* attention;
};

const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();

}  // namespace tunebook
