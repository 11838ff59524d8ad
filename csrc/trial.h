// How fast kernels are on the processor at hand: forward in bf16 on a few rows, some milliseconds for all sets together.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "problem.h"

namespace rmadapter {

// Memory of the trial, every byte such that bf16 and fp32 numbers of it are small.
class TrialMemory {
 public:
  explicit TrialMemory(size_t bytes) : bytes_(bytes + 64, 0x3c) {}
  char* data() { return bytes_.data() + (64 - reinterpret_cast<uintptr_t>(bytes_.data()) % 64); }

 private:
  std::vector<char> bytes_;
};

// Seconds of each, the least of several rounds in which all take turns.
inline std::vector<double> time_trials(const std::vector<const Kernels*>& sets) {
  constexpr int64_t M = 96, D = 768, R = 32;
  constexpr int ROUNDS = 5;
  TrialMemory x(2 * M * D), out(2 * M * D), weights(4 * D * R), loss(4 * M);
  Problem problem;
  problem.M = M;
  problem.D = D;
  problem.r = problem.h = R;
  problem.dtype = Dtype::bf16;
  problem.x = {x.data(), M, 0, 2 * D, Dtype::bf16};
  problem.out = {out.data(), M, 0, 2 * D, Dtype::bf16};
  problem.rec_loss = reinterpret_cast<float*>(loss.data());
  const int64_t columns[weight_count] = {R, 0, D, 0, R, 0, D, 0};
  for (int i = 0; i < weight_count; ++i) problem.weights[i] = {weights.data(), 4 * columns[i], 4, Dtype::f32};

  std::vector<double> seconds(sets.size(), 1e9);
  for (int round = 0; round < ROUNDS; ++round)
    for (size_t i = 0; i < sets.size(); ++i) {
      const Kernels& kernels = *sets[i];
      const Plan plan = kernels.plan_forward(problem);
      TrialMemory packed(plan.packed_bytes), scratch(plan.scratch_bytes);
      ThreadState before;
      kernels.begin(problem, &before);
      kernels.pack_forward(problem, packed.data(), 0, 1);
      for (int run = 0; run < 2; ++run) {  // the first one finds the caches cold
        const auto start = std::chrono::steady_clock::now();
        for (int64_t first = 0; first < M; first += plan.block)
          kernels.forward(problem, packed.data(), scratch.data(), first, std::min(plan.block, M - first));
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        seconds[i] = std::min(seconds[i], taken.count());
      }
      kernels.end(problem, before);
    }
  return seconds;
}

}  // namespace rmadapter
