// Threads as fibers, and the libraries.

// Some systems' compilers turn on a check that takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#if defined(SPARSEGPT_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif

#include "cusolverDn.h"
#include "half.h"

uint3 threadIdx{}, blockIdx{};
dim3 blockDim{1}, gridDim{1};

namespace emulation {

namespace {

constexpr size_t stack_bytes = size_t{128} << 10;
constexpr size_t slot_bytes = 32;

enum class State { ready, at_warp, at_block, done };

// A stack as AddressSanitizer knows it.
struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* shadow = nullptr;
};

// A fiber is made once, with a context, and runs one thread after another; jumps switch to it and back, since switching contexts
// costs system calls.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool made;
  std::unique_ptr<char[]> stack;
  Stack bounds;
  uint3 index;
  State state;
  // What the lane shares, in turn: a lane that is one operation ahead must not overwrite what others still read.
  alignas(8) char slots[2][slot_bytes];
  int turn;
};

std::vector<std::unique_ptr<Fiber>> fibers;
jmp_buf scheduler;
Stack scheduler_bounds;
Fiber* current = nullptr;
size_t current_number = 0;
void (*current_body)(const void*) = nullptr;
const void* current_context = nullptr;
std::unique_ptr<unsigned char[]> shared_memory;
unsigned char* shared_start = nullptr;
uint64_t random_state = 1;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

uint64_t next_random() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return random_state >> 33;
}

// AddressSanitizer has to be told which stack a jump goes to, and that it has arrived.
#if defined(SPARSEGPT_ADDRESS_SANITIZER)
void leave(Stack& from, const Stack& to) { __sanitizer_start_switch_fiber(&from.shadow, to.bottom, to.bytes); }
void arrive(Stack& at, Stack& from) { __sanitizer_finish_switch_fiber(at.shadow, &from.bottom, &from.bytes); }
#else
void leave(Stack&, const Stack&) {}
void arrive(Stack&, Stack&) {}
#endif

void wait(State state) {
  current->state = state;
  leave(current->bounds, scheduler_bounds);
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
  arrive(current->bounds, scheduler_bounds);
}

void start() {
  arrive(current->bounds, scheduler_bounds);
  for (;;) {
    current_body(current_context);
    wait(State::done);
  }
}

// Returns when the fiber waits.
__attribute__((noinline)) void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  leave(scheduler_bounds, fiber.bounds);
  if (_setjmp(scheduler) != 0) return arrive(scheduler_bounds, current->bounds);
  if (fiber.made) _longjmp(fiber.place, 1);
  fiber.made = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, start, 0);
  setcontext(&fiber.context);
}

void run_block(size_t count) {
  while (fibers.size() < count) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack = std::make_unique<char[]>(stack_bytes);
    fibers.back()->bounds = {fibers.back()->stack.get(), stack_bytes};
  }
  for (size_t i = 0; i < count; ++i) {
    Fiber& f = *fibers[i];
    const auto n = static_cast<unsigned>(i);
    f.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y)};
    f.state = State::ready;
    f.turn = 0;
  }
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = i;
  for (;;) {
    for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
    // Some warps stand still for a while, so that others get ahead of them.
    const uint64_t held = next_random() & next_random();
    bool waiting = false;
    for (size_t i : order) {
      if (fibers[i]->state != State::ready) continue;
      if (held >> (i / 32) & 1u) {
        waiting = true;
        continue;
      }
      current_number = i;
      resume(*fibers[i]);
    }
    size_t done = 0, at_block = 0, released = 0;
    for (size_t i = 0; i < count; ++i) {
      done += fibers[i]->state == State::done;
      at_block += fibers[i]->state == State::at_block;
    }
    if (done == count) return;
    if (at_block > 0 && at_block + done == count) {
      if (done > 0) die("a barrier that some threads never reach");
      for (size_t i = 0; i < count; ++i) fibers[i]->state = State::ready;
      continue;
    }
    for (size_t warp = 0; warp < count; warp += 32) {
      const size_t end = std::min(count, warp + 32);
      size_t here = 0;
      for (size_t i = warp; i < end; ++i) here += fibers[i]->state == State::at_warp;
      if (here != 32) continue;
      for (size_t i = warp; i < end; ++i) fibers[i]->state = State::ready;
      ++released;
    }
    if (released == 0 && !waiting) die("threads wait for each other at different places");
  }
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared, void (*body)(const void*), const void* context) {
  gridDim = grid;
  blockDim = block;
  current_body = body;
  current_context = context;
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads > 1024 || shared > 99 * 1024 || grid.y > 65535 || grid.z > 65535) die("a launch beyond the limits of a GPU");
  // Not one byte more than was asked for, so that an address checker sees what lies behind.
  shared_memory = std::make_unique<unsigned char[]>(shared + 16);
  shared_start = shared_memory.get();
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        std::memset(shared_start, 0xff, shared);
        run_block(threads);
      }
}

unsigned char* dynamic_shared() { return shared_start; }
void wait_for_block() { wait(State::at_block); }
unsigned lane() { return static_cast<unsigned>(current_number % 32); }

void share_with_warp(const void* value, size_t size) {
  if (size > slot_bytes) die("a value too large to share");
  std::memcpy(current->slots[current->turn], value, size);
  current->turn ^= 1;
  wait(State::at_warp);
}

const void* of_lane(unsigned lane) { return fibers[current_number / 32 * 32 + lane]->slots[current->turn ^ 1]; }

}  // namespace emulation

namespace {

double element(const void* data, cudaDataType type, int64_t index) {
  if (type == CUDA_R_32F) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == CUDA_R_16BF ? emulation::from_bf16(bits) : emulation::from_f16(bits);
}

void set_element(void* data, cudaDataType type, int64_t index, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = type == CUDA_R_16BF ? emulation::to_bf16(value) : emulation::to_f16(value);
  }
}

}  // namespace

cublasStatus_t cublasGemmEx_64(cublasHandle_t library, cublasOperation_t transa, cublasOperation_t transb, int64_t m,
                               int64_t n, int64_t k, const void* alpha, const void* a, cudaDataType a_type, int64_t lda,
                               const void* b, cudaDataType b_type, int64_t ldb, const void* beta, void* c,
                               cudaDataType c_type, int64_t ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
  const bool types = a_type == b_type && (c_type == a_type || c_type == CUDA_R_32F) &&
                     (a_type == CUDA_R_32F || compute == CUBLAS_COMPUTE_32F);
  if (!types || lda < (transa == CUBLAS_OP_N ? m : k) || ldb < (transb == CUBLAS_OP_N ? k : n) || ldc < m)
    return CUBLAS_STATUS_INVALID_VALUE;
  emulation::require_device(library->device);
  const float factor = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  emulation::enqueue(library->stream, [=] {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l)
          sum += element(a, a_type, transa == CUBLAS_OP_N ? l * lda + i : i * lda + l) *
                 element(b, b_type, transb == CUBLAS_OP_N ? j * ldb + l : l * ldb + j);
        double value = factor * sum;
        if (keep != 0) value += keep * element(c, c_type, j * ldc + i);
        set_element(c, c_type, j * ldc + i, static_cast<float>(value));
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasStrsm_64(cublasHandle_t library, cublasSideMode_t, cublasFillMode_t fill, cublasOperation_t operation,
                              cublasDiagType_t, int64_t m, int64_t n, const float* alpha, const float* a, int64_t lda,
                              float* b, int64_t ldb) {
  if (fill != CUBLAS_FILL_MODE_LOWER || lda < m || ldb < m) return CUBLAS_STATUS_INVALID_VALUE;
  emulation::require_device(library->device);
  const bool plain = operation == CUBLAS_OP_N;
  emulation::enqueue(library->stream, [=, factor = static_cast<double>(*alpha)] {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t step = 0; step < m; ++step) {
        const int64_t i = plain ? step : m - 1 - step;
        double sum = factor * b[j * ldb + i];
        for (int64_t l = plain ? 0 : i + 1; l < (plain ? i : m); ++l)
          sum -= static_cast<double>(plain ? a[l * lda + i] : a[i * lda + l]) * b[j * ldb + l];
        b[j * ldb + i] = static_cast<float>(sum / a[i * lda + i]);
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasStrmm_64(cublasHandle_t library, cublasSideMode_t, cublasFillMode_t fill, cublasOperation_t operation,
                              cublasDiagType_t, int64_t m, int64_t n, const float* alpha, const float* a, int64_t lda,
                              const float* b, int64_t ldb, float* c, int64_t ldc) {
  if (fill != CUBLAS_FILL_MODE_LOWER || lda < m || ldb < m || ldc < m) return CUBLAS_STATUS_INVALID_VALUE;
  emulation::require_device(library->device);
  const bool plain = operation == CUBLAS_OP_N;
  emulation::enqueue(library->stream, [=, factor = static_cast<double>(*alpha)] {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        for (int64_t l = plain ? 0 : i; l < (plain ? i + 1 : m); ++l)
          sum += static_cast<double>(plain ? a[l * lda + i] : a[i * lda + l]) * b[j * ldb + l];
        c[j * ldc + i] = static_cast<float>(factor * sum);
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

namespace {

void factor_cholesky(float* a, int64_t n, int64_t lda, int* info) {
  *info = 0;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i <= j; ++i) {
      double sum = a[j * lda + i];
      for (int64_t k = 0; k < i; ++k) sum -= static_cast<double>(a[i * lda + k]) * a[j * lda + k];
      if (i < j) {
        a[j * lda + i] = static_cast<float>(sum / a[i * lda + i]);
      } else if (sum > 0) {
        a[j * lda + j] = static_cast<float>(std::sqrt(sum));
      } else {
        *info = static_cast<int>(j + 1);
        return;
      }
    }
  }
}

}  // namespace

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t library, cusolverDnParams_t, cublasFillMode_t uplo, int64_t n,
                                  cudaDataType, void* matrix, int64_t lda, cudaDataType, void*, size_t, void*, size_t,
                                  int* info) {
  if (uplo != CUBLAS_FILL_MODE_UPPER || lda < n) return CUSOLVER_STATUS_INVALID_VALUE;
  emulation::require_device(library->device);
  emulation::enqueue(library->stream, [=] { factor_cholesky(static_cast<float*>(matrix), n, lda, info); });
  return CUSOLVER_STATUS_SUCCESS;
}
