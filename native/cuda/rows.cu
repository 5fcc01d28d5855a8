// Operations on rows: norms, rotations, and the moving of rows and their parts. Bound by memory like those on elements.
#include <cstring>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

// --- norms ------------------------------------------------------------------------------------------------------------

__global__ void norm_row(View out, View x, const float* weight, const float* bias, bool centred, float eps) {
  const auto count = static_cast<float>(x.columns);
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
    float mean = 0;
    if (centred) {
      float sum = 0;
      for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) sum += read(x, i, j);
      mean = combine_block(sum, Sum()) / count;
    }
    float squares = 0;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float v = read(x, i, j) - mean;
      squares += v * v;
    }
    const float factor = 1.0f / sqrtf(combine_block(squares, Sum()) / count + eps);
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float y = (read(x, i, j) - mean) * factor * weight[j];
      write(out, i, j, bias != nullptr ? y + bias[j] : y);
    }
  }
}

// --- rotations --------------------------------------------------------------------------------------------------------

// For pair i of head h of token t; column = h · half + i.
struct RotatePair {
  View x, cosine, sine;
  const int32_t* positions;
  int64_t head_dim, half;
  bool interleaved;
  int64_t* bad_position;
  __device__ void operator()(int64_t t, int64_t column) const {
    const int32_t position = positions[t];
    if (position < 0 || position >= cosine.rows) {
      if (column == 0) report(bad_position, position_and_id(t, position));
      return;
    }
    const int64_t head = column / half, i = column % half;
    const int64_t first = head * head_dim + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : half);
    const float a = read(x, t, first), b = read(x, t, second);
    const float c = read(cosine, position, i), s = read(sine, position, i);
    write(x, t, first, a * c - b * s);
    write(x, t, second, b * c + a * s);
  }
};

// --- rows and their parts ---------------------------------------------------------------------------------------------

struct EmbeddingElement {
  View out, table;
  const int32_t* ids;
  int64_t* bad_position;
  __device__ void operator()(int64_t t, int64_t j) const {
    const int32_t id = ids[t];
    const bool known = id >= 0 && id < table.rows;
    if (!known && j == 0) report(bad_position, position_and_id(t, id));
    write(out, t, j, known ? read(table, id, j) : 0.0f);
  }
};

struct TakeElement {
  View out, x;
  int64_t first, count, stride;
  __device__ void operator()(int64_t t, int64_t j) const {
    write(out, t, j, read(x, t, j / count * stride + first + j % count));
  }
};

struct ScatterElement {
  View out, x;
  const int32_t* ids;
  const float* factors;
  int64_t* bad_position;
  __device__ void operator()(int64_t t, int64_t j) const {
    const int32_t id = ids[t];
    if (id >= 0 && id < out.rows) {
      write(out, id, j, read(out, id, j) + factors[t] * read(x, t, j));
    } else if (j == 0) {
      report(bad_position, position_and_id(t, id));
    }
  }
};

}  // namespace

void CudaBackend::enqueue(const LayerNorm& o) {
  const Tensor x = local(o.x), weight = local(o.weight), bias = local(o.bias);
  launch("layer_norm", norm_row, grid_of_rows(x.rows), dim3(block_threads), 0, stream_, view(o.out), view(x),
         weight.data<float>(), bias.data<float>(), true, o.epsilon);
}

void CudaBackend::enqueue(const RmsNorm& o) {
  const Tensor x = local(o.x), weight = local(o.weight);
  launch("rms_norm", norm_row, grid_of_rows(x.rows), dim3(block_threads), 0, stream_, view(o.out), view(x),
         weight.data<float>(), nullptr, false, o.epsilon);
}

void CudaBackend::enqueue(const Rotary& o) {
  int64_t* bad = watch_ids("INTERNAL", [rows = o.cosine.rows](int64_t token, int64_t position) {
    return "position " + std::to_string(position) + " of token " + std::to_string(token) + " is outside the table of " +
           std::to_string(rows) + " positions (in rotary)";
  });
  const Tensor cosine = local(o.cosine), sine = local(o.sine), positions = local(o.positions);
  for_elements("rotary", stream_, o.x.rows, o.x.columns / o.head_dim * cosine.columns,
               RotatePair{view(o.x), view(cosine), view(sine), positions.data<int32_t>(), o.head_dim, cosine.columns,
                          o.interleaved, bad});
}

void CudaBackend::enqueue(const Embedding& o) {
  const auto message = [rows = o.table.rows](int64_t position, int64_t id) {
    return "token id " + std::to_string(id) + " at position " + std::to_string(position) + " is outside the table of " +
           std::to_string(rows) + " entries";
  };
  if (!o.table.storage->on_host()) {
    int64_t* bad = watch_ids("INVALID_OPTION",
                             [message](int64_t position, int64_t id) { return message(position, id) + " (in embedding)"; });
    const Tensor ids = local(o.ids);
    for_elements("embedding", stream_, o.out.rows, o.out.columns,
                 EmbeddingElement{view(o.out), view(o.table), ids.data<int32_t>(), bad});
    return;
  }
  // Of a mapped table only the rows wanted are read.
  std::vector<int32_t> rows(static_cast<size_t>(o.ids.size()));
  download(rows.data(), o.ids);
  const auto size = static_cast<int64_t>(dtype_size(o.table.dtype));
  const auto row_bytes = static_cast<size_t>(o.table.columns * size);
  std::vector<std::byte> gathered(rows.size() * row_bytes);
  for (size_t t = 0; t < rows.size(); ++t) {
    const int64_t id = rows[t];
    if (id < 0 || id >= o.table.rows) throw Error("INVALID_OPTION", message(static_cast<int64_t>(t), id));
    std::memcpy(gathered.data() + t * row_bytes, o.table.bytes() + id * o.table.stride * size, row_bytes);
  }
  const Tensor copy = scratch(o.table.dtype, o.out.rows, o.out.columns);
  context_->to_device(copy, gathered.data());
  cast(stream_, view(o.out), view(copy));
}

void CudaBackend::enqueue(const TakeColumns& o) {
  const Tensor x = local(o.x);
  for_elements("take_columns", stream_, o.out.rows, o.out.columns,
               TakeElement{view(o.out), view(x), o.first, o.count, o.stride});
}

void CudaBackend::enqueue(const ScatterAdd& o) {
  int64_t* bad = watch_ids("INTERNAL", [text = describe(o.out)](int64_t, int64_t id) {
    return "row " + std::to_string(id) + " is outside output " + text + " (in scatterAdd)";
  });
  const Tensor x = local(o.x), ids = local(o.ids), factors = local(o.factors);
  for_elements("scatter_add", stream_, x.rows, x.columns,
               ScatterElement{view(o.out), view(x), ids.data<int32_t>(), factors.data<float>(), bad});
}

}  // namespace sparsegpt::cuda
