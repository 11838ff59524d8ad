// Which kernels run: the best that this processor has, or a lower one that was asked for.
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
// Makes the kernels of this name the chosen ones; null: the best. Returns 1, or 0 where there are none for this processor.
EXPORT int rmadapter_cpu_choose(const char* name);
// The chosen kernels' name.
EXPORT const char* rmadapter_cpu_chosen();
// The names that rmadapter_cpu_choose takes here, the best first: number `index`, or null past the end.
EXPORT const char* rmadapter_cpu_available(int index);
}
