// Headers and macros of the kernels; everything of the standard library comes from here, before any instruction set is
// switched on: its inline functions merge over files, and must run on every processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "problem.h"

#ifdef RMADAPTER_X86
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
// The intrinsics of GCC 12 name undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#else
#define INLINE inline
#define INLINE_LAMBDA
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif
