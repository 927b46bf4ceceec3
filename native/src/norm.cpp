#include "rows.h"
#include "tactic.h"

#include <algorithm>

namespace tunebook {

void add_rms_norm(const NormCall& call, const RowKernels& kernels, int threads) {
  const int64_t stride = call.inner * element_of(call.dtype);
  const auto work = [&](int id, int count) {
    const int64_t share = (call.rows + count - 1) / count;
    const int64_t end = std::min<int64_t>((id + 1) * share, call.rows);
    for (int64_t row = id * share; row < end; ++row) {
      const int64_t at = row * stride;
      const char* value = static_cast<const char*>(call.x) + at;
      if (call.residual) {
        char* sum = static_cast<char*>(call.sum) + at;
        kernels.residual_add(value, call.multiplier, static_cast<const char*>(call.residual) + at, call.inner, sum,
                             call.dtype);
        value = sum;
      }
      if (call.weight) {
        kernels.rms_norm(value, call.weight, call.epsilon, call.inner, static_cast<char*>(call.normed) + at, call.dtype);
      }
    }
  };
  const int useful = static_cast<int>(std::min<int64_t>(threads, call.rows));
  if (useful > 1) {
    parallel(useful, Backend::automatic, [&](int id, int count) { work(id, count); });
  } else {
    work(0, 1);
  }
}

}  // namespace tunebook
