#include "dispatch.h"

#include <atomic>
#include <cstring>
#include <vector>

namespace rmadapter {
namespace {

// The best first.
std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#ifdef RMADAPTER_X86
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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
