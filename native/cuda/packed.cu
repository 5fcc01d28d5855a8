// Packed matrices: one warp for each row, 32 columns at a time.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int warp_size = 32, rows_per_block = block_threads / warp_size;

// The bitmask of a matrix.
struct Bits {
  uint8_t* data;
  int64_t rows, columns, width;
  __device__ uint8_t* row(int64_t i) const { return data + i * width; }
  // The bits of 32 columns from `column` on, of those that the row has.
  __device__ unsigned at(int64_t i, int64_t column) const {
    const uint8_t* p = row(i) + column / 8;
    unsigned bits = 0;
    for (int64_t b = 0; b < 4 && column / 8 + b < width; ++b) bits |= static_cast<unsigned>(p[b]) << (8 * b);
    return bits;
  }
};
Bits bits_of(const Tensor& bitmask, int64_t columns) {
  return {bitmask.data<uint8_t>(), bitmask.rows, columns, bitmask.columns};
}

struct Offsets {
  const int64_t* data;
  int64_t rows, end;
  __device__ int64_t operator[](int64_t row) const { return row < rows ? data[row] : end; }
};
Offsets offsets_of(const Tensor& offsets, const Tensor& values) {
  return {reinterpret_cast<const int64_t*>(offsets.bytes()), offsets.rows, values.columns};
}

__device__ inline int64_t first_row() { return blockIdx.x * int64_t{rows_per_block} + threadIdx.x / warp_size; }
__device__ inline int64_t row_step() { return int64_t{gridDim.x} * rows_per_block; }
dim3 grid_of_warps(int64_t rows) { return grid_of_rows((rows + rows_per_block - 1) / rows_per_block); }

template <typename T>
__global__ void mark_row(Bits bits, int32_t* counts, View x) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t i = first_row(); i < bits.rows; i += row_step()) {
    int32_t count = 0;
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const bool kept = j + lane < bits.columns && row_of<T>(x, i)[j + lane] != 0;
      const unsigned word = __ballot_sync(whole_warp, kept);
      count += __popc(word);
      if (lane < 4 && j / 8 + lane < bits.width) bits.row(i)[j / 8 + lane] = static_cast<uint8_t>(word >> (8 * lane));
    }
    if (lane == 0) counts[i] = count;
  }
}

template <typename T>
__global__ void pack_row(T* values, View x, Bits bits, Offsets offsets) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t i = first_row(); i < bits.rows; i += row_step()) {
    T* to = values + offsets[i];
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const unsigned word = bits.at(i, j);
      if ((word >> lane & 1u) != 0) to[__popc(word & ((1u << lane) - 1))] = row_of<T>(x, i)[j + lane];
      to += __popc(word);
    }
  }
}

template <typename T>
__global__ void unpack_row(View out, const T* values, Bits bits, Offsets offsets, int64_t* bad_row) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t i = first_row(); i < bits.rows; i += row_step()) {
    const int64_t begin = offsets[i], end = offsets[i + 1];
    int64_t count = 0;
    bool sound = (i == 0 ? begin == 0 : begin >= 0) && begin <= end && end <= offsets.end;
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const unsigned word = bits.at(i, j);
      count += __popc(word);
      if (bits.columns - j < warp_size) sound = sound && word >> (bits.columns - j) == 0;
    }
    // The same for all threads of the warp.
    if (!sound || count != end - begin) {
      if (lane == 0) report(bad_row, i);
      continue;
    }
    const T* from = values + begin;
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const unsigned word = bits.at(i, j);
      const bool kept = (word >> lane & 1u) != 0;
      if (j + lane < bits.columns) row_of<T>(out, i)[j + lane] = kept ? from[__popc(word & ((1u << lane) - 1))] : T{0};
      from += __popc(word);
    }
  }
}

// Calls body(T{}) with the integer that has the size of the type's elements.
template <typename Body>
void with_elements(DType dtype, const Body& body) {
  if (dtype_size(dtype) == 4) {
    body(uint32_t{});
  } else {
    body(uint16_t{});
  }
}

}  // namespace

void CudaBackend::enqueue(const MarkValues& o) {
  const Tensor x = local(o.x);
  with_elements(x.dtype, [&](auto element) {
    launch("mark_values", mark_row<decltype(element)>, grid_of_warps(x.rows), dim3(block_threads), 0, stream_,
           bits_of(o.bitmask, x.columns), o.counts.data<int32_t>(), view(x));
  });
}

void CudaBackend::enqueue(const PackValues& o) {
  const Tensor x = local(o.x), bitmask = local(o.bitmask), offsets = local(o.offsets);
  with_elements(x.dtype, [&](auto element) {
    using T = decltype(element);
    launch("pack_values", pack_row<T>, grid_of_warps(x.rows), dim3(block_threads), 0, stream_,
           reinterpret_cast<T*>(o.values.bytes()), view(x), bits_of(bitmask, x.columns), offsets_of(offsets, o.values));
  });
}

void CudaBackend::enqueue(const UnpackValues& o) {
  const Tensor values = local(o.values), bitmask = local(o.bitmask), offsets = local(o.offsets);
  int64_t* bad = context_->watch("INVALID_CHECKPOINT", [subject = o.subject](int64_t row) {
    return UnpackValues::message(subject, row) + " (in unpackValues)";
  });
  with_elements(values.dtype, [&](auto element) {
    using T = decltype(element);
    launch("unpack_values", unpack_row<T>, grid_of_warps(o.out.rows), dim3(block_threads), 0, stream_, view(o.out),
           reinterpret_cast<const T*>(values.bytes()), bits_of(bitmask, o.out.columns), offsets_of(offsets, values), bad);
  });
}

}  // namespace sparsegpt::cuda
