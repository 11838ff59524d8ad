// Who computes which rows: work handed out in order to torch's own threads, gradients added up in that order.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>

#include <torch/csrc/stable/ops.h>

#include "packed_weights.h"
#include "problem.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace rmadapter {

// Memory that a thread keeps from call to call, since fresh pages would cost more than the work on them: 1.5 MB at
// D = 768, independent of the number of tokens.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  char* at_least(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
      size_ = bytes;
    }
#ifdef RMADAPTER_POISON
    std::memset(data_, 0xff, size_);  // not numbers, so that what is read before it is written shows
#endif
    return data_;
  }

 private:
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }

  char* data_ = nullptr;
  size_t size_ = 0;
};

// Denormal numbers count as zero while this lives: a product with them takes twenty times as long on some processors.
class NoDenormals {
 public:
#if defined(__SSE2__)
  NoDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~NoDenormals() { _mm_setcsr(saved_); }
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;

 private:
  unsigned saved_;
#else
  NoDenormals() {}
#endif
};

// How many threads are worth waking for the products of so many tokens: one for each 2 MFLOP (20 us), at most torch's
// number. On a busy machine a second thread that 1 token waits for cost 24 ms in place of 0.1.
inline int64_t threads_for(const Problem& problem) {
  const int64_t worth = problem.M * problem.D * (2 * problem.r + problem.h) / (1 << 20);
  const int64_t threads = torch::stable::get_num_threads();
  return worth < 1 ? 1 : worth < threads ? worth : threads;
}

// What the kernels need of a thread while this lives.
class Prepared {
 public:
  Prepared(const Kernels& kernels, const Problem& problem) : kernels_(kernels), problem_(problem) {
    kernels_.begin(problem_, &before_);
  }
  ~Prepared() { kernels_.end(problem_, before_); }
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

 private:
  const NoDenormals no_denormals_;
  const Kernels& kernels_;
  const Problem& problem_;
  ThreadState before_;
};

// Calls work(item) once for each item, on up to `threads` threads, handing items out in ascending order.
// work must not throw: older versions of torch lose what is thrown inside parallel_for.
template <class Worker>
void for_items(const Kernels& kernels, const Problem& problem, int64_t count, int64_t threads,
               const Worker& make_worker) {
  std::atomic<int64_t> next{0};
  if (threads > count) threads = count;
  const auto body = [&](int64_t, int64_t) {
    const Prepared prepared(kernels, problem);
    auto work = make_worker();
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(item);
  };
  if (threads <= 1) {
    body(0, 1);
  } else {
    torch::stable::parallel_for(0, threads, 1, body);
  }
}

// Adds parts to a total strictly in the order 0, 1, 2, ..., whichever thread is ready first: sums do not depend on the
// number of threads. Nobody waits for a part that has not begun, since parts are begun in order.
class InOrder {
 public:
  template <class F>
  void add(int64_t part, const F& f) {
    for (int spins = 0; turn_.load(std::memory_order_acquire) != part; ++spins)
      if (spins > 1000) std::this_thread::yield();
    f();
    turn_.store(part + 1, std::memory_order_release);
  }

 private:
  std::atomic<int64_t> turn_{0};
};

// Rows of a block, at most plan.block, such that `threads` have the same number of rows to do. At 788 tokens of width 768
// two threads with blocks of 48 would do 9 and 8, with blocks of 36 they do 11 each (9% more work a second).
inline int64_t balanced_block(int64_t M, const Plan& plan, int64_t threads) {
  int64_t best = plan.block, least = INT64_MAX;
  for (int64_t block = plan.block; block >= plan.tile && 2 * block >= plan.block; block -= plan.tile) {
    const int64_t blocks = (M + block - 1) / block;
    const int64_t rows = (blocks + threads - 1) / threads * block;
    if (rows < least) {
      least = rows;
      best = block;
    }
  }
  return best;
}

inline thread_local Arena shared_arena;  // of the calling thread: packed weights, total
inline thread_local Arena thread_arena;

constexpr int PACK_PARTS = 8;

struct Packed {
  const char* data;
  std::shared_ptr<const PackedWeights> kept;  // null: they are in the calling thread's arena
};

// Those of an earlier call, or new ones.
inline Packed packed_weights(const Kernels& kernels, const Problem& problem, const Plan& plan, int64_t threads) {
  static PackedCache& cache = *new PackedCache;  // outlives every thread
  PackedCache::Key key(kernels, problem);
  bool again = false;
  std::shared_ptr<const PackedWeights> kept;
  if (kernels.fingerprint(problem, key.fingerprint)) kept = cache.find(key, &again);
  if (kept) return {kept->data(), kept};
  if (again) kept = std::make_shared<PackedWeights>(plan.packed_bytes);
  char* packed = kept ? kept->data() : shared_arena.at_least(plan.packed_bytes);
  for_items(kernels, problem, PACK_PARTS, threads, [&] {
    return [&](int64_t part) { kernels.pack_forward(problem, packed, static_cast<int>(part), PACK_PARTS); };
  });
  // Another thread may have written to the weights in between.
  PackedCache::Key after(kernels, problem);
  if (kept && kernels.fingerprint(problem, after.fingerprint) && after == key) cache.keep(key, kept);
  return {packed, kept};
}

inline void run_forward(const Kernels& kernels, const Problem& problem) {
  const Plan plan = kernels.plan_forward(problem);
  const int64_t threads = threads_for(problem);
  const Packed weights = packed_weights(kernels, problem, plan, threads);
  const char* packed = weights.data;
  const int64_t size = balanced_block(problem.M, plan, threads);
  const int64_t blocks = (problem.M + size - 1) / size;
  for_items(kernels, problem, blocks, threads, [&] {
    char* scratch = thread_arena.at_least(plan.scratch_bytes);
    return [&, scratch](int64_t block) {
      const int64_t first = block * size;
      const int64_t rows = problem.M - first < size ? problem.M - first : size;
      kernels.forward(problem, packed, scratch, first, rows);
    };
  });
}

// Tokens are cut into chunks, whose number depends on the number of tokens alone; each chunk's gradients are summed by
// one thread, block after block, and added to the total in order.
inline void run_backward(const Kernels& kernels, const Problem& problem) {
  const Plan plan = kernels.plan_backward(problem);
  const int64_t threads = threads_for(problem);
  const size_t total_bytes = (plan.gradient_floats * sizeof(float) + 63) / 64 * 64;
  char* shared = shared_arena.at_least(total_bytes + plan.packed_bytes);
  float* total = reinterpret_cast<float*>(shared);
  char* packed = shared + total_bytes;
  for_items(kernels, problem, PACK_PARTS, threads, [&] {
    return [&](int64_t part) { kernels.pack_backward(problem, packed, static_cast<int>(part), PACK_PARTS); };
  });
  std::memset(total, 0, total_bytes);

  // An even number of chunks, the first ones a tile longer: at 788 tokens two threads have 396 each.
  const int64_t chunks = 2 * ((problem.M + 2 * plan.chunk - 1) / (2 * plan.chunk));
  const int64_t tiles = (problem.M + plan.tile - 1) / plan.tile;
  const auto start = [&](int64_t chunk) {
    const int64_t longer = chunk < tiles % chunks ? chunk : tiles % chunks;
    const int64_t row = (tiles / chunks * chunk + longer) * plan.tile;
    return row < problem.M ? row : problem.M;
  };
  InOrder in_order;
  for_items(kernels, problem, chunks, threads, [&] {
    char* scratch = thread_arena.at_least(total_bytes + plan.scratch_bytes);
    return [&, scratch](int64_t chunk) {
      float* sums = reinterpret_cast<float*>(scratch);
      const int64_t begin = start(chunk), end = start(chunk + 1);
      if (begin < end) std::memset(sums, 0, total_bytes);
      for (int64_t first = begin; first < end; first += plan.block) {
        const int64_t rows = end - first < plan.block ? end - first : plan.block;
        kernels.backward(problem, packed, scratch + total_bytes, sums, first, rows);
      }
      in_order.add(chunk, [&] {
        if (begin < end) kernels.add(total, sums, plan.gradient_floats);
      });
    };
  });
  for_items(kernels, problem, PACK_PARTS, threads, [&] {
    return [&](int64_t part) { kernels.write_gradients(problem, total, static_cast<int>(part), PACK_PARTS); };
  });
}

}  // namespace rmadapter
