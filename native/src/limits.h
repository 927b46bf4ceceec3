// What the machine can do at most, as the kernels' own instructions see it; written against `V`; internal linkage.
#pragma once

#include "kernels.h"

namespace tunebook {
namespace {

void read(const char* from, int64_t bytes, int64_t ahead) {
  V::reg sums[4] = {V::set1(0.0f), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
  for (int64_t at = 0; at < bytes; at += 256) {
    if (ahead) {
      for (int line = 0; line < 256; line += 64) __builtin_prefetch(from + at + ahead + line);
    }
    for (int i = 0; i < 256 / (V::width * 4); ++i) {
      sums[i % 4] = V::add(sums[i % 4], V::load(reinterpret_cast<const float*>(from + at) + i * V::width));
    }
  }
  V::reg all = V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]));
  V::use(all);
}

int64_t peak(int64_t rounds) {
  constexpr int chains = 12;
  V::reg sums[chains];
  for (auto& sum : sums) sum = V::set1(0.0f);
  V::reg x = V::set1(1.0f), y = V::set1(0.5f);
  V::use(x);
  V::use(y);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      sum = V::fmadd(x, y, sum);
      V::use(sum);
    }
  }
  return rounds * chains * V::width * 2;
}

}  // namespace
}  // namespace tunebook
