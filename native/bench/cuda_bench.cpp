// The solver and the phases around it on the CPU and on the GPU, beside the rate that each device reaches on large products.
//
//   cmake -S . -B build/native-tests -DSPARSEGPT_CUDA=ON && cmake --build build/native-tests --parallel
//   build/native-tests/sparsegpt_cuda_bench [--gpu-only] [SIZE...]       sizes of square layers; 1024 4096 by default
//
// Seconds are medians of five runs (of one on the CPU for large sizes), by the device's own clock, so that no waiting of the host
// counts; short ones are run several times in a row. "of peak" is a phase's arithmetic over its time, as a
// share of the device's own rate on a float32 product of 4096 (GPU) or 2048 (CPU) in each dimension.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/registry.h"

using namespace sparsegpt;

namespace {

class Machine {
 public:
  Machine(std::string name, std::shared_ptr<Backend> backend) : name(std::move(name)), device_(std::move(backend)) {}

  Tensor empty(DType dtype, int64_t rows, int64_t columns) {
    const auto bytes = static_cast<size_t>(rows * columns) * dtype_size(dtype);
    return {device_.backend().allocate(bytes), dtype, rows, columns, columns, 0};
  }
  // Random, in [-1, 1): zeros run faster than real data.
  Tensor random(DType dtype, int64_t rows, int64_t columns) {
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& value : values) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      value = static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
    }
    const Tensor t = empty(DType::f32, rows, columns);
    run([&](Backend& b) { b.upload(t, values.data()); });
    if (dtype == DType::f32) return t;
    const Tensor cast = empty(dtype, rows, columns);
    run([&](Backend& b) { b.run(Cast{cast, t}); });
    return cast;
  }
  void run(const std::function<void(Backend&)>& operation) {
    device_.enqueue("bench", operation);
    device_.synchronize();
  }
  // Median seconds of an operation that may be repeated: on the GPU so often in a row that starting it does not count.
  double time(int repeats, const std::function<void(Backend&)>& operation) {
    const int in_a_row = device_.backend().in_host_memory() ? 1 : 10;
    return time(
               repeats, [](Backend&) {},
               [&](Backend& b) {
                 for (int i = 0; i < in_a_row; ++i) operation(b);
               }) /
           in_a_row;
  }
  // Of one that needs fresh operands; prepare() is not timed.
  double time(int repeats, const std::function<void(Backend&)>& prepare, const std::function<void(Backend&)>& operation) {
    std::vector<double> seconds;
    for (int i = 0; i <= repeats; ++i) {
      run(prepare);
      run([&](Backend& b) { seconds.push_back(b.time([&] { operation(b); })); });
    }
    if (repeats > 1) seconds.erase(seconds.begin());  // the first one loads libraries and kernels
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  const std::string name;

 private:
  Device device_;
  uint64_t state_ = 1;
};

double product_rate(Machine& machine, DType dtype, int64_t size) {
  const Tensor x = machine.random(dtype, size, size), w = machine.random(dtype, size, size),
               out = machine.empty(dtype, size, size);
  const double seconds = machine.time(5, [&](Backend& b) { b.run(Linear{out, x, w, {}}); });
  const auto n = static_cast<double>(size);
  return 2 * n * n * n / seconds;
}

void print_row(const char* phase, double seconds, double flops, double peak) {
  std::printf("  %-24s %10.4f s", phase, seconds);
  if (flops > 0) std::printf("  %8.1f GFLOP/s  %5.1f %% of peak", flops / seconds * 1e-9, 100 * flops / seconds / peak);
  std::printf("\n");
}

void bench(Machine& machine, const std::vector<int64_t>& sizes, bool slow) {
  const double peak = product_rate(machine, DType::f32, slow ? 2048 : 4096);
  std::printf("%s\n  product, float32 %.0f GFLOP/s (the peak below), bfloat16 %.0f GFLOP/s\n", machine.name.c_str(),
              peak * 1e-9, product_rate(machine, DType::bf16, slow ? 2048 : 4096) * 1e-9);
  for (const int64_t size : sizes) {
    std::printf(" %lld x %lld\n", static_cast<long long>(size), static_cast<long long>(size));
    const auto n = static_cast<double>(size);
    const int64_t tokens = std::max<int64_t>(2048, 2 * size);
    const Tensor x = machine.random(DType::f32, tokens, size), dense = machine.random(DType::f32, size, size);
    const Tensor gram = machine.empty(DType::f32, size, size), factor = machine.empty(DType::f32, size, size);
    const Tensor w = machine.empty(DType::f32, size, size), mask = machine.empty(DType::u8, size, size);
    const Tensor dead = machine.empty(DType::u8, 1, size), report = machine.empty(DType::f64, 1, factor_report::count);
    const Tensor loss = machine.empty(DType::f64, 1, 1);
    const int repeats = slow && size > 1024 ? 1 : 5;
    machine.run([&](Backend& b) { b.run(Fill{gram, 0}); });
    const double gram_seconds = machine.time(repeats, [&](Backend& b) { b.run(AccumulateGram{gram, x, 1}); });
    print_row("Gram matrix", gram_seconds, static_cast<double>(tokens) * n * (n + 1), peak);
    const double factor_seconds = machine.time(
        repeats, [&](Backend& b) { b.run(Cast{factor, gram}); },
        [&](Backend& b) { b.run(FactorHessian{factor, dead, report, 0.01}); });
    print_row("factorisation", factor_seconds, n * n * n / 3, peak);
    for (const bool pattern : {false, true}) {
      const double seconds = machine.time(
          repeats, [&](Backend& b) { b.run(Cast{w, dense}); },
          [&](Backend& b) {
            b.run(PruneSparsegpt{w, mask, loss, factor, dead, {}, 0.5, pattern ? 2 : 0, pattern ? 4 : 0, 128, 0});
          });
      print_row(pattern ? "SparseGPT 2:4" : "SparseGPT 50 %", seconds, n * n * n, peak);
      print_row("  with factorisation", seconds + factor_seconds, 4 * n * n * n / 3, peak);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int64_t> sizes;
  bool gpu_only = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--gpu-only") == 0) {
      gpu_only = true;
    } else if (std::atoll(argv[i]) > 0) {
      sizes.push_back(std::atoll(argv[i]));
    } else {
      std::fprintf(stderr, "usage: sparsegpt_cuda_bench [--gpu-only] [SIZE...]\n");
      return 2;
    }
  }
  if (sizes.empty()) sizes = {1024, 4096};
  const BackendKind& cuda = backend_kind("cuda");
  const Availability there = cuda.probe();
  if (!there.reason.empty()) {
    std::fprintf(stderr, "no GPU: %s\n", there.reason.c_str());
    return 1;
  }
  try {
    Machine gpu(there.devices.front().name, cuda.open(0, 0));
    bench(gpu, sizes, false);
    if (gpu_only) return 0;
    const auto backend = backend_kind("cpu").open(0, 0);
    Machine cpu("CPU: " + backend->description(), backend);
    bench(cpu, sizes, true);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
