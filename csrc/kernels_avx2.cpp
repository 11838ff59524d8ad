#include "kernels_common.h"

#ifdef RMADAPTER_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace rmadapter {
namespace {
#include "numbers.h"
#include "vector_avx2.h"
#include "kernels.inc"
}  // namespace

extern const Kernels avx2_kernels = table("avx2");
}  // namespace rmadapter

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // RMADAPTER_X86
