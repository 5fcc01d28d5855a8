// Packed matrices: one warp for each row, 32 columns at a time.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

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

// Whether an element is to be kept: kept(row, column).
template <typename T>
struct ValueKept {
  View x;
  __device__ bool operator()(int64_t i, int64_t j) const { return row_of<T>(x, i)[j] != 0; }
};

template <typename Kept>
__global__ void mark_row(Bits bits, int32_t* counts, Kept is_kept) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t i = warp_index(); i < bits.rows; i += warp_count()) {
    int32_t count = 0;
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const bool kept = j + lane < bits.columns && is_kept(i, j + lane);
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
  for (int64_t i = warp_index(); i < bits.rows; i += warp_count()) {
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
  for (int64_t i = warp_index(); i < bits.rows; i += warp_count()) {
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

// The zero points of a matrix of codes.
struct ZeroPoints {
  const uint8_t* data;
  int64_t groups, size;  // of a row, of a group
  int middle;
  __device__ int at(int64_t row, int64_t column) const {
    return data == nullptr ? middle : data[row * groups + column / size];
  }
};
ZeroPoints zero_points_of(const Tensor& zero_points, int64_t columns, int bits) {
  const int64_t groups = zero_points ? zero_points.columns : 1;
  return {zero_points ? zero_points.data<uint8_t>() : nullptr, groups, columns / groups, middle_code(bits)};
}

struct CodeKept {
  const uint8_t* codes;
  int64_t columns;
  ZeroPoints zeros;
  __device__ bool operator()(int64_t i, int64_t j) const { return codes[i * columns + j] != zeros.at(i, j); }
};

// The packed codes of a matrix: rows at offsets, or without bits of the same length.
struct Packed {
  uint8_t* data;
  int64_t stride;  // without bits
  int width;  // bits of a code
  Bits bits;
  Offsets offsets;
};
Packed packed_of(const Tensor& packed, const Tensor& bitmask, const Tensor& offsets, int64_t columns, int width) {
  Packed p{packed.data<uint8_t>(), packed.columns, width, {nullptr, 0, columns, 0}, {nullptr, 0, 0}};
  if (bitmask) {
    p.bits = bits_of(bitmask, columns);
    p.offsets = offsets_of(offsets, packed);
  }
  return p;
}

// One row, whose codes one thread packs one after another.
struct PackRow {
  Packed packed;
  const uint8_t* codes;
  __device__ void operator()(int64_t i) const {
    const Bits& bits = packed.bits;
    uint8_t* to = packed.data + (bits.data ? packed.offsets[i] : i * packed.stride);
    uint8_t* const end = to + packed.stride;
    unsigned word = 0;
    int filled = 0;
    for (int64_t j = 0; j < bits.columns; ++j) {
      if (bits.data != nullptr && (bits.row(i)[j / 8] >> (j % 8) & 1) == 0) continue;
      word |= static_cast<unsigned>(codes[i * bits.columns + j]) << filled;
      for (filled += packed.width; filled >= 8; filled -= 8, word >>= 8) *to++ = static_cast<uint8_t>(word);
    }
    if (filled > 0) *to++ = static_cast<uint8_t>(word);
    while (bits.data == nullptr && to < end) *to++ = 0;
  }
};

__global__ void unpack_codes(uint8_t* codes, int64_t rows, Packed packed, ZeroPoints zeros, int64_t* bad_row) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, width = packed.width;
  const Bits& bits = packed.bits;
  const unsigned mask = (1u << width) - 1;
  for (int64_t i = warp_index(); i < rows; i += warp_count()) {
    int64_t count = bits.columns, begin = i * packed.stride, end = begin + packed.stride;
    bool sound = true;
    if (bits.data != nullptr) {
      begin = packed.offsets[i], end = packed.offsets[i + 1], count = 0;
      sound = (i == 0 ? begin == 0 : begin >= 0) && begin <= end && end <= packed.offsets.end;
      for (int64_t j = 0; j < bits.columns; j += warp_size) {
        const unsigned word = bits.at(i, j);
        count += __popc(word);
        if (bits.columns - j < warp_size) sound = sound && word >> (bits.columns - j) == 0;
      }
      sound = sound && end - begin == (count * width + 7) / 8;
    }
    // From here on each thread has looked at other bytes.
    if (sound) {
      const int64_t used = count * width;
      for (int64_t b = begin + used / 8 + lane; b < end; b += warp_size)
        sound = sound && packed.data[b] >> (b == begin + used / 8 ? used % 8 : 0) == 0;
      for (int64_t g = lane; g < zeros.groups; g += warp_size) sound = sound && zeros.at(i, g * zeros.size) >> width == 0;
    }
    if (__ballot_sync(whole_warp, !sound) != 0) {
      if (lane == 0) report(bad_row, i);
      continue;
    }
    const uint8_t* from = packed.data + begin;
    int64_t taken = 0;
    for (int64_t j = 0; j < bits.columns; j += warp_size) {
      const unsigned word = bits.data == nullptr ? whole_warp : bits.at(i, j);
      if (j + lane < bits.columns) {
        int code = zeros.at(i, j + lane);
        if ((word >> lane & 1u) != 0) {
          const int64_t place = (taken + __popc(word & ((1u << lane) - 1))) * width, shift = place % 8;
          unsigned both = from[place / 8];
          if (shift + width > 8) both |= static_cast<unsigned>(from[place / 8 + 1]) << 8;
          code = static_cast<int>(both >> shift & mask);
        }
        codes[i * bits.columns + j + lane] = static_cast<uint8_t>(code);
      }
      taken += __popc(word);
    }
  }
}

struct QuantizeElement {
  uint8_t* codes;
  View x, steps;
  const float* zeros;
  int64_t size;  // of a group
  float max;
  __device__ void operator()(int64_t i, int64_t j) const {
    const int64_t g = j / size;
    const float zero = zeros[i * steps.columns + g], limit = 4194304;  // 2^22, as on the CPU
    const float wanted = read(x, i, j) / read(steps, i, g);
    const float rounded = rintf(fminf(wanted > -limit ? wanted : -limit, limit));
    codes[i * x.columns + j] = static_cast<uint8_t>(fminf(fmaxf(rounded + zero, 0.0f), max));
  }
};

struct RoundZero {
  uint8_t* out;
  const float* zeros;
  float max;
  __device__ void operator()(int64_t e) const { out[e] = static_cast<uint8_t>(fminf(fmaxf(zeros[e], 0.0f), max)); }
};

struct DequantizeElement {
  View out;
  const uint8_t* codes;
  View scale;
  ZeroPoints zeros;
  int64_t size;  // of a group
  __device__ void operator()(int64_t i, int64_t j) const {
    const auto steps = static_cast<float>(codes[i * out.columns + j] - zeros.at(i, j));
    write(out, i, j, steps * read(scale, i, j / size));
  }
};

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
    using Kept = ValueKept<decltype(element)>;
    launch("mark_values", mark_row<Kept>, grid_of_warps(x.rows), dim3(block_threads), 0, stream_,
           bits_of(o.bitmask, x.columns), o.counts.data<int32_t>(), Kept{view(x)});
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

void CudaBackend::enqueue(const QuantizeCodes& o) {
  const Tensor x = local(o.x), steps = local(o.steps), zeros = local(o.zeros);
  const auto max = static_cast<float>((1 << o.bits) - 1);
  for_elements(
      "quantize_codes", stream_, x.rows, x.columns,
      QuantizeElement{o.codes.data<uint8_t>(), view(x), view(steps), zeros.data<float>(), x.columns / steps.columns, max});
  for_indices("quantize_codes", stream_, zeros.size(), RoundZero{o.zero_points.data<uint8_t>(), zeros.data<float>(), max});
}

void CudaBackend::enqueue(const DequantizeCodes& o) {
  const Tensor codes = local(o.codes), scale = local(o.scale), zero_points = local(o.zero_points);
  for_elements("dequantize_codes", stream_, codes.rows, codes.columns,
               DequantizeElement{view(o.out), codes.data<uint8_t>(), view(scale),
                                 zero_points_of(zero_points, codes.columns, o.bits), codes.columns / scale.columns});
}

void CudaBackend::enqueue(const MarkCodes& o) {
  const Tensor codes = local(o.codes), zero_points = local(o.zero_points);
  const CodeKept kept{codes.data<uint8_t>(), codes.columns, zero_points_of(zero_points, codes.columns, o.bits)};
  launch("mark_codes", mark_row<CodeKept>, grid_of_warps(codes.rows), dim3(block_threads), 0, stream_,
         bits_of(o.bitmask, codes.columns), o.counts.data<int32_t>(), kept);
}

void CudaBackend::enqueue(const PackCodes& o) {
  const Tensor codes = local(o.codes), bitmask = local(o.bitmask), offsets = local(o.offsets);
  for_indices("pack_codes", stream_, codes.rows,
              PackRow{packed_of(o.packed, bitmask, offsets, codes.columns, o.bits), codes.data<uint8_t>()});
}

void CudaBackend::enqueue(const UnpackCodes& o) {
  const Tensor packed = local(o.packed), bitmask = local(o.bitmask), offsets = local(o.offsets);
  const Tensor zero_points = local(o.zero_points);
  int64_t* bad = context_->watch("INVALID_CHECKPOINT", [subject = o.subject](int64_t row) {
    return UnpackCodes::message(subject, row) + " (in unpackCodes)";
  });
  launch("unpack_codes", unpack_codes, grid_of_warps(o.codes.rows), dim3(block_threads), 0, stream_, o.codes.data<uint8_t>(),
         o.codes.rows, packed_of(packed, bitmask, offsets, o.codes.columns, o.bits),
         zero_points_of(zero_points, o.codes.columns, o.bits), bad);
}

}  // namespace sparsegpt::cuda
