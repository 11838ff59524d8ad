#include "kernels_common.h"

#ifdef RMADAPTER_TILES

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

#define RMADAPTER_BF16 1
#define RMADAPTER_AMX 1

namespace rmadapter {
namespace {
#include "numbers.h"
#include "vector_avx512.h"
#include "kernels.inc"
}  // namespace

extern const Kernels amx_bf16_kernels = table("amx_bf16");
}  // namespace rmadapter

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(RMADAPTER_X86)
#pragma message("the amx_bf16 kernels are left out: they need Linux and GCC 11 or Clang 12")
#endif  // RMADAPTER_TILES
