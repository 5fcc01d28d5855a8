// The cuSOLVER functions that native/cuda calls.
#pragma once

#include "cublas_v2.h"

enum cusolverStatus_t { CUSOLVER_STATUS_SUCCESS, CUSOLVER_STATUS_ALLOC_FAILED, CUSOLVER_STATUS_INVALID_VALUE };
struct cusolverDnContext {
  cudaStream_t stream = nullptr;
  int device = 0;
};
struct cusolverDnParams;
using cusolverDnHandle_t = cusolverDnContext*;
using cusolverDnParams_t = cusolverDnParams*;

inline cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* library) {
  *library = new cusolverDnContext;
  cudaGetDevice(&(*library)->device);
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t library) {
  delete library;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t*) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t) { return CUSOLVER_STATUS_SUCCESS; }
inline cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t library, cudaStream_t stream) {
  emulation::require_device(library->device);
  library->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
inline cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t, int64_t n,
                                                    cudaDataType, const void*, int64_t, cudaDataType, size_t* device,
                                                    size_t* host) {
  *device = static_cast<size_t>(n) * 1000;
  *host = 16;
  return CUSOLVER_STATUS_SUCCESS;
}
// A = Uᵀ U; the strictly lower triangle is not touched. *info = i when the i-th pivot, from 1, is not positive.
cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t uplo, int64_t n, cudaDataType,
                                  void* a, int64_t lda, cudaDataType, void*, size_t, void*, size_t, int* info);
