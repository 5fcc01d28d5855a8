#include "cuda/status.h"

#include "core/error.h"

namespace sparsegpt::cuda {

std::string in_mib(size_t bytes) { return std::to_string((bytes + (size_t{1} << 20) - 1) >> 20) + " MiB"; }

void throw_out_of_memory(size_t wanted) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  const std::string size = wanted > 0 ? in_mib(wanted) + " were wanted, " : "";
  throw Error("OUT_OF_MEMORY",
              "the GPU has no memory left: " + size + in_mib(free) + " of " + in_mib(total) +
                  " are free. --offload DIR, --dtype bfloat16, --sequential block and fewer or shorter samples "
                  "(--samples, --seqlen) need less, --device cpu needs none");
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not show again in a later call
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("cuBLAS: ") + what + ": " + cublasGetStatusString(status));
}

void check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("cuSOLVER: ") + what + ": status " + std::to_string(static_cast<int>(status)));
}

}  // namespace sparsegpt::cuda
