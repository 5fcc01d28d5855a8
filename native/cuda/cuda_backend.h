// The CUDA backend. Its operations are beside their kernels, in the .cu files: CudaBackend::enqueue puts one into the stream.
//
// Nothing waits for the GPU but what has to hand something to the host: download, WriteFile, synchronize, time, the outcome of a
// factorisation, and token ids that choose rows of a mapped table. What Cast and Transpose read from a mapped file arrives while
// the operations after them run; other operands in host memory are copied for the time of the operation.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/backend.h"
#include "cuda/context.h"

namespace sparsegpt::cuda {

// An operand of a product, row-major; `transposed` when its rows are the columns of the factor.
struct Operand {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed = false;
};
inline Operand operand(const Tensor& t) { return {t.bytes(), t.dtype, t.stride}; }
inline Operand transposed(const Tensor& t) { return {t.bytes(), t.dtype, t.stride, true}; }

class CudaBackend : public Backend {
 public:
  // On one of the devices that probe() lists. Throws DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
  explicit CudaBackend(int index);
  ~CudaBackend() override;

  std::string description() const override;
  void synchronize() override;
  double time(const std::function<void()>& work) override;
  std::shared_ptr<Storage> allocate(size_t bytes) override;
  bool in_host_memory() const override { return false; }

 protected:
  void copy_in(const Tensor& out, const void* host) override;
  void copy_out(void* host, const Tensor& tensor) override;
  // Calls go to the device that their thread has selected.
#define SPARSEGPT_ENQUEUE(Operation)                  \
  void compute(const Operation& operation) override { \
    context_->select();                               \
    enqueue(operation);                               \
  }                                                   \
  void enqueue(const Operation& operation);
  SPARSEGPT_OPERATIONS(SPARSEGPT_ENQUEUE)
#undef SPARSEGPT_ENQUEUE

 private:
  Tensor scratch(DType dtype, int64_t rows, int64_t columns) { return context_->scratch(dtype, rows, columns); }
  // The tensor itself, or a copy in device memory for the time of the operation. An empty tensor stays empty.
  Tensor local(const Tensor& tensor);
  Tensor local(const Tensor& tensor, DType dtype);
  // Counters at zero.
  Tensor zeroed(int64_t count);
  void clear(const Tensor& tensor);

  // For kernels that report position_and_id() (element.cuh) of an id for which there is no row: message(position, id).
  int64_t* watch_ids(const char* code, std::function<std::string(int64_t, int64_t)> message);
  // inspect.cu: NON_FINITE with message(row) for the first row of a float32 matrix that has a NaN or infinite entry; `upper`: right
  // of the diagonal (and on it) only.
  void watch_finite(const Tensor& matrix, bool upper, std::function<std::string(int64_t)> message);

  // products.cu: C = alpha · A B + beta · C; A [m, k], B [k, n], C [m, n] f32 or of the operands' type.
  void gemm(int64_t m, int64_t n, int64_t k, float alpha, const Operand& a, const Operand& b, float beta, const Tensor& c);
  // x = x R⁻¹ or x R⁻ᵀ for rows of [count, n], with R [n, n] upper triangular, rows r_stride apart.
  void solve_triangle(float* x, int64_t count, int64_t n, const float* r, int64_t r_stride, bool transposed);
  // out = x R or x Rᵀ for rows of [count, n], with R [n, n] upper triangular; out is not x.
  void multiply_triangle(float* out, const float* x, int64_t count, int64_t n, const float* r, bool transposed);

  std::shared_ptr<Context> context_;
  cudaStream_t stream_;
  Tensor clock_origin_;  // see Timestamp; its memory needs the context
};

inline unsigned long long* counters(const Tensor& t) { return reinterpret_cast<unsigned long long*>(t.bytes()); }

}  // namespace sparsegpt::cuda
