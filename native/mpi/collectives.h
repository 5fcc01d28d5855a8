// Tensors among processes that work on one job: sums and copies, in pieces that MPI's counts can say.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend.h"
#include "core/tensor.h"

namespace sparsegpt {

// Moves bytes among ranks, which all make the same calls in the same order.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // `bytes` to each rank and as many from each, in the order of ranks.
  virtual void all_to_all(const std::byte* send, std::byte* receive, int bytes) = 0;
  // `bytes` of each rank, whose own lie in their place.
  virtual void all_gather(std::byte* all, int bytes) = 0;
  virtual void broadcast(std::byte* data, int bytes, int root) = 0;
};

// The sum over ranks of x, f32 and contiguous, in its place; all ranks get the same bits. The summands of an element are added as a
// binary tree over the ranks, ((0 + 1) + (2 + 3)) + ..., so that the sum depends on nothing but them. `upper`: only of the upper
// triangle, the diagonal included; the rest stays as it is.
void all_reduce(Backend& backend, Transport& transport, const Tensor& x, bool upper);

// The elements of `root` in the place of those of all other ranks; x is contiguous, of any type.
void broadcast(Backend& backend, Transport& transport, const Tensor& x, int root);

}  // namespace sparsegpt
