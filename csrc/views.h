// Tensors as the kernels see them, through LibTorch's stable ABI.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "problem.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rmadapter {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: throw std::runtime_error(std::string(name) + " has another dtype; valid: float32, bfloat16, float16");
  }
}

// Of inputs (which are never written to) and of outputs that nobody else has seen.
inline char* address_of(const Tensor& tensor) {
  return const_cast<char*>(static_cast<const char*>(tensor.const_data_ptr()));
}

inline Matrix matrix_of(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor.has_value()) return {};
  const int64_t size = static_cast<int64_t>(tensor->element_size());
  const int64_t dims = tensor->dim();
  return {address_of(*tensor), dims > 1 ? tensor->stride(0) * size : 0,
          tensor->stride(dims - 1) * size, dtype_of(*tensor, name)};
}

// The rows of [..., D] where D is contiguous and the other dimensions collapse to two at most.
inline bool rows_of(const Tensor& tensor, const char* name, Rows* rows) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t last = tensor.dim() - 1;
  const int64_t size = static_cast<int64_t>(tensor.element_size());
  *rows = {address_of(tensor), 1, 0, 0, dtype_of(tensor, name)};
  if (tensor.numel() == 0) return true;  // which torch calls contiguous, whatever its strides
  if (strides[last] != 1) return false;
  int64_t count[2] = {1, 1}, step[2] = {0, 0};  // the innermost first
  int found = 0;
  for (int64_t i = last - 1; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (found > 0 && strides[i] == step[found - 1] * count[found - 1]) {
      count[found - 1] *= sizes[i];
    } else if (found == 2) {
      return false;
    } else {
      count[found] = sizes[i];
      step[found++] = strides[i];
    }
  }
  rows->inner = count[0];
  rows->outer_stride = step[1] * size;
  rows->inner_stride = step[0] * size;
  return true;
}

// The rows of an input; where its layout cannot be taken as it is, those of a copy that `kept` owns.
inline Rows input_rows(const Tensor& tensor, const char* name, std::vector<Tensor>& kept) {
  Rows rows;
  if (rows_of(tensor, name, &rows)) return rows;
  kept.push_back(torch::stable::contiguous(tensor));
  if (!rows_of(kept.back(), name, &rows)) throw std::runtime_error(std::string(name) + " has no contiguous copy");
  return rows;
}

// Page faults cost 40% of a forward pass where outputs are new memory in pages of 4 KB.
inline void prefer_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (end - begin > 2 * page && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// An output like `like`, in the same memory layout; `rows` are its own, or those of a temporary that `finish` copies.
class OutputRows {
 public:
  OutputRows(const Tensor& like, const char* name) : tensor_(torch::stable::empty_like(like)) {
    prefer_huge_pages(tensor_);
    if (rows_of(tensor_, name, &rows_)) return;
    temporary_ = torch::stable::new_empty(like, like.sizes());
    if (!rows_of(*temporary_, name, &rows_)) throw std::runtime_error(std::string(name) + " has no contiguous form");
  }

  const Rows& rows() const { return rows_; }

  Tensor finish() {
    if (temporary_.has_value()) torch::stable::copy_(tensor_, *temporary_);
    return tensor_;
  }

 private:
  Tensor tensor_;
  std::optional<Tensor> temporary_;
  Rows rows_;
};

}  // namespace rmadapter
