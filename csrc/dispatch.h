// Which kernels run: the fastest ones that this processor has, or others that were asked for.
#pragma once

#include "problem.h"

namespace rmadapter {

const Kernels& chosen_kernels();

}  // namespace rmadapter

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT __declspec(dllexport)
#endif

extern "C" {
// Makes the kernels of this name the chosen ones; null: the fastest. Returns 1, or 0 where there are none for this processor.
EXPORT int rmadapter_cpu_choose(const char* name);
// The chosen kernels' name.
EXPORT const char* rmadapter_cpu_chosen();
// The names that rmadapter_cpu_choose takes here, the fastest first: number `index`, or null past the end.
EXPORT const char* rmadapter_cpu_available(int index);
// Where their order comes from, in words.
EXPORT const char* rmadapter_cpu_order();
// Seconds that the kernels of this name take for a few tokens in bf16, by which sets of an unknown processor are ordered;
// negative where there are none.
EXPORT double rmadapter_cpu_trial(const char* name);
// The processor's vendor, family and model, such as "GenuineIntel 6 207"; its architecture where it has no such numbers.
EXPORT const char* rmadapter_cpu_processor();
// Sets that the compiler of this library could not make, and why; "" where there are none.
EXPORT const char* rmadapter_cpu_left_out();
}
