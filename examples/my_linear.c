/* y = x W^T + bias, for x [m, k], W [n, k] and y [m, n], all contiguous and of one type: fp32, or bf16 as 16-bit words.
 *
 * Sums are kept in fp32. The vectors are the compiler's own (GCC and Clang), so one source serves AVX2, AVX-512 and NEON.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
#define ROWS 4 /* rows of x in a tile: each weight that was loaded serves so many of them */
#define COLS 4 /* columns of y in a tile, which are rows of W */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

/* A bf16 is the upper half of an fp32. */
INLINE float widen(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* To nearest, ties to even; a NaN stays a (quiet) NaN. */
INLINE uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((word >> 16) | 0x40);
    return (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

INLINE float get(const void *data, int64_t i, int bf16) {
    return bf16 ? widen(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

INLINE void put(void *data, int64_t i, float value, int bf16) {
    if (bf16) ((uint16_t *)data)[i] = narrow(value);
    else ((float *)data)[i] = value;
}

INLINE vec load(const void *data, int64_t i, int bf16) {
    vec value;
    if (bf16) {
        halves packed;
        memcpy(&packed, (const uint16_t *)data + i, sizeof packed);
        words wide = __builtin_convertvector(packed, words) << 16;
        memcpy(&value, &wide, sizeof value);
    } else {
        memcpy(&value, (const float *)data + i, sizeof value);
    }
    return value;
}

/* `rows`, `cols` and `bf16` are constants wherever this is used: the loops over them unroll, the sums stay in registers. */
INLINE void tile(const void *x, const void *w, const void *bias, void *y, int64_t n, int64_t k, int64_t row, int64_t col,
                 int rows, int cols, int bf16) {
    vec sums[ROWS][COLS] = {{{0}}};
    int64_t at = 0;
    for (; at + LANES <= k; at += LANES) {
        vec weights[COLS];
        for (int c = 0; c < cols; c++) weights[c] = load(w, (col + c) * k + at, bf16);
        for (int r = 0; r < rows; r++) {
            vec inputs = load(x, (row + r) * k + at, bf16);
            for (int c = 0; c < cols; c++) sums[r][c] += inputs * weights[c];
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) {
            float sum = bias ? get(bias, col + c, bf16) : 0.0f;
            for (int64_t i = at; i < k; i++) sum += get(x, (row + r) * k + i, bf16) * get(w, (col + c) * k + i, bf16);
            for (int lane = 0; lane < LANES; lane++) sum += sums[r][c][lane];
            put(y, (row + r) * n + col + c, sum, bf16);
        }
    }
}

/* `block` columns of y are one piece of work: their weights are read from memory once and stay in the cache for all rows. */
INLINE void linear(const void *x, const void *w, const void *bias, void *y, int64_t m, int64_t n, int64_t k,
                   int64_t block, int threads, int bf16) {
    (void)threads; /* without OpenMP there is one */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < n; first += block) {
        int64_t last = first + block < n ? first + block : n;
        int64_t row = 0;
        for (; row + ROWS <= m; row += ROWS) {
            int64_t col = first;
            for (; col + COLS <= last; col += COLS) tile(x, w, bias, y, n, k, row, col, ROWS, COLS, bf16);
            for (; col < last; col++) tile(x, w, bias, y, n, k, row, col, ROWS, 1, bf16);
        }
        for (; row < m; row++) {
            int64_t col = first;
            for (; col + COLS <= last; col += COLS) tile(x, w, bias, y, n, k, row, col, 1, COLS, bf16);
            for (; col < last; col++) tile(x, w, bias, y, n, k, row, col, 1, 1, bf16);
        }
    }
}

void my_linear_f32(const void *x, const void *w, const void *bias, void *y, int64_t m, int64_t n, int64_t k,
                   int64_t block, int threads) {
    linear(x, w, bias, y, m, n, k, block, threads, 0);
}

void my_linear_bf16(const void *x, const void *w, const void *bias, void *y, int64_t m, int64_t n, int64_t k,
                    int64_t block, int threads) {
    linear(x, w, bias, y, m, n, k, block, threads, 1);
}
