// The CPU and a CUDA backend side by side: tensors that are on both, and how far what they compute is apart.
#pragma once

#include <cmath>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/cpu_kind.h"
#include "test/cuda_devices.h"
#include "test/on_device.h"

namespace sparsegpt::test {

constexpr DType float_types[] = {DType::f32, DType::bf16, DType::f16};

// A tensor on both devices.
struct Twin {
  Tensor cpu, gpu;
  Twin columns(int64_t begin, int64_t count) const {
    return {cpu.column_range(begin, count), gpu.column_range(begin, count)};
  }
};

class Both {
 public:
  Both(const std::string& name, const std::string& path)
      : name(name), cpu(cpu_kind().open(0, 2)), gpu(make_cuda_backend(path)) {}

  Twin empty(DType dtype, int64_t rows, int64_t columns) {
    return {cpu.empty(dtype, rows, columns), gpu.empty(dtype, rows, columns)};
  }
  Twin upload(DType dtype, int64_t rows, int64_t columns, const void* data) {
    return {cpu.upload(dtype, rows, columns, data), gpu.upload(dtype, rows, columns, data)};
  }
  Twin floats(DType dtype, int64_t rows, int64_t columns, const std::vector<float>& values) {
    return {cpu.floats(dtype, rows, columns, values), gpu.floats(dtype, rows, columns, values)};
  }
  Twin random(Random& r, DType dtype, int64_t rows, int64_t columns, double low = -1, double high = 1) {
    return floats(dtype, rows, columns, r.uniforms(rows * columns, low, high));
  }
  // Poisoned, to see that every element is written.
  Twin output(DType dtype, int64_t rows, int64_t columns) {
    return floats(dtype, rows, columns, std::vector<float>(static_cast<size_t>(rows * columns), NAN));
  }
  Twin ids(const std::vector<int32_t>& values) {
    return upload(DType::i32, 1, static_cast<int64_t>(values.size()), values.data());
  }
  // operation(backend, at): at(twin) is the tensor on that backend's device.
  template <typename Operation>
  void run(const Operation& operation) {
    cpu.run([&](Backend& b) { operation(b, [](const Twin& t) { return t.cpu; }); });
    gpu.run([&](Backend& b) { operation(b, [](const Twin& t) { return t.gpu; }); });
  }
  // ‖gpu - cpu‖ / ‖cpu‖; NaN must be where the CPU has it.
  double distance(const Twin& t) {
    const auto expected = cpu.read(t.cpu), actual = gpu.read(t.gpu);
    double gap = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
      gap += (static_cast<double>(actual[i]) - expected[i]) * (static_cast<double>(actual[i]) - expected[i]);
      norm += static_cast<double>(expected[i]) * expected[i];
    }
    return norm == 0 ? gap : std::sqrt(gap / norm);
  }

  std::string name;
  OnDevice cpu, gpu;
};

// Rounding to the type, and of attention's probabilities.
inline double tolerance_of(DType dtype) { return dtype == DType::f32 ? 2e-6 : dtype == DType::f16 ? 1e-3 : 8e-3; }

inline void check_close(Both& both, const Twin& t, double tolerance, const char* file, int line) {
  const double distance = both.distance(t);
  if (!(distance <= tolerance)) {
    std::ostringstream text;
    text << both.name << ": off by " << distance << ", allowed " << tolerance;
    fail(file, line, text.str());
  }
}
#define CHECK_TWIN(twin, tolerance) check_close(both, twin, tolerance, __FILE__, __LINE__)

inline void on_every_gpu(const std::function<void(Both&)>& body) {
  for_every_gpu([&](const std::string& name, const std::string& path) {
    Both both(name, path);
    body(both);
  });
}

}  // namespace sparsegpt::test
