// The cuBLAS functions that native/cuda calls, on column-major matrices, by their definition.
#pragma once

#include "cuda_runtime.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_ALLOC_FAILED, CUBLAS_STATUS_INVALID_VALUE };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasSideMode_t { CUBLAS_SIDE_LEFT };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER, CUBLAS_FILL_MODE_UPPER };
enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
struct cublasContext {
  cudaStream_t stream = nullptr;
  int device = 0;  // on which it was made
};
using cublasHandle_t = cublasContext*;

inline const char* cublasGetStatusString(cublasStatus_t) { return "an error of the emulation"; }
inline cublasStatus_t cublasCreate(cublasHandle_t* library) {
  *library = new cublasContext;
  cudaGetDevice(&(*library)->device);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t library) {
  delete library;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t library, cudaStream_t stream) {
  emulation::require_device(library->device);
  library->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 130000;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t transa, cublasOperation_t transb, int64_t m, int64_t n,
                               int64_t k, const void* alpha, const void* a, cudaDataType a_type, int64_t lda, const void* b,
                               cudaDataType b_type, int64_t ldb, const void* beta, void* c, cudaDataType c_type, int64_t ldc,
                               cublasComputeType_t, cublasGemmAlgo_t);
// Both with A lower triangular, op(A) = A or Aᵀ. trsm: X with op(A) X = alpha B in the place of B; trmm: C = alpha op(A) B.
cublasStatus_t cublasStrsm_64(cublasHandle_t, cublasSideMode_t, cublasFillMode_t, cublasOperation_t, cublasDiagType_t,
                              int64_t m, int64_t n, const float* alpha, const float* a, int64_t lda, float* b, int64_t ldb);
cublasStatus_t cublasStrmm_64(cublasHandle_t, cublasSideMode_t, cublasFillMode_t, cublasOperation_t, cublasDiagType_t,
                              int64_t m, int64_t n, const float* alpha, const float* a, int64_t lda, const float* b,
                              int64_t ldb, float* c, int64_t ldc);
