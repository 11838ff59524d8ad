#include "kernels_common.h"

namespace rmadapter {
namespace {
#include "numbers.h"
#include "vector_portable.h"
#include "kernels.inc"
}  // namespace

extern const Kernels portable_kernels = table("portable");
}  // namespace rmadapter
