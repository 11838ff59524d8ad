#include "dispatch.h"

#include <atomic>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "problem.h"
#ifdef RMADAPTER_TILES
#include <cpuid.h>
#endif

namespace rmadapter {
namespace {

#ifdef RMADAPTER_TILES
// Whether the processor has tiles and their bf16 product, the system saves them, and lets this process use them: it is
// asked once, for all threads, and refuses where a signal stack is too small for them.
bool tiles_permitted() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return false;  // xgetbv
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned TILE_STATE = 3u << 17;
  if ((low & TILE_STATE) != TILE_STATE) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

// The best first.
std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#ifdef RMADAPTER_X86
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef RMADAPTER_TILES
  if (avx512 && __builtin_cpu_supports("avx512bf16") && tiles_permitted()) found.push_back(&amx_bf16_kernels);
#endif
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16_kernels);
  if (avx512) found.push_back(&avx512_kernels);
  if (avx2) found.push_back(&avx2_kernels);
#endif
  found.push_back(&portable_kernels);
  return found;
}

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = find_kernels();
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& chosen_kernels() {
  const Kernels* kernels = chosen.load(std::memory_order_relaxed);
  return kernels ? *kernels : *available().front();
}

}  // namespace rmadapter

int rmadapter_cpu_choose(const char* name) {
  for (const rmadapter::Kernels* kernels : rmadapter::available()) {
    if (name && std::strcmp(name, kernels->name) != 0) continue;
    rmadapter::chosen.store(kernels, std::memory_order_relaxed);
    return 1;
  }
  return 0;
}

const char* rmadapter_cpu_chosen() { return rmadapter::chosen_kernels().name; }

const char* rmadapter_cpu_available(int index) {
  const auto& found = rmadapter::available();
  return index >= 0 && index < static_cast<int>(found.size()) ? found[index]->name : nullptr;
}
