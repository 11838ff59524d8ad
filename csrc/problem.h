// What one call of the operator computes, and the kernels that compute it: plain data, no torch, no intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rmadapter {

enum class Dtype { f32, bf16, f16 };
enum class Activation { gelu, relu, quick_gelu, silu };
enum class Objective { l2, l1, cosine };

// Rows of D elements each, contiguous inside; row m is at base + (m / inner) * outer_stride + (m % inner) * inner_stride.
// Strides in bytes. base null: the tensor is absent.
struct Rows {
  char* base = nullptr;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  Dtype dtype = Dtype::f32;
};

// A matrix (or, with one stride unused, a vector) of any strides, in bytes. data null: absent.
struct Matrix {
  char* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  Dtype dtype = Dtype::f32;
};

enum Weight { w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2, weight_count };

struct Problem {
  int64_t M = 0, D = 0, r = 0, h = 0;  // h = 0: no reconstruction branch
  Dtype dtype = Dtype::f32;            // of x
  Activation activation = Activation::gelu;
  Objective objective = Objective::l2;
  bool local = true;
  float scale = 1, branch_grad_scale = 1;

  bool normalise = false;
  Matrix norm_weight, norm_bias;
  float norm_eps = 0;

  Rows x, residual, out, d_out, dx;
  Matrix weights[weight_count];
  float* rec_loss = nullptr;      // [M]
  const float* d_loss = nullptr;  // [M]
  Matrix gradients[weight_count];  // data null: not needed
};

// Sizes that depend on the problem and on the width of the vectors, fixed before any work starts.
struct Plan {
  int64_t block = 0;           // rows of a block at most, a multiple of `tile`
  int64_t tile = 0;            // rows that a product takes at once: fewer cost as much
  int64_t chunk = 0;           // rows whose weight gradients are summed apart from others', at most
  size_t packed_bytes = 0;     // weights in the order in which the products read them, shared by all threads
  size_t scratch_bytes = 0;    // of one thread
  int64_t gradient_floats = 0;  // of the weight-gradient sums, one set for each thread and one for the total
};

// A thread's own state that kernels set and put back.
struct ThreadState {
  alignas(64) char bytes[64] = {};
};

// One instruction set's kernels. A part is one of `parts` independent pieces of work.
struct Kernels {
  const char* name;
  void (*begin)(const Problem&, ThreadState* before);
  void (*end)(const Problem&, const ThreadState& before);
  // Eight words that change with anything that pack_forward reads; false where the weights do not lie in one piece each.
  bool (*fingerprint)(const Problem&, uint64_t* to);
  Plan (*plan_forward)(const Problem&);
  void (*pack_forward)(const Problem&, char* packed, int part, int parts);
  void (*forward)(const Problem&, const char* packed, char* scratch, int64_t first, int64_t rows);
  Plan (*plan_backward)(const Problem&);
  void (*pack_backward)(const Problem&, char* packed, int part, int parts);
  // Writes dx of the rows and adds to the sums.
  void (*backward)(const Problem&, const char* packed, char* scratch, float* sums, int64_t first, int64_t rows);
  void (*add)(float* total, const float* sums, int64_t count);
  void (*write_gradients)(const Problem&, const float* total, int part, int parts);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__) && defined(__GNUC__)
#define RMADAPTER_X86 1
// Tiles need a compiler that knows them and Linux, which is asked for them. RMADAPTER_WITHOUT_TILES leaves them out, as an
// older compiler does.
#if defined(__linux__) && !defined(RMADAPTER_WITHOUT_TILES) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define RMADAPTER_TILES 1
extern const Kernels amx_bf16_kernels;
#endif
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;
#endif

}  // namespace rmadapter
