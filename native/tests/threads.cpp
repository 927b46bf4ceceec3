// Several callers at once, each with several threads of the pool, in every split and on every instruction set: for the
// thread sanitizer. Exits with 1 if a result differs from a single thread's.
#include <cstdio>
#include <cstring>
#include <thread>

#include "../src/cpu.h"
#include "../src/experts.h"
#include "../src/linear.h"

using namespace tunebook;

namespace {

constexpr int kTokens = 70, kHidden = 96, kInner = 80, kExperts = 5, kChoices = 2;

std::vector<float> values(size_t count, uint32_t seed) {
  std::vector<float> v(count);
  for (auto& x : v) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(seed >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }
  return v;
}

bool one_caller(const Kernels& kernels, uint32_t seed) {
  const auto x = values(kTokens * kHidden, seed), up = values(kExperts * 2 * kInner * kHidden, seed + 1),
             down = values(kExperts * kHidden * kInner, seed + 2), scores = values(kTokens * kChoices, seed + 3);
  std::vector<int64_t> index(kTokens * kChoices);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int64_t>((i * 7 + seed) % (kExperts + 1));
  const Weights up_rows(up.data(), kExperts, 2 * kInner, kHidden, Dtype::f32, true);
  const Weights down_rows(down.data(), kExperts, kHidden, kInner, Dtype::f32, false);
  const Weights up_packed = Weights::pack(up_rows, up_rows.own_rows(), 32, kernels, 3, Backend::pool),
                down_packed = Weights::pack(down_rows, down_rows.own_rows(), 16, kernels, 3, Backend::pool);
  std::vector<float> first(kTokens * kHidden), out(kTokens * kHidden);
  ExpertsCall call{x.data(),     kTokens,     index.data(),     kChoices,    scores.data(),
                   Dtype::f32,   Activation::silu, first.data(), Dtype::f32};
  Tactic tactic;
  tactic.kernels = &kernels;
  experts(up_packed, down_packed, call, tactic);
  tactic.backend = Backend::pool;
  call.out = out.data();
  for (const Split split : {Split::columns, Split::experts, Split::tokens}) {
    for (const int threads : {2, 4}) {
      tactic.split = split;
      tactic.threads = threads;
      experts(up_packed, down_packed, call, tactic);
      if (std::memcmp(first.data(), out.data(), out.size() * sizeof(float)) != 0) return false;
      std::vector<float> product(kTokens * kHidden);
      const Weights matrix(down.data(), 1, kHidden, kHidden, Dtype::f32, false);
      linear(matrix, {x.data(), kTokens, nullptr, product.data(), Dtype::f32, Dtype::f32}, tactic);
    }
  }
  return true;
}

}  // namespace

int main() {
  std::atomic<bool> equal{true};
  for (const auto& name : instruction_sets()) {
    for (int round = 0; round < 20; ++round) {
      std::vector<std::thread> callers;
      for (uint32_t caller = 0; caller < 3; ++caller) {
        callers.emplace_back([&, caller] {
          if (!one_caller(*kernels_of(name), caller)) equal = false;
        });
      }
      for (auto& caller : callers) caller.join();
    }
  }
  std::puts(equal ? "equal" : "a result depends on the threads");
  return equal ? 0 : 1;
}
