#include "cpu/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "core/write_file.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"

namespace sparsegpt {

namespace cpu {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

CpuBackend::CpuBackend(int threads, Level level)
    : level_(level), pool_(thread_count(threads)), memory_(std::make_shared<MemoryPool>()) {}

std::string CpuBackend::description(Level level, int threads) {
  return std::string(level_name(level)) + ", " + std::to_string(threads) + " threads";
}

double CpuBackend::time(const std::function<void()>& enqueue) {
  const double start = now();
  enqueue();
  return now() - start;
}

std::shared_ptr<Storage> CpuBackend::allocate(size_t bytes) { return memory_->storage(bytes); }

void CpuBackend::copy_in(const Tensor& out, const void* host) {
  if (out.size() > 0) std::memcpy(out.bytes(), host, byte_size(out));
}

void CpuBackend::copy_out(void* host, const Tensor& tensor) {
  if (tensor.size() > 0) std::memcpy(host, tensor.bytes(), byte_size(tensor));
}

void CpuBackend::compute(const Cast& o) {
  const Tensor &out = o.out, &in = o.in;
  for_rows(pool_, in.rows, in.columns, [&](int64_t i, std::vector<float>& row) {
    if (out.dtype == DType::f32) {
      to_float[level_](reinterpret_cast<float*>(row_of(out, i)), row_of(in, i), in.dtype, in.columns);
    } else if (in.dtype == DType::f32) {
      from_float[level_](row_of(out, i), out.dtype, reinterpret_cast<const float*>(row_of(in, i)), in.columns);
    } else {
      row.resize(static_cast<size_t>(in.columns));
      to_float[level_](row.data(), row_of(in, i), in.dtype, in.columns);
      from_float[level_](row_of(out, i), out.dtype, row.data(), in.columns);
    }
  });
}

void CpuBackend::compute(const Transpose& o) {
  const Tensor &out = o.out, &in = o.in;
  if (in.dtype == DType::u8) {
    for (int64_t i = 0; i < in.rows; ++i)
      for (int64_t j = 0; j < in.columns; ++j)
        out.data<uint8_t>()[j * out.stride + i] = in.data<uint8_t>()[i * in.stride + j];
    return;
  }
  // Tiles keep both sides in cache.
  constexpr int64_t side = 32;
  const int64_t down = (in.rows + side - 1) / side, across = (in.columns + side - 1) / side;
  pool_.parallel_for(down * across, [&](int64_t task, int) {
    const int64_t i0 = task / across * side, j0 = task % across * side;
    const int64_t rows = std::min(side, in.rows - i0), columns = std::min(side, in.columns - j0);
    float tile[side][side], turned[side][side];
    for (int64_t i = 0; i < rows; ++i) to_float[level_](tile[i], element(in, i0 + i, j0), in.dtype, columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) turned[j][i] = tile[i][j];
    for (int64_t j = 0; j < columns; ++j) from_float[level_](element(out, j0 + j, i0), out.dtype, turned[j], rows);
  });
}

void CpuBackend::compute(const Fill& o) {
  if (o.out.dtype == DType::f64) {
    std::fill_n(o.out.data<double>(), o.out.size(), o.value);
  } else {
    std::fill_n(o.out.data<float>(), o.out.size(), static_cast<float>(o.value));
  }
}

void CpuBackend::compute(const WriteFile& o) { write_fully(o.fd, o.position, o.tensor.bytes(), byte_size(o.tensor)); }

void CpuBackend::compute(const Timestamp& o) { *o.out.data<double>() = now(); }

}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return std::make_unique<cpu::CpuBackend>(threads, cpu::selected_level());
}

}  // namespace sparsegpt
