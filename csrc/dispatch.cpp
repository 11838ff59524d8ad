#include "dispatch.h"

#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "trial.h"

#ifdef RMADAPTER_X86
#include <cpuid.h>
#endif
#ifdef RMADAPTER_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rmadapter {
namespace {

#ifdef RMADAPTER_TILES
// Whether the processor has tiles and their bf16 product, the system saves them, and lets this process use them: it is
// asked once, for all threads, and refuses where a signal stack is too small for them.
bool tiles_permitted() {
  unsigned a, b, c, d;
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, XGETBV = 1u << 27;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & XGETBV)) return false;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned TILE_STATE = 3u << 17;
  if ((low & TILE_STATE) != TILE_STATE) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

// Those that this processor can run, the newest instructions first.
std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#ifdef RMADAPTER_X86
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef RMADAPTER_TILES
  if (bf16 && tiles_permitted()) found.push_back(&amx_bf16_kernels);
#endif
  if (bf16) found.push_back(&avx512_bf16_kernels);
  if (avx512) found.push_back(&avx512_kernels);
  if (avx2) found.push_back(&avx2_kernels);
#endif
  found.push_back(&portable_kernels);
  return found;
}

std::string find_processor() {
#ifdef RMADAPTER_X86
  unsigned a, b, c, d;
  char vendor[13] = {};
  if (!__get_cpuid(0, &a, &b, &c, &d)) return "x86";
  std::memcpy(vendor, &b, 4);
  std::memcpy(vendor + 4, &d, 4);
  std::memcpy(vendor + 8, &c, 4);
  __get_cpuid(1, &a, &b, &c, &d);
  unsigned family = a >> 8 & 15, model = a >> 4 & 15;
  if (family == 6 || family == 15) model += (a >> 16 & 15) << 4;
  if (family == 15) family += a >> 20 & 255;
  return std::string(vendor) + " " + std::to_string(family) + " " + std::to_string(model);
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "other";
#endif
}

// Processors on which bench/test_cpu.py was run with every set: on them avx512_bf16 is slower than avx512, since its dot
// product has half the rate of the product of floats, or it is not. Elsewhere the sets are timed.
struct Known {
  const char* processor;  // its beginning
  const char* slower;     // a set that the one after it beats
};
constexpr Known KNOWN[] = {
    {"GenuineIntel 6 143", "avx512_bf16"},  // Sapphire Rapids
    {"GenuineIntel 6 207", "avx512_bf16"},  // Emerald Rapids
    {"AuthenticAMD 25 ", ""},               // Zen 4, among those with avx512_bf16
};

struct Sets {
  std::vector<const Kernels*> kernels = find_kernels();  // the fastest first
  std::string processor = find_processor();
  std::string order;

  Sets() {
    for (const Known& known : KNOWN) {
      if (processor.compare(0, std::strlen(known.processor), known.processor) != 0) continue;
      for (size_t i = 0; i + 1 < kernels.size(); ++i)
        if (std::strcmp(kernels[i]->name, known.slower) == 0) {
          std::swap(kernels[i], kernels[i + 1]);
          break;
        }
      order = "known for " + processor;
      return;
    }
    time();
  }

  // An older set goes before a newer one where it is faster by a tenth, more than two measurements differ: results must
  // not change from process to process with the choice. The portable set stays the last.
  void time() {
    const size_t count = kernels.size() - 1;
    if (count < 2) {
      order = "the only vector instructions of " + processor;
      return;
    }
    std::vector<const Kernels*> vectors(kernels.begin(), kernels.end() - 1);
    std::vector<double> seconds = time_trials(vectors);
    for (size_t pass = 1; pass < count; ++pass)
      for (size_t i = 0; i + 1 < count; ++i)
        if (1.1 * seconds[i + 1] < seconds[i]) {
          std::swap(kernels[i], kernels[i + 1]);
          std::swap(seconds[i], seconds[i + 1]);
        }
    order = "timed on " + processor + ":";
    for (size_t i = 0; i < count; ++i)
      order += std::string(i ? ", " : " ") + kernels[i]->name + " " +
               std::to_string(static_cast<int>(seconds[i] / seconds[0] * 100)) + "%";
    order += " of the first one's time";
  }
};

const Sets& sets() {
  static const Sets found;
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& chosen_kernels() {
  const Kernels* kernels = chosen.load(std::memory_order_relaxed);
  return kernels ? *kernels : *sets().kernels.front();
}

}  // namespace rmadapter

int rmadapter_cpu_choose(const char* name) {
  for (const rmadapter::Kernels* kernels : rmadapter::sets().kernels) {
    if (name && std::strcmp(name, kernels->name) != 0) continue;
    rmadapter::chosen.store(kernels, std::memory_order_relaxed);
    return 1;
  }
  return 0;
}

const char* rmadapter_cpu_chosen() { return rmadapter::chosen_kernels().name; }

const char* rmadapter_cpu_available(int index) {
  const auto& found = rmadapter::sets().kernels;
  return index >= 0 && index < static_cast<int>(found.size()) ? found[index]->name : nullptr;
}

const char* rmadapter_cpu_order() { return rmadapter::sets().order.c_str(); }

double rmadapter_cpu_trial(const char* name) {
  for (const rmadapter::Kernels* kernels : rmadapter::sets().kernels)
    if (std::strcmp(name, kernels->name) == 0) return rmadapter::time_trials({kernels}).front();
  return -1;
}

const char* rmadapter_cpu_processor() { return rmadapter::sets().processor.c_str(); }

const char* rmadapter_cpu_left_out() {
#if defined(RMADAPTER_X86) && !defined(RMADAPTER_TILES)
  return "amx_bf16, which needs Linux and GCC 11 or Clang 12";
#else
  return "";
#endif
}
