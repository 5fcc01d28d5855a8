// A device on which every operation is awaited, and tensors to and from it.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/device.h"
#include "cpu/cpu_kind.h"
#include "cpu/dispatch.h"
#include "test/matrix.h"

namespace sparsegpt::test {

class OnDevice {
 public:
  explicit OnDevice(std::shared_ptr<Backend> backend) : device_(std::move(backend)) {}

  // An operation, or what a function does with the backend.
  template <typename Run>
  void run(const Run& operation) {
    if constexpr (std::is_invocable_v<Run, Backend&>) {
      device_.enqueue("operation", operation);
    } else {
      device_.enqueue("operation", [operation](Backend& b) { b.run(operation); });
    }
    device_.synchronize();
  }

  Tensor empty(DType dtype, int64_t rows, int64_t columns) {
    const auto bytes = static_cast<size_t>(rows * columns) * dtype_size(dtype);
    return {device_.backend().allocate(bytes), dtype, rows, columns, columns, 0};
  }
  Tensor upload(DType dtype, int64_t rows, int64_t columns, const void* data) {
    Tensor t = empty(dtype, rows, columns);
    run([&](Backend& b) { b.upload(t, data); });
    return t;
  }
  Tensor floats(DType dtype, int64_t rows, int64_t columns, const std::vector<float>& values) {
    return upload(dtype, rows, columns, encode(values, dtype).data());
  }
  std::vector<float> read(const Tensor& t) {
    std::vector<char> bytes(static_cast<size_t>(t.size()) * dtype_size(t.dtype));
    run([&](Backend& b) { b.download(bytes.data(), t); });
    return decode(bytes, t.dtype);
  }
  template <typename T>
  std::vector<T> read_as(const Tensor& t) {
    std::vector<T> values(static_cast<size_t>(t.size()));
    run([&](Backend& b) { b.download(values.data(), t); });
    return values;
  }

 private:
  Device device_;
};

// Calls body(device, name) with the CPU at each of its levels.
template <typename Body>
void for_every_level(const Body& body) {
  const char* wanted = std::getenv("SPARSEGPT_CPU");
  const std::string before = wanted != nullptr ? wanted : "";
  for (cpu::Level level : cpu::available_levels()) {
    setenv("SPARSEGPT_CPU", cpu::level_name(level), 1);
    OnDevice device(cpu_kind().open(0, 2));
    body(device, std::string(cpu::level_name(level)));
  }
  before.empty() ? unsetenv("SPARSEGPT_CPU") : setenv("SPARSEGPT_CPU", before.c_str(), 1);
}

}  // namespace sparsegpt::test
