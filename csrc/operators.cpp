// rmadapter::cpu_forward and rmadapter::cpu_backward for CPU tensors; schemas and shapes: rmadapter_kernels/ops.py.
// Arguments have been checked in Python (checks.py, cpu.py); errors here are for callers of the raw operators.

#include <array>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "dispatch.h"
#include "scheduling.h"
#include "views.h"

namespace rmadapter {
namespace {

constexpr int64_t MIN_WIDTH = 64, MAX_WIDTH = 2048, MAX_BOTTLENECK = 128;

template <size_t N>
int index_of(const std::string& name, const char* argument, const std::array<const char*, N>& names) {
  for (size_t i = 0; i < N; ++i)
    if (name == names[i]) return static_cast<int>(i);
  throw std::runtime_error(std::string(argument) + " is '" + name + "', which the cpu backend does not know");
}

void expect(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

// What forward and backward have in common.
Problem make_problem(const Tensor& x, const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                     const std::optional<double>& norm_eps,
                     const std::array<std::optional<Tensor>, weight_count>& weights, double scale,
                     const std::string& activation, const std::string& objective, bool local,
                     double branch_grad_scale) {
  static constexpr std::array<const char*, weight_count> names = {"w_down", "b_down", "w_up",   "b_up",
                                                                  "w_rec1", "b_rec1", "w_rec2", "b_rec2"};
  expect(x.dim() >= 1 && x.is_cpu(), "x is not a CPU tensor [..., D]");
  Problem problem;
  problem.D = x.size(x.dim() - 1);
  problem.r = weights[w_down]->size(1);
  problem.h = weights[w_rec1].has_value() ? weights[w_rec1]->size(1) : 0;
  expect(problem.D % 16 == 0 && problem.D >= MIN_WIDTH && problem.D <= MAX_WIDTH,
         "D is not a multiple of 16 from 64 to 2048");
  expect(problem.r >= 1 && problem.r <= MAX_BOTTLENECK && problem.h <= MAX_BOTTLENECK, "r or h is not 1 to 128");
  problem.M = x.numel() / problem.D;
  problem.dtype = dtype_of(x, "x");
  const int64_t D = problem.D, r = problem.r, h = problem.h;
  const int64_t shapes[weight_count][2] = {{D, r}, {0, r}, {r, D}, {0, D}, {r, h}, {0, h}, {h, D}, {0, D}};
  for (int i = 0; i < weight_count; ++i) {
    problem.weights[i] = matrix_of(weights[i], names[i]);
    if (i >= w_rec1 && h == 0) {
      expect(!weights[i].has_value(), "w_rec1 is None but another weight of the reconstruction is not");
      continue;
    }
    expect(weights[i].has_value(), "a weight is None");
    const int64_t dims = weights[i]->dim();
    expect(dims == (shapes[i][0] ? 2 : 1) && weights[i]->size(dims - 1) == shapes[i][1] &&
               (dims == 1 || weights[i]->size(0) == shapes[i][0]),
           "a weight has another shape than x and w_down ask for");
  }
  problem.activation = static_cast<Activation>(index_of<4>(activation, "activation", {"gelu", "relu", "quick_gelu", "silu"}));
  problem.objective = static_cast<Objective>(index_of<3>(objective, "objective", {"l2", "l1", "cosine"}));
  problem.local = local;
  problem.scale = static_cast<float>(scale);
  problem.branch_grad_scale = static_cast<float>(branch_grad_scale);
  problem.normalise = norm_eps.has_value();
  if (problem.normalise) {
    for (const auto& tensor : {norm_weight, norm_bias})
      expect(!tensor.has_value() || tensor->numel() == D, "a norm tensor does not have D elements");
    problem.norm_weight = matrix_of(norm_weight, "norm's weight");
    problem.norm_bias = matrix_of(norm_bias, "norm's bias");
    problem.norm_eps = static_cast<float>(*norm_eps);
  }
  return problem;
}

void expect_shape_of(const Tensor& tensor, const Tensor& x, const char* message) {
  const auto sizes = tensor.sizes();
  const auto expected = x.sizes();
  bool same = sizes.size() == expected.size();
  for (size_t i = 0; same && i < sizes.size(); ++i) same = sizes[i] == expected[i];
  expect(same, message);
}

std::tuple<Tensor, Tensor> forward(Tensor x, std::optional<Tensor> residual, std::optional<Tensor> norm_weight,
                                   std::optional<Tensor> norm_bias, std::optional<double> norm_eps, Tensor w_down,
                                   Tensor b_down, Tensor w_up, Tensor b_up, std::optional<Tensor> w_rec1,
                                   std::optional<Tensor> b_rec1, std::optional<Tensor> w_rec2,
                                   std::optional<Tensor> b_rec2, double scale, std::string activation,
                                   std::string objective, bool local, double branch_grad_scale) {
  Problem problem = make_problem(x, norm_weight, norm_bias, norm_eps,
                                 {w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2}, scale, activation,
                                 objective, local, branch_grad_scale);
  std::vector<Tensor> kept;
  problem.x = input_rows(x, "x", kept);
  if (residual.has_value()) {
    expect_shape_of(*residual, x, "residual has another shape than x");
    problem.residual = input_rows(*residual, "residual", kept);
  }
  OutputRows out(residual.has_value() ? *residual : x, "out");
  problem.out = out.rows();
  const auto sizes = x.sizes();
  const std::vector<int64_t> loss_sizes =
      problem.h == 0 ? std::vector<int64_t>{0} : std::vector<int64_t>(sizes.begin(), sizes.begin() + x.dim() - 1);
  Tensor loss = torch::stable::new_empty(x, loss_sizes, ScalarType::Float);
  problem.rec_loss = static_cast<float*>(loss.data_ptr());
  if (problem.M > 0) run_forward(chosen_kernels(), problem);
  return {out.finish(), loss};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(Tensor x, std::optional<Tensor> d_out, std::optional<Tensor> d_loss,
                   std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::optional<double> norm_eps,
                   Tensor w_down, Tensor b_down, Tensor w_up, Tensor b_up, std::optional<Tensor> w_rec1,
                   std::optional<Tensor> b_rec1, std::optional<Tensor> w_rec2, std::optional<Tensor> b_rec2,
                   double scale, std::string activation, std::string objective, bool local, double branch_grad_scale,
                   std::vector<bool> needs) {
  const std::array<std::optional<Tensor>, weight_count> weights = {w_down, b_down, w_up,   b_up,
                                                                   w_rec1, b_rec1, w_rec2, b_rec2};
  Problem problem = make_problem(x, norm_weight, norm_bias, norm_eps, weights, scale, activation, objective, local,
                                 branch_grad_scale);
  expect(needs.size() == weight_count + 1, "needs does not have 9 elements");
  std::vector<Tensor> kept;
  kept.reserve(3);
  problem.x = input_rows(x, "x", kept);
  if (d_out.has_value()) {
    expect_shape_of(*d_out, x, "d_out has another shape than x");
    problem.d_out = input_rows(*d_out, "d_out", kept);
  }
  if (d_loss.has_value() && problem.h > 0) {
    expect(d_loss->numel() == problem.M && dtype_of(*d_loss, "d_loss") == Dtype::f32, "d_loss is not fp32, one a token");
    kept.push_back(torch::stable::contiguous(*d_loss));
    problem.d_loss = static_cast<const float*>(kept.back().data_ptr());
  }

  std::vector<Tensor> found;
  found.reserve(weight_count + 1);
  std::optional<OutputRows> dx;
  if (needs[0]) {
    dx.emplace(x, "dx");
    problem.dx = dx->rows();
  }
  for (int i = 0; i < weight_count; ++i) {
    if (needs[i + 1]) {
      expect(weights[i].has_value(), "needs asks for the gradient of a weight that is None");
      found.push_back(torch::stable::empty_like(*weights[i]));
      problem.gradients[i] = matrix_of(found.back(), "gradient");
    } else {
      found.push_back(torch::stable::new_empty(x, std::vector<int64_t>{0}));
    }
  }
  run_backward(chosen_kernels(), problem);
  const Tensor first = dx.has_value() ? dx->finish() : torch::stable::new_empty(x, std::vector<int64_t>{0});
  return {first, found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]};
}

}  // namespace
}  // namespace rmadapter

STABLE_TORCH_LIBRARY_IMPL(rmadapter, CPU, library) {
  library.impl("cpu_forward", TORCH_BOX(&rmadapter::forward));
  library.impl("cpu_backward", TORCH_BOX(&rmadapter::backward));
}
