// The statuses of CUDA, cuBLAS and cuSOLVER as errors.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <string>

namespace sparsegpt::cuda {

// Throw Error: OUT_OF_MEMORY, INTERNAL.
void check(cudaError_t status, const char* what);
void check(cublasStatus_t status, const char* what);
void check(cusolverStatus_t status, const char* what);

// wanted: bytes, 0 when unknown.
[[noreturn]] void throw_out_of_memory(size_t wanted);

std::string in_mib(size_t bytes);

}  // namespace sparsegpt::cuda
