// Moving and converting, and the device's clock.
#include "core/write_file.h"
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

struct CastElement {
  View out, in;
  __device__ void operator()(int64_t i, int64_t j) const { write(out, i, j, read(in, i, j)); }
};

struct FillElement {
  View out;
  double value;
  __device__ void operator()(int64_t i, int64_t j) const {
    if (out.dtype == DType::f64) {
      row_of<double>(out, i)[j] = value;
    } else {
      write(out, i, j, static_cast<float>(value));
    }
  }
};

// The extra column keeps the banks apart.
__global__ void transpose_tile(View out, View in) {
  __shared__ float tile[tile_side][tile_side + 1];
  const int64_t j0 = blockIdx.x * int64_t{tile_side};
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t i0 = blockIdx.y * int64_t{tile_side}; i0 < in.rows; i0 += int64_t{gridDim.y} * tile_side) {
    for (int r = y; r < tile_side; r += tile_rows)
      if (i0 + r < in.rows && j0 + x < in.columns) tile[r][x] = read(in, i0 + r, j0 + x);
    __syncthreads();
    for (int r = y; r < tile_side; r += tile_rows)
      if (j0 + r < in.columns && i0 + x < in.rows) write(out, j0 + r, i0 + x, tile[x][r]);
    __syncthreads();
  }
}

void transpose(cudaStream_t stream, const View& out, const View& in) {
  if (in.rows == 0 || in.columns == 0) return;
  const dim3 grid(static_cast<unsigned>((in.columns + tile_side - 1) / tile_side),
                  static_cast<unsigned>(std::min<int64_t>((in.rows + tile_side - 1) / tile_side, 65535)));
  launch("transpose", transpose_tile, grid, dim3(tile_side, tile_rows), 0, stream, out, in);
}

__global__ void start_clock(uint64_t* origin) { *origin = nanoseconds(); }
__global__ void read_clock(double* seconds, const uint64_t* origin) {
  *seconds = static_cast<double>(nanoseconds() - *origin) * 1e-9;
}

}  // namespace

void cast(cudaStream_t stream, const View& out, const View& in) {
  for_elements("cast", stream, in.rows, in.columns, CastElement{out, in});
}

void CudaBackend::enqueue(const Cast& o) {
  if (!o.in.storage->on_host()) {
    cast(stream_, view(o.out), view(o.in));
  } else if (o.in.dtype == o.out.dtype && o.out.contiguous()) {
    context_->load("cast", o.out, o.in, nullptr);
  } else {
    context_->load("cast", o.out, o.in, [to = view(o.out)](cudaStream_t stream, const Tensor& rows, int64_t first) {
      View part = to;
      part.data = element(to, first, 0);
      part.rows = rows.rows;
      cast(stream, part, view(rows));
    });
  }
}

void CudaBackend::enqueue(const Transpose& o) {
  if (!o.in.storage->on_host()) {
    transpose(stream_, view(o.out), view(o.in));
    return;
  }
  context_->load("transpose", o.out, o.in, [to = view(o.out)](cudaStream_t stream, const Tensor& rows, int64_t first) {
    View part = to;
    part.data = element(to, 0, first);
    part.columns = rows.rows;
    transpose(stream, part, view(rows));
  });
}

void CudaBackend::enqueue(const Fill& o) {
  for_elements("fill", stream_, o.out.rows, o.out.columns, FillElement{view(o.out), o.value});
}

void CudaBackend::enqueue(const WriteFile& o) {
  if (o.tensor.storage->on_host()) {
    write_fully(o.fd, o.position, o.tensor.bytes(), byte_size(o.tensor));
    return;
  }
  int64_t position = o.position;
  context_->lane().for_pieces(o.tensor.bytes(), byte_size(o.tensor), [&](const std::byte* data, size_t bytes) {
    write_fully(o.fd, position, data, bytes);
    position += static_cast<int64_t>(bytes);
  });
}

// From the first timestamp on, so that a double holds nanoseconds: the clock itself counts from 1970.
void CudaBackend::enqueue(const Timestamp& o) {
  const bool first = !clock_origin_;
  if (first) clock_origin_ = scratch(DType::f64, 1, 1);
  auto* origin = reinterpret_cast<uint64_t*>(clock_origin_.bytes());
  if (first) launch("timestamp", start_clock, dim3(1), dim3(1), 0, stream_, origin);
  launch("timestamp", read_clock, dim3(1), dim3(1), 0, stream_, o.out.data<double>(), origin);
}

}  // namespace sparsegpt::cuda
