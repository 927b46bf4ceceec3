#include "attention.h"

#include <string.h>

#include <algorithm>
#include <atomic>

namespace tunebook {
namespace {

// Less work than this, in elements read, is done before a second thread has started.
constexpr int64_t kWorthAThread = 1 << 15;
// Keys of one part. How they are split depends on nothing else, so that a result has the same bits in every batch and
// with every number of threads.
constexpr int64_t kPartKeys = 512;

}  // namespace

void heads(const HeadsCall& call, const Kernels& kernels, int threads, Backend backend) {
  const int64_t rows = call.batch * call.tokens;
  int64_t columns = 0;
  for (const Projection& p : call.projection) columns += static_cast<int64_t>(p.heads) * call.dim;
  if (rows == 0 || columns == 0) return;
  if (rows * columns < kWorthAThread) threads = 1;
  const int64_t element = element_of(call.dtype), angle_element = element_of(call.angle_dtype);

  const auto scratch_floats = static_cast<size_t>(columns + 2 * call.dim);
  Layout layout;
  for (int i = 0; i < threads; ++i) layout.add(scratch_floats * sizeof(float));
  char* memory = Arena::reserve(layout.total());
  const size_t each = layout.total() / static_cast<size_t>(threads);

  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(std::min<int64_t>(threads, rows)), backend, [&](int id, int) {
    float* angles = reinterpret_cast<float*>(memory + each * static_cast<size_t>(id));
    float* scratch = angles + 2 * call.dim;
    for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;) {
      const int64_t batch = row / call.tokens, token = row % call.tokens;
      const int64_t angle_at = (call.positions_differ ? row : token) * call.dim;
      const float* turning[2] = {angles, angles + call.dim};
      const void* given[2] = {call.cos, call.sin};
      for (int i = 0; i < 2; ++i) {
        const char* from = static_cast<const char*>(given[i]) + angle_at * angle_element;
        if (call.angle_dtype == Dtype::bf16) {
          kernels.to_f32(reinterpret_cast<const uint16_t*>(from), angles + i * call.dim, call.dim);
        } else {
          turning[i] = reinterpret_cast<const float*>(from);
        }
      }
      const char* from = static_cast<const char*>(call.packed) + row * columns * element;
      for (int i = 0; i < 3; ++i) {
        const Projection& p = call.projection[i];
        HeadRow h;
        h.from = from;
        h.heads = p.heads;
        h.dim = call.dim;
        h.weight = p.norm;
        h.whole = call.whole;
        h.eps = p.eps;
        h.clip = call.clip;
        h.cos = p.turned ? turning[0] : nullptr;
        h.sin = turning[1];
        h.scratch = scratch;
        h.to = static_cast<char*>(call.out[i]) + (batch * p.heads * call.tokens + token) * call.dim * element;
        h.stride = call.tokens * call.dim;
        h.dtype = call.dtype;
        kernels.attention->head_row(h);
        from += static_cast<int64_t>(p.heads) * call.dim * element;
      }
    }
  });
}

void append(const AppendCall& call) {
  constexpr int64_t ahead = 12;  // heads lie far apart, and no processor sees them coming
  const int64_t bytes = call.tokens * call.row_bytes, far = call.capacity * call.row_bytes;
  char* to = static_cast<char*>(call.to) + call.at * call.row_bytes;
  const char* from = static_cast<const char*>(call.from);
  for (int64_t i = 0; i < call.count; ++i) {
    if (i + ahead < call.count) {
      for (int64_t byte = 0; byte < call.row_bytes; byte += 64) __builtin_prefetch(to + (i + ahead) * far + byte, 1);
    }
    memcpy(to + i * far, from + i * bytes, static_cast<size_t>(bytes));
  }
}

void attend(const AttendCall& call, const Kernels& kernels, int threads, Backend backend) {
  const int64_t tasks = call.batch * call.kv_heads, element = element_of(call.dtype);
  if (tasks == 0 || call.dim == 0) return;
  if (tasks * call.keys * call.dim < kWorthAThread) threads = 1;
  const int group = static_cast<int>(call.heads / call.kv_heads), dim = static_cast<int>(call.dim);
  const int64_t parts = std::max<int64_t>((call.keys + kPartKeys - 1) / kPartKeys, 1);

  const size_t each = static_cast<size_t>(parts) * static_cast<size_t>(group);
  Layout layout;
  const size_t most_at = layout.add(static_cast<size_t>(tasks) * each * sizeof(float));
  const size_t total_at = layout.add(static_cast<size_t>(tasks) * each * sizeof(float));
  const size_t sum_at = layout.add(static_cast<size_t>(tasks) * each * static_cast<size_t>(dim) * sizeof(float));
  const size_t scratch_bytes = (static_cast<size_t>(attend_scratch(group, dim)) * sizeof(float) + 63) / 64 * 64;
  const size_t scratch_at = layout.add(scratch_bytes * static_cast<size_t>(threads));
  char* memory = Arena::reserve(layout.total());
  float* most = reinterpret_cast<float*>(memory + most_at);
  float* total = reinterpret_cast<float*>(memory + total_at);
  float* sum = reinterpret_cast<float*>(memory + sum_at);

  const auto merge = [&](int64_t task) {
    AttendMerge m;
    m.parts = static_cast<int>(parts);
    m.group = group;
    m.dim = dim;
    m.most = most + static_cast<size_t>(task) * each;
    m.total = total + static_cast<size_t>(task) * each;
    m.sum = sum + static_cast<size_t>(task) * each * static_cast<size_t>(dim);
    m.to = static_cast<char*>(call.out) + task * group * dim * element;
    m.dtype = call.dtype;
    kernels.attention->merge(m);
  };

  const auto rows_of = [&](int64_t work) {
    return work / parts * call.capacity + std::min(work % parts * kPartKeys, call.keys);
  };
  // A few at a time, so that one's first keys can be fetched while the one before is computed.
  const int64_t some = std::max<int64_t>(tasks * parts / (static_cast<int64_t>(threads) * 4), 1);
  std::atomic<int64_t> next{0}, next_merge{0};
  Barrier barrier;
  parallel(static_cast<int>(std::min<int64_t>(threads, tasks * parts)), backend, [&](int id, int count) {
    for (int64_t from; (from = next.fetch_add(some, std::memory_order_relaxed)) < tasks * parts;) {
      const int64_t last = std::min(from + some, tasks * parts);
      for (int64_t work = from; work < last; ++work) {
        const int64_t task = work / parts, part = work % parts;
        const int64_t first = part * kPartKeys;
        const int64_t rows_before = rows_of(work);
        AttendPart p;
        p.q = static_cast<const char*>(call.q) + task * group * dim * element;
        p.q_stride = dim;
        p.group = group;
        p.dim = dim;
        p.k = static_cast<const char*>(call.k) + rows_before * dim * element;
        p.v = static_cast<const char*>(call.v) + rows_before * dim * element;
        p.k_stride = p.v_stride = dim;
        p.keys = std::min(kPartKeys, call.keys - first);
        p.next_k = work + 1 < last ? static_cast<const char*>(call.k) + rows_of(work + 1) * dim * element : nullptr;
        p.scale = call.scale;
        p.mask = nullptr;
        p.mask_kind = call.mask_kind;
        p.dtype = call.dtype;
        if (call.mask_kind != Mask::none) {
          const int64_t size = call.mask_kind == Mask::allowed ? 1 : call.mask_kind == Mask::bf16 ? 2 : 4;
          const int64_t row = call.masks_differ ? task / call.kv_heads : 0;
          p.mask = static_cast<const char*>(call.mask) + (row * call.keys + first) * size;
        }
        p.scratch = reinterpret_cast<float*>(memory + scratch_at + static_cast<size_t>(id) * scratch_bytes);
        p.most = most + static_cast<size_t>(work) * static_cast<size_t>(group);
        p.total = total + static_cast<size_t>(work) * static_cast<size_t>(group);
        p.sum = sum + static_cast<size_t>(work) * static_cast<size_t>(group) * static_cast<size_t>(dim);
        kernels.attention->attend(p);
        if (parts == 1) merge(task);
      }
    }
    if (parts == 1) return;
    barrier.wait(count);
    for (int64_t task; (task = next_merge.fetch_add(1, std::memory_order_relaxed)) < tasks;) merge(task);
  });
}

}  // namespace tunebook
