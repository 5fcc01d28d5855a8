// How the operations cut their work, and what they take of the device's memory beyond their operands. The backend sizes its
// buffers by this, and the program that loads it plans by it (cuda_kind.cpp): so there is nothing of CUDA in here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>

#include "core/operations.h"

// Of functions that kernels call too.
#ifdef __CUDACC__
#define SPARSEGPT_ON_DEVICE __host__ __device__
#else
#define SPARSEGPT_ON_DEVICE
#endif

namespace sparsegpt::cuda {

// --- operands ---------------------------------------------------------------------------------------------------------

inline bool on_host(const Tensor& t) { return t && t.storage->on_host(); }

// Of a matrix that passes through the device piece by piece.
inline int64_t rows_per_tile(int64_t columns) {
  constexpr int64_t most_bytes = int64_t{64} << 20;
  return std::max<int64_t>(1, most_bytes / (std::max<int64_t>(columns, 1) * static_cast<int64_t>(sizeof(float))));
}
inline size_t tile_bytes(const Tensor& t) {
  return static_cast<size_t>(std::min(rows_per_tile(t.columns), t.rows) * t.columns) * dtype_size(t.dtype);
}

// What CudaBackend::local takes: what stays until the end of the operation, and the most there is until it is made.
struct LocalBytes {
  size_t kept = 0, peak = 0;
};
inline LocalBytes local_bytes(const Tensor& t, DType type) {
  const size_t copy = on_host(t) ? byte_size(t) : 0;
  const size_t converted = t && t.dtype != type ? static_cast<size_t>(t.size()) * dtype_size(type) : 0;
  return {converted > 0 ? converted : copy, copy + converted};
}
inline size_t copy_bytes(const Tensor& t) { return on_host(t) ? byte_size(t) : 0; }
template <typename Setting>
size_t copy_bytes(const Setting&) {
  return 0;
}

// The copies of an operation's operands.
template <typename Operation>
size_t operand_bytes(const Operation& operation) {
  return std::apply([](const auto&... fields) { return (size_t{0} + ... + copy_bytes(fields)); }, operation.fields());
}
// Most operations take nothing else.
template <typename Operation>
size_t scratch_bytes(const Operation& operation) {
  return operand_bytes(operation);
}

// What an operation takes step after step, none of which is given back before its end.
struct Taken {
  size_t kept = 0, peak = 0;
  void add(const LocalBytes& local) {
    peak = std::max(peak, kept + local.peak);
    kept += local.kept;
  }
  void add_floats(int64_t count) {
    add({static_cast<size_t>(count) * sizeof(float), static_cast<size_t>(count) * sizeof(float)});
  }
};

// --- moving -----------------------------------------------------------------------------------------------------------

inline size_t scratch_bytes(const WriteFile&) { return 0; }
// Rows of one type go straight to where they belong.
inline size_t scratch_bytes(const Cast& o) {
  return on_host(o.in) && (o.in.dtype != o.out.dtype || !o.out.contiguous()) ? tile_bytes(o.in) : 0;
}
inline size_t scratch_bytes(const Transpose& o) { return on_host(o.in) ? tile_bytes(o.in) : 0; }
// Only the rows wanted of a mapped table.
inline size_t scratch_bytes(const Embedding& o) {
  return on_host(o.table) ? static_cast<size_t>(o.out.size()) * dtype_size(o.table.dtype) : copy_bytes(o.ids);
}

// --- products ---------------------------------------------------------------------------------------------------------

// cuBLAS multiplies operands of one type; others meet in float32.
inline DType product_type(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype ? a.dtype : DType::f32; }

struct ProductCut {
  DType type;    // of both operands
  bool direct;   // the product goes to the output; else to float32 sums that are converted
  int64_t step;  // features of the output, rows or columns of the weight, at a time
};
// Linear or Multiply.
template <typename Product>
ProductCut cut_product(const Product& o) {
  const DType type = product_type(o.x, o.weight);
  const bool direct = o.out.dtype == type || o.out.dtype == DType::f32;
  const bool whole = !on_host(o.weight) && o.weight.dtype == type && direct;
  return {type, direct, whole ? o.out.columns : std::min(o.out.columns, rows_per_tile(o.x.columns))};
}
template <typename Product>
size_t product_bytes(const Product& o, const Tensor& weight_part, const Tensor& bias_part) {
  const ProductCut c = cut_product(o);
  Taken taken;
  taken.add(local_bytes(o.x, c.type));
  taken.add(local_bytes(weight_part, c.type));
  if (!c.direct) taken.add_floats(o.x.rows * c.step);
  const size_t bias = copy_bytes(bias_part);
  taken.add({bias, bias});
  return taken.peak;
}
inline size_t scratch_bytes(const Linear& o) {
  if (o.out.size() == 0) return 0;
  const int64_t step = cut_product(o).step;
  return product_bytes(o, o.weight.row_range(0, step), o.bias ? o.bias.column_range(0, step) : Tensor{});
}
inline size_t scratch_bytes(const Multiply& o) {
  return o.out.size() == 0 ? 0 : product_bytes(o, o.weight.column_range(0, cut_product(o).step), {});
}
inline size_t scratch_bytes(const AccumulateProduct& o) {
  if (o.x.rows == 0) return 0;
  const DType type = product_type(o.x, o.y);
  Taken taken;
  taken.add(local_bytes(o.x, type));
  taken.add(local_bytes(o.y, type));
  return taken.peak;
}

// --- losses -----------------------------------------------------------------------------------------------------------

constexpr size_t running_loss_bytes = 24;
struct LossTile {
  int64_t tokens, words;
};
inline LossTile cut(const CrossEntropy& o) {
  return {std::min<int64_t>(2048, o.x.rows), std::min<int64_t>(8192, o.head.rows)};
}
inline size_t scratch_bytes(const CrossEntropy& o) {
  if (o.x.rows == 0) return 0;
  const LossTile tile = cut(o);
  const DType type = product_type(o.x, o.head);
  const LocalBytes left = local_bytes(o.x, type), bias = local_bytes(o.bias, DType::f32);
  const size_t tiles = static_cast<size_t>(o.x.rows) * running_loss_bytes +
                       static_cast<size_t>(tile.tokens * tile.words) * sizeof(float) +
                       local_bytes(o.head.row_range(0, tile.words), type).peak;
  return copy_bytes(o.targets) + std::max(left.peak, left.kept + std::max(bias.peak, bias.kept + tiles));
}

// Tokens whose logits of both models are held at once: in 512 MiB where the vocabulary is not larger than that for one token.
struct DivergenceCut {
  DType type, target_type;  // of the operands of the products
  int64_t tokens;
  bool direct;  // the gradient's product goes to dx; else to float32 sums that are converted
};
inline DivergenceCut cut(const KlDivergence& o) {
  constexpr int64_t floats = int64_t{128} << 20;
  const DType type = product_type(o.x, o.head);
  return {type, product_type(o.target, o.target_head),
          std::min({std::max<int64_t>(floats / (2 * o.head.rows), 1), o.x.rows, int64_t{1024}}),
          !o.dx || o.dx.dtype == type || o.dx.dtype == DType::f32};
}
inline size_t scratch_bytes(const KlDivergence& o) {
  if (o.x.rows == 0) return 0;
  const DivergenceCut c = cut(o);
  Taken taken;
  taken.add(local_bytes(o.x, c.type));
  taken.add(local_bytes(o.head, c.type));
  taken.add(local_bytes(o.bias, DType::f32));
  taken.add(local_bytes(o.target, c.target_type));
  taken.add(local_bytes(o.target_head, c.target_type));
  taken.add(local_bytes(o.target_bias, DType::f32));
  taken.add_floats(2 * c.tokens * o.head.rows);
  if (!c.direct) taken.add_floats(c.tokens * o.x.columns);
  return taken.peak;
}

// --- gradients --------------------------------------------------------------------------------------------------------

// Rows whose sums are made by one block of threads; the sums of such strips are then added in order.
constexpr int64_t strip_rows = 256;
inline int64_t strips_of(const Tensor& x) { return (x.rows + strip_rows - 1) / strip_rows; }
inline size_t scratch_bytes(const AccumulateRows& o) {
  return operand_bytes(o) + static_cast<size_t>(strips_of(o.x) * o.x.columns) * sizeof(float);
}

constexpr size_t norm_row_bytes = 16;
inline size_t scratch_bytes(const NormGradient& o) {
  return operand_bytes(o) + static_cast<size_t>(o.x.rows) * norm_row_bytes +
         static_cast<size_t>(strips_of(o.x) * o.x.columns) * sizeof(float);
}

// Of each query's probabilities in each head the logarithm of their sum and their mean gradient, and the largest gradient.
inline int64_t statistics_floats(const AttentionGradient& o) { return 2 * o.heads * o.q.rows + 1; }
inline size_t scratch_bytes(const AttentionGradient& o) {
  return operand_bytes(o) + static_cast<size_t>(statistics_floats(o)) * sizeof(float);
}

// --- selections -------------------------------------------------------------------------------------------------------

constexpr int selection_buckets = 2048;
constexpr size_t selection_state_bytes = selection_buckets * 8 + 32;

// Rows of a matrix whose equal scores are counted together.
inline int64_t selection_tile_rows(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1)); }
inline size_t selection_bytes(int64_t rows, int64_t tile_rows) {
  return selection_state_bytes + static_cast<size_t>((rows + tile_rows - 1) / tile_rows) * sizeof(uint64_t);
}
inline size_t scratch_bytes(const SelectMask& o) {
  const bool whole = o.m == 0 && !o.by_row;
  return copy_bytes(o.scores) + (whole ? selection_bytes(o.scores.rows, selection_tile_rows(o.scores.columns)) : 0);
}

// --- the factorisation ------------------------------------------------------------------------------------------------

// cuSOLVER's workspace. Its size can be asked only where there is a GPU, so this estimates it for plans: a panel of 256 columns.
inline size_t factor_workspace_bytes(int64_t n) { return static_cast<size_t>(n) * 256 * sizeof(float); }
inline size_t scratch_bytes(const FactorHessian& o) {
  return static_cast<size_t>(o.hessian.columns) * sizeof(float) + factor_workspace_bytes(o.hessian.columns);
}

// --- the solver -------------------------------------------------------------------------------------------------------

constexpr int sweep_rows = 32;  // rows of a weight that one block of threads sweeps
constexpr int sweep_columns = 128;  // columns that are swept at once, at most
constexpr int sweep_strip = 16;  // columns whose errors meet in registers

// The sweeps cut a matrix into pieces: blocks of `block` columns, each in pieces of at most `piece`.
struct Pieces {
  int64_t columns, block, piece;
  SPARSEGPT_ON_DEVICE int64_t per_block() const { return (block + piece - 1) / piece; }
  int64_t count() const { return (columns + block - 1) / block * per_block(); }
};

// A piece's factor is packed for the sweep in strips of `strip` columns. This many floats belong to the one that starts at column
// s0: its diagonal tile [sweep_strip, sweep_strip], rows one after another, then for each column right of it the column of U
// above, [sweep_strip].
SPARSEGPT_ON_DEVICE inline int strip_size(int size, int s0, int strip) {
  const int end = s0 + strip < size ? s0 + strip : size;
  return sweep_strip * (sweep_strip + size - end);
}
inline int packed_size(int size, int strip) {
  int total = 0;
  for (int s0 = 0; s0 < size; s0 += strip) total += strip_size(size, s0, strip);
  return total;
}

struct SolverCut {
  bool inside;  // groups are chosen inside the sweep,
  bool ahead;  // or masks before it, for a block at a time
  Pieces pieces;
  int strip;
  int packed;  // floats of a piece
  int64_t tiles;  // of rows
};
// Groups of up to a strip are chosen inside the sweep. Wider ones are blocks whose mask is chosen before the sweep, as are
// unstructured blocks of more columns than one sweep takes. Neither groups nor given masks depend on the block size.
inline SolverCut cut(const PruneSparsegpt& o) {
  const int64_t columns = o.weight.columns;
  const bool groups = !o.given && o.m > 0;
  SolverCut c{};
  c.inside = groups && o.m <= sweep_strip;
  const int64_t block = std::min<int64_t>(columns, c.inside  ? sweep_columns / o.m * o.m
                                                   : groups  ? o.m
                                                   : o.given ? sweep_columns
                                                             : o.block_size);
  c.pieces = {columns, block, std::min<int64_t>(block, sweep_columns)};
  c.ahead = !o.given && !c.inside && (groups || block > c.pieces.piece);
  c.strip = c.inside ? sweep_strip / o.m * o.m : sweep_strip;
  c.packed = packed_size(static_cast<int>(c.pieces.piece), c.strip);
  c.tiles = (o.weight.rows + sweep_rows - 1) / sweep_rows;
  return c;
}
inline size_t scratch_bytes(const PruneSparsegpt& o) {
  const SolverCut c = cut(o);
  const int64_t rows = o.weight.rows, columns = o.weight.columns, piece = c.pieces.piece;
  const int64_t floats = rows * columns  // the errors
                         + c.pieces.count() * (piece * piece + c.packed)  // R_qq⁻¹, and packed
                         + columns  // its diagonal
                         + rows * piece  // errors on their way to a piece
                         + (c.ahead ? rows * c.pieces.block : 0)  // the block whose mask is chosen
                         + (o.bits > 0 ? 2 * rows * o.groups() : 0);  // grids
  return static_cast<size_t>(floats) * sizeof(float) + 3 * sizeof(float) + static_cast<size_t>(c.tiles) * sizeof(double) +
         selection_bytes(rows, sweep_rows) + copy_bytes(o.given) + copy_bytes(o.factor) + copy_bytes(o.dead);
}

// --- least squares ----------------------------------------------------------------------------------------------------

// A direction, its product with the factor, and that with H, of the rows that are worked on together; a square for each row, and
// their sum.
inline size_t scratch_bytes(const ConjugateGradients& o) {
  const int64_t rows = o.tile_rows();
  return static_cast<size_t>(3 * rows * o.weight.columns) * sizeof(float) + static_cast<size_t>(rows + 1) * sizeof(double) +
         copy_bytes(o.mask) + copy_bytes(o.factor);
}

// --- inspection -------------------------------------------------------------------------------------------------------

inline size_t scratch_bytes(const CountZeros& o) {
  return (on_host(o.tensor) ? tile_bytes(o.tensor) : 0) + copy_bytes(o.patterns) +
         static_cast<size_t>(1 + o.pattern_count()) * sizeof(uint64_t);
}

}  // namespace sparsegpt::cuda
