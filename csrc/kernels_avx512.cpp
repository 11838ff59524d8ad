#include "kernels_common.h"

#ifdef RMADAPTER_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace rmadapter {
namespace {
#include "numbers.h"
#include "vector_avx512.h"
#include "kernels.inc"
}  // namespace

extern const Kernels avx512_kernels = table("avx512");
}  // namespace rmadapter

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // RMADAPTER_X86
