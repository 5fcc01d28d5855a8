// Strips (core/operations.h says what they are) on a GPU, where the warps that work at once hide what a row alone would wait for:
// a strip is its sixteen rows one after another. In front stand the places of the rows, 16 u32, in bytes from the strip's start. A row
// has its scales, its zeros, then, 32 columns at a time and each part from a multiple of 4 bytes on, the masks, and then the elements,
// of which those of 4 bits are two in a byte, the low half first; 32 columns begin with a byte of their own.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int64_t header_bytes = 4 * strip_rows;

// What a row's parts take.
struct RowLayout {
  int64_t columns, group, groups;
  int bits, scale_bytes;
  bool masked;
  int64_t words, zeros, masks, elements;  // 32 columns each; where the parts begin
};
RowLayout layout_of(const StripForm& form) {
  RowLayout l{form.columns, form.group, form.groups(), form.bits, form.half_scales ? 2 : 4, form.masked, 0, 0, 0, 0};
  const auto whole = [](int64_t bytes) { return (bytes + 3) / 4 * 4; };
  l.words = (form.columns + warp_size - 1) / warp_size;
  l.zeros = whole(l.groups * l.scale_bytes);
  l.masks = l.zeros + whole(l.groups);
  l.elements = l.masks + (form.masked ? 4 * l.words : 0);
  return l;
}

// A matrix that becomes strips.
struct Source {
  View x;
  const uint8_t* zeros;  // [rows, groups]; null without codes
  RowLayout layout;

  __device__ unsigned element(int64_t row, int64_t column) const {
    return layout.bits == 16 ? row_of<uint16_t>(x, row)[column] : row_of<uint8_t>(x, row)[column];
  }
  __device__ bool kept(int64_t row, int64_t column) const {
    if (column >= layout.columns) return false;
    const unsigned nothing = layout.bits == 16 ? 0 : zeros[row * layout.groups + column / layout.group];
    return !layout.masked || element(row, column) != nothing;
  }
};

__device__ inline int64_t element_bytes(int bits, int count) {
  return bits == 4 ? (count + 1) / 2 : int64_t{count} * (bits / 8);
}

// The bytes of a row, the same for every lane.
__device__ inline int64_t row_bytes(const Source& source, int64_t row, int lane) {
  int64_t bytes = source.layout.elements;
  for (int64_t word = 0; word < source.layout.words; ++word) {
    const unsigned mask = __ballot_sync(whole_warp, source.kept(row, word * warp_size + lane));
    bytes += element_bytes(source.layout.bits, __popc(mask));
  }
  return (bytes + 3) / 4 * 4;
}

__global__ void measure_strips(int32_t* sizes, Source source, int64_t rows, int64_t strips) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t strip = warp_index(); strip < strips; strip += warp_count()) {
    int64_t bytes = header_bytes;
    for (int64_t i = strip * strip_rows; i < min(rows, (strip + 1) * strip_rows); ++i) bytes += row_bytes(source, i, lane);
    if (lane == 0) sizes[strip] = static_cast<int32_t>(bytes);
  }
}

__device__ inline void pack_row(uint8_t* to, const Source& source, View scales, int64_t row, int lane) {
  const RowLayout& l = source.layout;
  for (int64_t g = lane; g < l.groups; g += warp_size) {
    const float scale = read(scales, row, g);
    if (l.scale_bytes == 2) {
      reinterpret_cast<__nv_bfloat16*>(to)[g] = __float2bfloat16_rn(scale);
    } else {
      reinterpret_cast<float*>(to)[g] = scale;
    }
    to[l.zeros + g] = source.zeros[row * l.groups + g];
  }
  uint8_t* elements = to + l.elements;
  for (int64_t word = 0; word < l.words; ++word) {
    const int64_t column = word * warp_size + lane;
    const bool kept = source.kept(row, column);
    const unsigned mask = __ballot_sync(whole_warp, kept);
    const int rank = __popc(mask & ((1u << lane) - 1));
    if (l.masked && lane == 0) reinterpret_cast<unsigned*>(to + l.masks)[word] = mask;
    if (kept) {
      const unsigned element = source.element(row, column);
      if (l.bits == 16) {
        reinterpret_cast<uint16_t*>(elements)[rank] = static_cast<uint16_t>(element);
      } else if (l.bits == 8) {
        elements[rank] = static_cast<uint8_t>(element);
      } else if (rank % 2 == 0) {
        unsigned next = 0;
        for (int64_t c = column + 1; next == 0 && c < (word + 1) * warp_size; ++c)
          if (source.kept(row, c)) next = 16 + source.element(row, c);
        elements[rank / 2] = static_cast<uint8_t>(element | (next & 15) << 4);
      }
    }
    elements += element_bytes(l.bits, __popc(mask));
  }
}

__global__ void pack_strips(uint8_t* stream, const int64_t* offsets, Source source, View scales, int64_t rows,
                            int64_t strips) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t strip = warp_index(); strip < strips; strip += warp_count()) {
    uint8_t* base = stream + offsets[strip];
    int64_t at = header_bytes;
    for (int64_t i = strip * strip_rows; i < min(rows, (strip + 1) * strip_rows); ++i) {
      if (lane == 0) reinterpret_cast<unsigned*>(base)[i % strip_rows] = static_cast<unsigned>(at);
      pack_row(base + at, source, scales, i, lane);
      at += row_bytes(source, i, lane);
    }
  }
}

// One warp for each row of the matrix, a lane for each of 32 columns: the elements and x are read one after another.
template <int bits>
__global__ void multiply_strips(View out, View x, const uint8_t* stream, const int64_t* offsets, View bias, RowLayout l,
                                int64_t tokens, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t i = warp_index(); i < rows; i += warp_count()) {
    const uint8_t* base = stream + offsets[i / strip_rows];
    const uint8_t* row = base + reinterpret_cast<const unsigned*>(base)[i % strip_rows];
    const uint8_t* elements = row + l.elements;
    float sums[MultiplyStrips::most_rows] = {};
    for (int64_t word = 0; word < l.words; ++word) {
      const int64_t column = word * warp_size + lane;
      const unsigned mask = l.masked ? reinterpret_cast<const unsigned*>(row + l.masks)[word]
                            : l.columns - word * warp_size >= warp_size ? whole_warp
                                                                        : (1u << (l.columns - word * warp_size)) - 1;
      if ((mask >> lane & 1u) != 0) {
        const int rank = __popc(mask & ((1u << lane) - 1));
        float w;
        if constexpr (bits == 16) {
          w = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(elements)[rank]);
        } else {
          const int code = bits == 8 ? elements[rank] : elements[rank / 2] >> (4 * (rank % 2)) & 15;
          const int64_t group = column / l.group;
          const float scale = l.scale_bytes == 2 ? __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[group])
                                                 : reinterpret_cast<const float*>(row)[group];
          w = static_cast<float>(code - row[l.zeros + group]) * scale;
        }
#pragma unroll
        for (int t = 0; t < MultiplyStrips::most_rows; ++t)
          if (t < tokens) sums[t] += w * read(x, t, column);
      }
      elements += element_bytes(bits, __popc(mask));
    }
#pragma unroll
    for (int t = 0; t < MultiplyStrips::most_rows; ++t) {
      if (t >= tokens) break;
      float sum = sums[t];
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(whole_warp, sum, step);
      if (lane == 0) write(out, t, i, sum + (bias.data != nullptr ? read(bias, 0, i) : 0.0f));
    }
  }
}

const int64_t* places(const Tensor& offsets) { return reinterpret_cast<const int64_t*>(offsets.bytes()); }

}  // namespace

void CudaBackend::enqueue(const MeasureStrips& o) {
  const Tensor x = local(o.x), zeros = o.zeros ? local(o.zeros) : Tensor{};
  const Source source{view(x), zeros ? zeros.data<uint8_t>() : nullptr, layout_of(o.form())};
  const int64_t strips = strip_count(x.rows);
  launch("measure_strips", measure_strips, grid_of_warps(strips), dim3(block_threads), 0, stream_, o.sizes.data<int32_t>(),
         source, x.rows, strips);
}

void CudaBackend::enqueue(const PackStrips& o) {
  const Tensor x = local(o.x), zeros = o.zeros ? local(o.zeros) : Tensor{}, scales = o.scales ? local(o.scales) : Tensor{};
  const Tensor offsets = local(o.offsets);
  const Source source{view(x), zeros ? zeros.data<uint8_t>() : nullptr, layout_of(o.form())};
  const int64_t strips = strip_count(x.rows);
  launch("pack_strips", pack_strips, grid_of_warps(strips), dim3(block_threads), 0, stream_, o.stream.data<uint8_t>(),
         places(offsets), source, scales ? view(scales) : View{}, x.rows, strips);
}

void CudaBackend::enqueue(const MultiplyStrips& o) {
  const Tensor x = local(o.x), stream = local(o.stream), offsets = local(o.offsets),
               bias = o.bias ? local(o.bias) : Tensor{};
  const auto start = [&](auto kernel) {
    launch("multiply_strips", kernel, grid_of_warps(o.out.columns), dim3(block_threads), 0, stream_, view(o.out), view(x),
           stream.data<uint8_t>(), places(offsets), bias ? view(bias) : View{}, layout_of(o.form()), x.rows, o.out.columns);
  };
  switch (o.bits) {
    case 16: return start(multiply_strips<16>);
    case 8: return start(multiply_strips<8>);
    default: return start(multiply_strips<4>);
  }
}

}  // namespace sparsegpt::cuda
