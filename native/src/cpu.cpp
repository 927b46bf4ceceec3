#include "cpu.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#ifdef TUNEBOOK_X86
#include <cpuid.h>
#endif

namespace tunebook {
namespace {

#ifdef TUNEBOOK_X86

// Linux gives a process the tile registers only when asked: ARCH_REQ_XCOMP_PERM, component 18 (XTILEDATA).
bool tiles_permitted() {
  constexpr long request = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

std::vector<std::string> detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
  const bool fma = c & bit_FMA, saves = c & bit_OSXSAVE, avx = c & bit_AVX;
  if (!saves || !avx || !fma) return {};
  const uint64_t state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (state & 0x6) != 0x6 || !(b & bit_AVX2)) return {};
  std::vector<std::string> sets = {"avx2"};
  const uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if ((state & 0xe6) != 0xe6 || (b & wide) != wide) return sets;
  sets.insert(sets.begin(), "avx512");
  const bool tiles = (d & (1u << 24)) && (d & (1u << 22));  // AMX-TILE and AMX-BF16
  uint32_t a1 = 0, b1, c1, d1;
  if (!__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) || !(a1 & (1u << 5))) return sets;
  sets.insert(sets.begin(), "avx512_bf16");
  if (tiles && (state & 0x60000) == 0x60000 && tiles_permitted()) sets.insert(sets.begin(), "amx");
  return sets;
}

#else

std::vector<std::string> detect() { return {}; }

#endif

// Processors that the cgroup's quota amounts to, rounded up; 0: no quota. Version 2, then version 1.
int cgroup_quota() {
  double quota = 0, period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period) {
    return period > 0 ? static_cast<int>(std::ceil(quota / period)) : 0;  // "max" is no number: reading it fails
  }
  std::ifstream first("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), second("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (first >> quota && second >> period && quota > 0 && period > 0) return static_cast<int>(std::ceil(quota / period));
  return 0;
}

}  // namespace

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> sets = detect();
  return sets;
}

const Kernels* kernels_of(const std::string& name) {
  const auto& sets = instruction_sets();
  if (std::find(sets.begin(), sets.end(), name) == sets.end()) return nullptr;
#ifdef TUNEBOOK_X86
  if (name == "amx") return amx_kernels();
  if (name == "avx512_bf16") return avx512_bf16_kernels();
  if (name == "avx512") return avx512_kernels();
  if (name == "avx2") return avx2_kernels();
#endif
  return nullptr;
}

int usable_processors() {
  cpu_set_t set;
  int count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  if (const int quota = cgroup_quota()) count = std::min(count, quota);
  return std::max(count, 1);
}

}  // namespace tunebook
