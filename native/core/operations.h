// The operation table: every operation of a device, declared once. An operation is a struct of its operands and settings, with
// what must hold of them. The backends compute it (`compute`), the addon reads it from a JavaScript object with the same names
// (src/native/operations.ts, which has the other half of the table: what an operation makes and costs).
//
// Activations are [tokens, features]; a linear layer's weight is [out, in] (row-major). "Compute type" is the element type of the
// activations: float32, bfloat16 or float16; sums are always accumulated in float32 or better. Activations may have no tokens at
// all (of a routed expert), and rows that are farther apart than they are long. A failed check is a defect of the caller:
// INTERNAL, unless the comment names another code. What depends on the elements (ids, NaN) the backends check as they compute.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>

#include "core/require.h"
#include "core/tensor.h"

namespace sparsegpt {

// relu2 is the square of relu. The last two are those of gpt-oss's experts, with its constants: clamped_swish(x) is
// c · sigmoid(1.702 c) of c = min(x, 7), and clamped_linear(x) is 1 + x, with x between -7 and 7.
enum class Activation { relu, gelu, gelu_tanh, silu, relu2, clamped_swish, clamped_linear };

// The fields by which JavaScript hands an operation over (head_dim is headDim there), and the operands that it writes.
#define SPARSEGPT_FIELDS(...)                              \
  static constexpr const char* field_names = #__VA_ARGS__; \
  auto fields() { return std::tie(__VA_ARGS__); }          \
  auto fields() const { return std::tie(__VA_ARGS__); }
#define SPARSEGPT_WRITES(...) \
  auto writes() const { return std::tie(__VA_ARGS__); }

// --- moving and converting ----------------------------------------------------------------------------------------------

// Between float types.
struct Cast {
  Tensor out, in;
  SPARSEGPT_FIELDS(out, in)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(in, "input");
    require_float(out, "output");
    require_shape(out, in.rows, in.columns, "output");
  }
};

// out[j, i] = in[i, j]; between float types, or of uint8.
struct Transpose {
  Tensor out, in;
  SPARSEGPT_FIELDS(out, in)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_shape(out, in.columns, in.rows, "output");
    if (in.dtype == DType::u8) {
      require(out.dtype == DType::u8, "output must be uint8");
    } else {
      require_float(in, "input");
      require_float(out, "output");
    }
  }
};

struct Fill {
  Tensor out;  // float32 or float64
  double value;
  SPARSEGPT_FIELDS(out, value)
  SPARSEGPT_WRITES(out)
  void check() const {
    require(out && out.contiguous() && (out.dtype == DType::f32 || out.dtype == DType::f64),
            "fill needs a contiguous float32 or float64 tensor");
  }
};

// The tensor's bytes to an open file. Throws WRITE_FAILED.
struct WriteFile {
  Tensor tensor;
  int fd;
  int64_t position;
  SPARSEGPT_FIELDS(tensor, fd, position)
  SPARSEGPT_WRITES()
  void check() const { require(tensor && tensor.contiguous(), "a tensor to be written to a file must be contiguous"); }
};

// Seconds of the device's clock at this point of the queue, for differences.
struct Timestamp {
  Tensor out;  // f64 [1, 1]
  SPARSEGPT_FIELDS(out)
  SPARSEGPT_WRITES(out)
  void check() const { require_plain(out, 1, 1, DType::f64, "output"); }
};

// --- forward --------------------------------------------------------------------------------------------------------------

// out[t] = table[ids[t]]. An id outside the table is INVALID_OPTION.
struct Embedding {
  Tensor out, table, ids;  // ids: i32
  SPARSEGPT_FIELDS(out, table, ids)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(table, "table");
    require_float(out, "output");
    require_plain(ids, ids.rows, ids.columns, DType::i32, "ids");
    require_shape(out, ids.size(), table.columns, "output");
  }
};

// out = x Wᵀ + b; there may be no bias.
struct Linear {
  Tensor out, x, weight, bias;
  SPARSEGPT_FIELDS(out, x, weight, bias)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(x, "x");
    require_float(weight, "weight");
    require_float(out, "output");
    require(x.columns == weight.columns, "x " + describe(x) + " does not fit weight " + describe(weight));
    require_shape(out, x.rows, weight.rows, "output");
    if (bias) {
      require_float(bias, "bias");
      require_shape(bias, 1, weight.rows, "bias");
    }
  }
};

inline void require_map(const Tensor& out, const Tensor& x) {
  require_float(x, "input");
  require_float(out, "output");
  require_shape(out, x.rows, x.columns, "output");
}

// The norms of every row; out may be x. Their weights are f32 [1, columns].
struct LayerNorm {
  Tensor out, x, weight, bias;
  float epsilon;
  SPARSEGPT_FIELDS(out, x, weight, bias, epsilon)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_map(out, x);
    require_plain(weight, 1, x.columns, DType::f32, "weight");
    require_plain(bias, 1, x.columns, DType::f32, "bias");
  }
};
struct RmsNorm {
  Tensor out, x, weight;
  float epsilon;
  SPARSEGPT_FIELDS(out, x, weight, epsilon)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_map(out, x);
    require_plain(weight, 1, x.columns, DType::f32, "weight");
  }
};

// Rotates pairs (i, i + pairs) of every head in place, or (2i, 2i + 1) when interleaved: row t by the angles of positions[t],
// i32 [1, tokens], whose cosine and sine are rows of f32 [positions, pairs]. A position without a row is INTERNAL.
struct Rotary {
  Tensor x, cosine, sine, positions;
  int64_t head_dim;
  bool interleaved;
  SPARSEGPT_FIELDS(x, cosine, sine, positions, head_dim, interleaved)
  SPARSEGPT_WRITES(x)
  void check() const {
    require_float(x, "x");
    require_plain(cosine, cosine.rows, cosine.columns, DType::f32, "cosine");
    require_plain(sine, cosine.rows, cosine.columns, DType::f32, "sine");
    require_plain(positions, 1, x.rows, DType::i32, "positions");
    require(head_dim > 0 && 2 * cosine.columns <= head_dim && x.columns % head_dim == 0,
            "x " + describe(x) + " does not hold heads of " + std::to_string(head_dim) + " dimensions");
  }
};

// The operands of an attention.
template <typename Operation>
void require_attention(const Operation& o) {
  require(o.heads > 0 && o.kv_heads > 0 && o.heads % o.kv_heads == 0, "heads do not divide");
  require(o.sequences > 0 && o.q.rows % o.sequences == 0 && o.k.rows % o.sequences == 0, "sequences do not divide");
  require(o.start >= 0 && o.start + o.queries() <= o.keys(), "the last query has no key");
  require_float(o.q, "q");
  require_shape(o.q, o.q.rows, o.heads * o.head_dim, "q");
  require_shape(o.k, o.k.rows, o.kv_heads * o.head_dim, "k");
  require_shape(o.v, o.k.rows, o.kv_heads * o.head_dim, "v");
  require(o.q.dtype == o.k.dtype && o.q.dtype == o.v.dtype, "q, k and v must agree in type");
  if (o.slopes) require_plain(o.slopes, 1, o.heads, DType::f32, "slopes");
  if (o.sinks) require_plain(o.sinks, 1, o.heads, DType::f32, "sinks");
}

// Causal attention over independent sequences that lie one after another: of each q.rows / sequences queries and k.rows /
// sequences keys. The first query stands at key `start`, so query i sees the keys j <= start + i; there are at least as many keys
// as the last query sees. Heads lie side by side in a row of q, k and v; query head h reads key/value head h / (heads / kv_heads).
struct Attention {
  Tensor out, q, k, v;
  Tensor slopes;  // ALiBi, f32 [1, heads], may be empty: slope * (key - query) is added to the score
  Tensor sinks;  // f32 [1, heads], may be empty: the score of one more key that every query sees, whose value is zero
  int64_t sequences, start, heads, kv_heads, head_dim;
  float scale;  // of the scores q · k
  int64_t window;  // > 0: a query sees its latest `window` keys only, its own among them
  float softcap;  // > 0: a scaled score s becomes softcap * tanh(s / softcap)
  SPARSEGPT_FIELDS(out, q, k, v, slopes, sinks, sequences, start, heads, kv_heads, head_dim, scale, window, softcap)
  SPARSEGPT_WRITES(out)
  int64_t queries() const { return q.rows / sequences; }
  int64_t keys() const { return k.rows / sequences; }
  void check() const {
    require_attention(*this);
    require_shape(out, q.rows, q.columns, "output");
    require(q.dtype == out.dtype, "q and output must agree in type");
  }
};

// x = f(x)
struct Activate {
  Tensor x;
  Activation kind;
  SPARSEGPT_FIELDS(x, kind)
  SPARSEGPT_WRITES(x)
  void check() const { require_float(x, "x"); }
};

inline void require_pair(const Tensor& x, const Tensor& y) {
  require_float(x, "first operand");
  require_float(y, "second operand");
  require_shape(y, x.rows, x.columns, "second operand");
}

// x = f(x) * up
struct Gate {
  Tensor x, up;
  Activation kind;
  SPARSEGPT_FIELDS(x, up, kind)
  SPARSEGPT_WRITES(x)
  void check() const { require_pair(x, up); }
};

// x += y
struct Add {
  Tensor x, y;
  SPARSEGPT_FIELDS(x, y)
  SPARSEGPT_WRITES(x)
  void check() const { require_pair(x, y); }
};

// x *= factor
struct Scale {
  Tensor x;
  float factor;
  SPARSEGPT_FIELDS(x, factor)
  SPARSEGPT_WRITES(x)
  void check() const { require_float(x, "x"); }
};

// x = cap * tanh(x / cap)
struct Softcap {
  Tensor x;
  float cap;
  SPARSEGPT_FIELDS(x, cap)
  SPARSEGPT_WRITES(x)
  void check() const {
    require_float(x, "x");
    require(cap > 0, "the cap must be positive");
  }
};

// A part of a fused projection: out[t, g * count + j] = x[t, g * stride + first + j] for j < count, g < out.columns / count.
struct TakeColumns {
  Tensor out, x;
  int64_t first, count, stride;
  SPARSEGPT_FIELDS(out, x, first, count, stride)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(x, "x");
    require_shape(out, x.rows, out.columns, "output");
    require(out.dtype == x.dtype && count > 0 && out.columns % count == 0 && first >= 0 && stride >= 0 &&
                first + (out.columns / count - 1) * stride + count <= x.columns,
            "x " + describe(x) + " does not hold the columns of output " + describe(out));
  }
};

// out[ids[t]] += factors[t] * x[t]; ids i32, factors f32, of the rows of x. No id occurs twice. An id outside is INTERNAL.
struct ScatterAdd {
  Tensor out, x, ids, factors;
  SPARSEGPT_FIELDS(out, x, ids, factors)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(x, "x");
    require_float(out, "output");
    require_plain(ids, ids.rows, ids.columns, DType::i32, "ids");
    require_shape(x, ids.size(), out.columns, "x");
    require_plain(factors, 1, x.rows, DType::f32, "factors");
  }
};

// The operands of logits.
inline void require_head(const Tensor& x, const Tensor& head, const Tensor& bias) {
  require_float(x, "x");
  require_float(head, "head");
  require(x.columns == head.columns, "x " + describe(x) + " does not fit head " + describe(head));
  if (bias) {
    require_float(bias, "bias");
    require_shape(bias, 1, head.rows, "bias");
  }
}

// losses[t] = -log softmax(logits)[targets[t]], f32 [1, tokens], with logits = head x[t] + bias (which may be empty), capped as
// Softcap does when softcap > 0; they are formed in tiles only. A target outside the vocabulary is INVALID_OPTION. likeliest, i32
// [1, tokens], takes the word of the largest logit, the first of equal ones; it may be empty.
struct CrossEntropy {
  Tensor losses, x, head, bias, targets;
  float softcap;
  Tensor likeliest = {};
  SPARSEGPT_FIELDS(losses, x, head, bias, targets, softcap, likeliest)
  SPARSEGPT_WRITES(losses)
  void check() const {
    require_plain(losses, 1, x.rows, DType::f32, "losses");
    require_plain(targets, 1, x.rows, DType::i32, "targets");
    require_head(x, head, bias);
    if (likeliest) require_plain(likeliest, 1, x.rows, DType::i32, "likeliest words");
  }
};

// --- calibration ----------------------------------------------------------------------------------------------------------

// gram += scale * xᵀ x, upper triangle only; f32 [in, in].
struct AccumulateGram {
  Tensor gram, x;
  float scale;
  SPARSEGPT_FIELDS(gram, x, scale)
  SPARSEGPT_WRITES(gram)
  void check() const {
    require_float(x, "x");
    require_plain(gram, x.columns, x.columns, DType::f32, "gram");
  }
};

// sums += scale * Σ_t x[t]²; f32 [1, in].
struct AccumulateSquares {
  Tensor sums, x;
  float scale;
  SPARSEGPT_FIELDS(sums, x, scale)
  SPARSEGPT_WRITES(sums)
  void check() const {
    require_float(x, "x");
    require_plain(sums, 1, x.columns, DType::f32, "sums");
  }
};

// sums += scale * xᵀ y; f32 [columns of x, columns of y].
struct AccumulateProduct {
  Tensor sums, x, y;
  float scale;
  SPARSEGPT_FIELDS(sums, x, y, scale)
  SPARSEGPT_WRITES(sums)
  void check() const {
    require_float(x, "x");
    require_float(y, "y");
    require(x.rows == y.rows, "x " + describe(x) + " and y " + describe(y) + " differ in rows");
    require_plain(sums, x.columns, y.columns, DType::f32, "sums");
  }
};

// Scales a Gram matrix to a unit diagonal, in its upper triangle: gram[i, j] /= norms[i] * norms[j] with norms = sqrt of the
// diagonal, f32 [1, in]. Rows and columns of a zero on the diagonal become zero.
struct NormalizeGram {
  Tensor gram, norms;
  SPARSEGPT_FIELDS(gram, norms)
  SPARSEGPT_WRITES(gram, norms)
  void check() const {
    require_plain(gram, gram.columns, gram.columns, DType::f32, "gram");
    require_plain(norms, 1, gram.columns, DType::f32, "norms");
  }
};

// x[i, j] *= factors[j], or /= (inverse), where a factor of zero gives zero; factors f32 [1, columns].
struct ScaleColumns {
  Tensor x, factors;
  bool inverse;
  SPARSEGPT_FIELDS(x, factors, inverse)
  SPARSEGPT_WRITES(x)
  void check() const {
    require_plain(x, x.rows, x.columns, DType::f32, "x");
    require_plain(factors, 1, x.columns, DType::f32, "factors");
  }
};

// --- pruning: weights are f32 [rows, columns]; masks u8 [rows, columns], 1 where a weight is pruned ---------------------------

// Throws NON_FINITE "<subject> has a NaN or infinite entry in row <row>" when there is one; of a vector without the row.
struct CheckFinite {
  Tensor x;  // f32
  std::string subject;
  SPARSEGPT_FIELDS(x, subject)
  SPARSEGPT_WRITES()
  static std::string message(const std::string& subject, int64_t rows, int64_t row) {
    return subject + " has a NaN or infinite entry" + (rows > 1 ? " in row " + std::to_string(row) : "");
  }
  void check() const { require_plain(x, x.rows, x.columns, DType::f32, "x"); }
};

// out = |weight| · sqrt(squares) of the column; squares f32 [1, columns] (Wanda, Sun et al. 2023, arXiv 2306.11695).
struct Scores {
  Tensor out, weight, squares;
  SPARSEGPT_FIELDS(out, weight, squares)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(out, weight.rows, weight.columns, DType::f32, "output");
    require_plain(squares, 1, weight.columns, DType::f32, "squares");
  }
};

// The smallest of the scores, whose signs are not looked at. With m > 0 the n smallest of every m neighbours in a row; else
// trunc(count · sparsity) of all, or of each row (by_row), of equal ones the first in row order. `inclusive` (of the whole matrix
// only): those up to the score of that rank, counted from 0, and all that equal it, as the SparseGPT reference does for magnitude.
// INVALID_OPTION when m does not divide the columns.
struct SelectMask {
  Tensor mask, scores;  // scores: f32, finite
  double sparsity;
  int n, m;
  bool by_row, inclusive;
  SPARSEGPT_FIELDS(mask, scores, sparsity, n, m, by_row, inclusive)
  SPARSEGPT_WRITES(mask)
  void check() const {
    require_plain(scores, scores.rows, scores.columns, DType::f32, "scores");
    require_plain(mask, scores.rows, scores.columns, DType::u8, "mask");
    require(!(by_row && inclusive), "a row's choice is not inclusive");
    if (m > 0) require_groups(scores.columns, n, m);
  }
};

// weight = 0 where the mask is not 0.
struct ApplyMask {
  Tensor weight, mask;
  SPARSEGPT_FIELDS(weight, mask)
  SPARSEGPT_WRITES(weight)
  void check() const {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(mask, weight.rows, weight.columns, DType::u8, "mask");
  }
};

// The mask of the zeros: 1 where x is zero, else 0.
struct MarkZeros {
  Tensor mask, x;
  SPARSEGPT_FIELDS(mask, x)
  SPARSEGPT_WRITES(mask)
  void check() const {
    require_plain(x, x.rows, x.columns, DType::f32, "x");
    require_plain(mask, x.rows, x.columns, DType::u8, "mask");
  }
};

namespace factor_report {
enum { dampening, retries, dead_columns, count };
}

// Factors the damped Hessian H = R Rᵀ (R upper triangular) in place, from its upper triangle; what is below the diagonal then is
// not defined. Dead columns (H_jj = 0) are marked in `dead`, u8 [1, columns]. `report`, f64 [1, count of factor_report]: the
// dampening used, how often it was raised, how many columns are dead. Throws NON_FINITE and NOT_POSITIVE_DEFINITE.
struct FactorHessian {
  Tensor hessian, dead, report;
  double dampening;  // added to the diagonal, as a share of its mean
  SPARSEGPT_FIELDS(hessian, dead, report, dampening)
  SPARSEGPT_WRITES(hessian, dead, report)
  void check() const {
    require_plain(hessian, hessian.columns, hessian.columns, DType::f32, "hessian");
    require_plain(dead, 1, hessian.columns, DType::u8, "dead");
    require_plain(report, 1, factor_report::count, DType::f64, "report");
  }
};

// out = x R, x Rᵀ (transposed), x R⁻¹ (inverse) or x R⁻ᵀ, f32 [rows, columns], with R as FactorHessian leaves it. out is not x.
struct TriangularProduct {
  Tensor out, x, factor;
  bool inverse, transposed;
  SPARSEGPT_FIELDS(out, x, factor, inverse, transposed)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_plain(x, x.rows, x.columns, DType::f32, "x");
    require_plain(out, x.rows, x.columns, DType::f32, "output");
    require_plain(factor, x.columns, x.columns, DType::f32, "factor");
    require(out.storage != x.storage, "a triangular product is not made in place");
  }
};

namespace descent_report {
enum { iterations, residual, count };
}

// Conjugate gradients on H = R Rᵀ, with R as FactorHessian leaves it, for each row w of the weight: from where it is towards the
// smallest w H wᵀ / 2 - b wᵀ over the entries that are not masked; the masked ones stay as they are. `residual`, f32
// [rows, columns]: b - w H, of which the masked entries are not looked at; afterwards that of the result, zero where masked. Ends
// when the norm of the residual, over rows that are worked on together, is `tolerance` times what it was. `report`, f64 [1, count
// of descent_report]: the most iterations that any rows took, and the largest share of a residual that is left.
struct ConjugateGradients {
  Tensor weight, residual, mask, factor, report;
  double tolerance;
  int64_t iterations;  // at most
  SPARSEGPT_FIELDS(weight, residual, mask, factor, report, tolerance, iterations)
  SPARSEGPT_WRITES(weight, residual, report)
  // Rows that are worked on together: what they take besides stays small next to the factor.
  int64_t tile_rows() const {
    constexpr int64_t most_elements = int64_t{1} << 24;
    return std::min(weight.rows, std::max<int64_t>(64, most_elements / std::max<int64_t>(weight.columns, 1)));
  }
  void check() const {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(residual, weight.rows, weight.columns, DType::f32, "residual");
    require_plain(mask, weight.rows, weight.columns, DType::u8, "mask");
    require_plain(factor, weight.columns, weight.columns, DType::f32, "factor");
    require_plain(report, 1, descent_report::count, DType::f64, "report");
    require(weight.storage != residual.storage, "weight and residual are one");
  }
};

// SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774) with the factor R. Zeros stay zero: they go first. What goes is `given` (u8, may be empty), else with
// m > 0 the n smallest scores of every m neighbours in a row, else trunc(count · sparsity) smallest of every block_size columns.
// `loss`: f64 [1, 1], ½ Σ (w - q)² / U_jj². Throws NON_FINITE, INVALID_OPTION as SelectMask does.
//
// bits > 0 also rounds the kept weights to step · (code - zero), code = 0 … 2^bits - 1, with a grid of each row or, where `steps` says
// so, of each group of a row's columns, from the weights as they come in: from the smallest to the largest and zero (zero is on the
// grid), or, if symmetric, as far below zero as above it. `clip`: the range is the share of that, 0.5 to 1, that has the least squared
// error. `steps`, of f32, bf16 or f16, [rows, groups], to which steps are rounded, and `zeros`, f32, take the grids; both may be empty.
struct PruneSparsegpt {
  Tensor weight, mask, loss, factor, dead, given;
  double sparsity;
  int n, m;
  int64_t block_size;
  int bits;
  Tensor steps = {}, zeros = {};
  bool symmetric = false, clip = false;
  SPARSEGPT_FIELDS(weight, mask, loss, factor, dead, given, sparsity, n, m, block_size, bits, steps, zeros, symmetric, clip)
  SPARSEGPT_WRITES(weight, mask, loss)
  int64_t groups() const { return steps ? steps.columns : 1; }
  int64_t group_size() const { return weight.columns / groups(); }
  // By sparsity the weights of all rows are compared.
  bool couples_rows() const { return !given && m == 0; }
  void check() const {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(mask, weight.rows, weight.columns, DType::u8, "mask");
    require_plain(loss, 1, 1, DType::f64, "loss");
    require_plain(factor, weight.columns, weight.columns, DType::f32, "factor");
    require_plain(dead, 1, weight.columns, DType::u8, "dead");
    require(block_size > 0 && bits >= 0 && bits <= 16, "the block size or the bits are out of range");
    require(!steps == !zeros, "steps and zeros of the grids go together");
    if (steps) {
      require_float(steps, "steps");
      require_plain(steps, weight.rows, steps.columns, steps.dtype, "steps");
      require_plain(zeros, weight.rows, steps.columns, DType::f32, "zeros");
      require(bits > 0 && steps.columns > 0 && weight.columns % steps.columns == 0, "the groups do not fit the weight");
      if (groups() > 1) check_groups();
    }
    if (given) {
      require_plain(given, weight.rows, weight.columns, DType::u8, "given mask");
    } else if (m > 0) {
      require_groups(weight.columns, n, m);
    }
  }

 private:
  // What is chosen and swept together never has columns of two grids in part.
  void check_groups() const {
    const int64_t size = group_size();
    if (m > 0 && !given && size % m != 0)
      throw Error("INVALID_OPTION", "groups of " + std::to_string(size) +
                                        " columns with a grid of their own are not whole groups of " + std::to_string(m));
    if (size % 8 != 0) throw Error("INVALID_OPTION", "a group with a grid of its own must be a multiple of 8 columns");
    if (couples_rows() && size % block_size != 0 && block_size % size != 0)
      throw Error("INVALID_OPTION", "the block size " + std::to_string(block_size) + " and groups of " +
                                        std::to_string(size) + " columns do not fit each other: one must divide the other");
  }
};

// --- gradients: dy is the loss's gradient by y; of the compute type where y is, float32 of parameters ---------------------------

// out = x W: what a linear layer's input gets from the gradient x of its output.
struct Multiply {
  Tensor out, x, weight;  // weight: [columns of x, columns of out]
  SPARSEGPT_FIELDS(out, x, weight)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(x, "x");
    require_float(weight, "weight");
    require_float(out, "output");
    require(x.columns == weight.rows, "x " + describe(x) + " does not fit weight " + describe(weight));
    require_shape(out, x.rows, weight.columns, "output");
  }
};

// sums += Σ_t x[t]; f32 [1, columns].
struct AccumulateRows {
  Tensor sums, x;
  SPARSEGPT_FIELDS(sums, x)
  SPARSEGPT_WRITES(sums)
  void check() const {
    require_float(x, "x");
    require_plain(sums, 1, x.columns, DType::f32, "sums");
  }
};

// The gradients of LayerNorm, or of RmsNorm when there is no dbias: dx, and added to dweight and dbias, f32 [1, columns], the
// parameters'. dx may be dy.
struct NormGradient {
  Tensor dx, dweight, dbias, x, dy, weight;
  float epsilon;
  SPARSEGPT_FIELDS(dx, dweight, dbias, x, dy, weight, epsilon)
  SPARSEGPT_WRITES(dx, dweight)
  void check() const {
    require_map(dx, x);
    require_map(dy, x);
    require_plain(weight, 1, x.columns, DType::f32, "weight");
    require_plain(dweight, 1, x.columns, DType::f32, "dweight");
    if (dbias) require_plain(dbias, 1, x.columns, DType::f32, "dbias");
  }
};

// The gradients of Attention, from its operands and the gradient dout of its output. Nothing of the size of the scores is stored.
// dsinks, f32 [rows of q, heads], is there if sinks are: what each query adds to their gradient.
struct AttentionGradient {
  Tensor dq, dk, dv, dsinks, q, k, v, dout, slopes, sinks;
  int64_t sequences, start, heads, kv_heads, head_dim;
  float scale;
  int64_t window;
  float softcap;
  SPARSEGPT_FIELDS(dq, dk, dv, dsinks, q, k, v, dout, slopes, sinks, sequences, start, heads, kv_heads, head_dim, scale,
                   window, softcap)
  SPARSEGPT_WRITES(dq, dk, dv)
  int64_t queries() const { return q.rows / sequences; }
  int64_t keys() const { return k.rows / sequences; }
  void check() const {
    require_attention(*this);
    require_shape(dout, q.rows, q.columns, "dout");
    require_shape(dq, q.rows, q.columns, "dq");
    require_shape(dk, k.rows, k.columns, "dk");
    require_shape(dv, v.rows, v.columns, "dv");
    require(static_cast<bool>(dsinks) == static_cast<bool>(sinks), "dsinks must be there if sinks are");
    if (dsinks) require_plain(dsinks, q.rows, heads, DType::f32, "dsinks");
    for (const Tensor* gradient : {&dout, &dq, &dk, &dv})
      require(gradient->dtype == q.dtype, "gradients and q must agree in type");
  }
};

// dy = f'(x) * dy: the gradient of Activate by what x was before it.
struct ActivateGradient {
  Tensor dy, x;
  Activation kind;
  SPARSEGPT_FIELDS(dy, x, kind)
  SPARSEGPT_WRITES(dy)
  void check() const { require_pair(dy, x); }
};

// The gradients of Gate, from what x was before it: dup = f(x) * dy, then dy = f'(x) * up * dy, which is the gradient by x.
struct GateGradient {
  Tensor dy, dup, x, up;
  Activation kind;
  SPARSEGPT_FIELDS(dy, dup, x, up, kind)
  SPARSEGPT_WRITES(dy, dup)
  void check() const {
    require_pair(dy, x);
    require_pair(dup, up);
    require_shape(up, x.rows, x.columns, "up");
  }
};

// The way back of TakeColumns: out[t, g * stride + first + j] = x[t, g * count + j] for j < count, g < x.columns / count.
struct PutColumns {
  Tensor out, x;
  int64_t first, count, stride;
  SPARSEGPT_FIELDS(out, x, first, count, stride)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(x, "x");
    require_shape(out, x.rows, out.columns, "output");
    require(out.dtype == x.dtype && count > 0 && x.columns % count == 0 && first >= 0 && stride >= 0 &&
                first + (x.columns / count - 1) * stride + count <= out.columns,
            "output " + describe(out) + " does not hold the columns of x " + describe(x));
  }
};

// dots[t] = x[t] · y[t]; f32 [1, rows]: the gradient by the factors of ScatterAdd.
struct RowDots {
  Tensor dots, x, y;
  SPARSEGPT_FIELDS(dots, x, y)
  SPARSEGPT_WRITES(dots)
  void check() const {
    require_pair(x, y);
    require_plain(dots, 1, x.rows, DType::f32, "dots");
  }
};

// errors[t] = ‖x[t] - target[t]‖² / ‖target[t]‖², f32 [1, rows]; when typical_norm > 0, a larger ‖target[t]‖² counts as the geometric
// mean of both. dx, which may be empty: scale times the gradient of their sum.
struct RelativeErrors {
  Tensor errors, dx, x, target;
  float scale, typical_norm;
  SPARSEGPT_FIELDS(errors, dx, x, target, scale, typical_norm)
  SPARSEGPT_WRITES(errors)
  void check() const {
    require_pair(x, target);
    require_plain(errors, 1, x.rows, DType::f32, "errors");
    if (dx) require_map(dx, x);
  }
};

// losses[t] = KL(p ‖ q) = Σ p log(p / q), f32 [1, tokens], of the distributions p = softmax(target_head target[t] + target_bias) and
// q = softmax(head x[t] + bias), whose logits are capped as Softcap does when softcap > 0. There may be no biases. dx, which may be
// empty: scale times the gradient of the losses' sum by x.
struct KlDivergence {
  Tensor losses, dx, x, head, bias, target, target_head, target_bias;
  float softcap, scale;
  SPARSEGPT_FIELDS(losses, dx, x, head, bias, target, target_head, target_bias, softcap, scale)
  SPARSEGPT_WRITES(losses)
  void check() const {
    require_plain(losses, 1, x.rows, DType::f32, "losses");
    require_head(x, head, bias);
    require_head(target, target_head, target_bias);
    require(x.rows == target.rows && head.rows == target_head.rows, "the models differ in tokens or in vocabulary");
    if (dx) require_map(dx, x);
  }
};

// One step of Adam (Kingma & Ba 2015, arXiv 1412.6980) with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101):
//   first = beta1 first + (1 - beta1) g;  second = beta2 second + (1 - beta2) g²;
//   weight -= rate (first / (1 - beta1^step) / (sqrt(second / (1 - beta2^step)) + epsilon) + decay weight).
// All f32. With keep_zeros weights that are zero stay so.
struct Adam {
  Tensor weight, first, second, gradient;
  float rate, beta1, beta2, epsilon, decay;
  int64_t step;  // from 1
  bool keep_zeros;
  SPARSEGPT_FIELDS(weight, first, second, gradient, rate, beta1, beta2, epsilon, decay, step, keep_zeros)
  SPARSEGPT_WRITES(weight, first, second)
  void check() const {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    for (const Tensor* t : {&first, &second, &gradient}) require_plain(*t, weight.rows, weight.columns, DType::f32, "state");
    require(step > 0, "steps are counted from 1");
  }
};

// --- packed matrices: a bit for every element, and the elements whose bit is set -----------------------------------------------

// The parts of a packed matrix [rows, columns] but for its values: bitmask u8 [rows, columns / 8 rounded up], the lowest bit first, 1
// where there is a value; offsets u8 [rows, 8], little-endian integers, where each row's values begin.
inline int64_t bitmask_columns(int64_t columns) { return (columns + 7) / 8; }
inline void require_packed(const Tensor& matrix, const Tensor& values, const Tensor& bitmask, const Tensor& offsets) {
  require_float(matrix, "matrix");
  require_plain(values, 1, values.columns, matrix.dtype, "values");
  require_plain(bitmask, matrix.rows, bitmask_columns(matrix.columns), DType::u8, "bitmask");
  require_plain(offsets, matrix.rows, 8, DType::u8, "offsets");
}

// Marks the elements that are to be kept, all but those whose bits are zero (-0 and NaN are kept), and counts them in each row,
// i32 [1, rows].
struct MarkValues {
  Tensor bitmask, counts, x;
  SPARSEGPT_FIELDS(bitmask, counts, x)
  SPARSEGPT_WRITES(bitmask, counts)
  void check() const {
    require_float(x, "x");
    require_plain(bitmask, x.rows, bitmask_columns(x.columns), DType::u8, "bitmask");
    require_plain(counts, 1, x.rows, DType::i32, "counts");
  }
};

// values [1, count] = the marked elements of x, row by row. The bitmask and the offsets are those of MarkValues.
struct PackValues {
  Tensor values, x, bitmask, offsets;
  SPARSEGPT_FIELDS(values, x, bitmask, offsets)
  SPARSEGPT_WRITES(values)
  void check() const { require_packed(x, values, bitmask, offsets); }
};

// The way back: out = the values where the bitmask has a bit, zero elsewhere. The parts may be damaged: where the offsets are not
// those of the bits, or a bit is set behind the last column, INVALID_CHECKPOINT "<subject> is damaged in row <row>: …".
struct UnpackValues {
  Tensor out, values, bitmask, offsets;
  std::string subject;
  SPARSEGPT_FIELDS(out, values, bitmask, offsets, subject)
  SPARSEGPT_WRITES(out)
  static std::string message(const std::string& subject, int64_t row) {
    return subject + " is damaged in row " + std::to_string(row) +
           ": its bitmask, its row_offsets and the number of its values contradict each other";
  }
  void check() const { require_packed(out, values, bitmask, offsets); }
};

// --- codes: the integers of weights that are rounded to grids, and how they are packed --------------------------------------------

// The grids of a matrix [rows, columns] of codes of 2 to 8 bits, one for each row and group of columns: a weight is
// scale · (code - zero point). scale [rows, groups], of a float type; zero_points u8 [rows, groups], which may be empty: then all are
// the middle code, 2^(bits - 1).
inline int middle_code(int bits) { return 1 << (bits - 1); }
inline int64_t code_bytes(int64_t count, int bits) { return (count * bits + 7) / 8; }
inline void require_groups_of(const Tensor& matrix, const Tensor& grids, int bits) {
  require(bits >= 2 && bits <= 8, "codes have 2 to 8 bits");
  require(
      grids && grids.rows == matrix.rows && grids.columns > 0 && matrix.columns % grids.columns == 0 && grids.contiguous(),
      "the grids " + describe(grids) + " do not fit the matrix " + describe(matrix));
}
inline void require_codes(const Tensor& codes, const Tensor& zero_points, int bits) {
  require_plain(codes, codes.rows, codes.columns, DType::u8, "codes");
  require(bits >= 2 && bits <= 8, "codes have 2 to 8 bits");
  if (!zero_points) return;
  require_groups_of(codes, zero_points, bits);
  require_plain(zero_points, codes.rows, zero_points.columns, DType::u8, "zero points");
}

// The grids that span the weights of each row and group, found as PruneSparsegpt does. steps: of the float type that they are rounded
// to; zeros: f32; both [rows, groups].
struct FindGrids {
  Tensor steps, zeros, x;
  int bits;
  bool symmetric, clip;
  SPARSEGPT_FIELDS(steps, zeros, x, bits, symmetric, clip)
  SPARSEGPT_WRITES(steps, zeros)
  void check() const {
    require_float(x, "x");
    require(x.contiguous(), "x must be contiguous");
    require_float(steps, "steps");
    require_groups_of(x, steps, bits);
    require_plain(zeros, x.rows, steps.columns, DType::f32, "zeros");
  }
};

// codes u8 [rows, columns]: the nearest on the grids, whose zeros become zero_points, u8.
struct QuantizeCodes {
  Tensor codes, zero_points, x, steps, zeros;
  int bits;
  SPARSEGPT_FIELDS(codes, zero_points, x, steps, zeros, bits)
  SPARSEGPT_WRITES(codes, zero_points)
  void check() const {
    require_float(x, "x");
    require_plain(codes, x.rows, x.columns, DType::u8, "codes");
    require_float(steps, "steps");
    require_groups_of(x, steps, bits);
    require_plain(zeros, x.rows, steps.columns, DType::f32, "zeros");
    require_plain(zero_points, x.rows, steps.columns, DType::u8, "zero points");
  }
};

// The way back: out [rows, columns] = scale · (code - zero point) in float32, rounded to the type of out.
struct DequantizeCodes {
  Tensor out, codes, scale, zero_points;
  int bits;
  SPARSEGPT_FIELDS(out, codes, scale, zero_points, bits)
  SPARSEGPT_WRITES(out)
  void check() const {
    require_float(out, "output");
    require_codes(codes, zero_points, bits);
    require_shape(out, codes.rows, codes.columns, "output");
    require_float(scale, "scale");
    require_groups_of(codes, scale, bits);
    require(!zero_points || zero_points.columns == scale.columns, "scale and zero points differ in groups");
  }
};

// Marks the codes that are not the zero point, as MarkValues does: bitmask u8 [rows, columns / 8 rounded up], counts i32 [1, rows].
struct MarkCodes {
  Tensor bitmask, counts, codes, zero_points;
  int bits;
  SPARSEGPT_FIELDS(bitmask, counts, codes, zero_points, bits)
  SPARSEGPT_WRITES(bitmask, counts)
  void check() const {
    require_codes(codes, zero_points, bits);
    require_plain(bitmask, codes.rows, bitmask_columns(codes.columns), DType::u8, "bitmask");
    require_plain(counts, 1, codes.rows, DType::i32, "counts");
  }
};

// Packed codes: those of a row are a stream of bits, the lowest of each first, which ends with a whole byte. With a bitmask the row has
// the marked codes only: packed u8 [1, bytes], and offsets u8 [rows, 8] say at which byte each row begins. Without one it has all:
// packed u8 [rows, bytes of a row], zero behind the last code.
inline void require_packed_codes(const Tensor& codes, const Tensor& packed, const Tensor& bitmask, const Tensor& offsets,
                                 int bits) {
  require(!bitmask == !offsets, "bitmask and offsets go together");
  if (!bitmask) {
    require_plain(packed, codes.rows, packed.columns, DType::u8, "packed codes");
    require(packed.columns >= code_bytes(codes.columns, bits), "the rows of packed codes are too short");
    return;
  }
  require_plain(packed, 1, packed.columns, DType::u8, "packed codes");
  require_plain(bitmask, codes.rows, bitmask_columns(codes.columns), DType::u8, "bitmask");
  require_plain(offsets, codes.rows, 8, DType::u8, "offsets");
}
struct PackCodes {
  Tensor packed, codes, bitmask, offsets;
  int bits;
  SPARSEGPT_FIELDS(packed, codes, bitmask, offsets, bits)
  SPARSEGPT_WRITES(packed)
  void check() const {
    require_codes(codes, {}, bits);
    require_packed_codes(codes, packed, bitmask, offsets, bits);
  }
};

// The way back; what the bitmask does not mark becomes the zero point. The parts may be damaged: where offsets, bits and codes contradict
// each other, bits are set that belong to nothing, or a zero point is no code, INVALID_CHECKPOINT "<subject> is damaged in row <row>: …".
struct UnpackCodes {
  Tensor codes, packed, bitmask, offsets, zero_points;
  int bits;
  std::string subject;
  SPARSEGPT_FIELDS(codes, packed, bitmask, offsets, zero_points, bits, subject)
  SPARSEGPT_WRITES(codes)
  static std::string message(const std::string& subject, int64_t row) {
    return subject + " is damaged in row " + std::to_string(row) +
           ": its codes, its zero points and, where there are some, its bitmask and row_offsets contradict each other";
  }
  void check() const {
    require_codes(codes, zero_points, bits);
    require_packed_codes(codes, packed, bitmask, offsets, bits);
  }
};

// --- strips: matrices for products with a few rows, which are bound by reading them --------------------------------------------

// What strips hold of a matrix: with `bits` 16 its bfloat16 elements, with 8 or 4 codes, which stand for (code - zero) * scale with a
// scale and a zero for every `group` neighbours in a row (all of a row, or a multiple of 32). With `masked` only what is not zero
// is there, and a bit for every element that says so. Sixteen rows form a strip; how its bytes lie is the backend's affair. Scales
// are kept as bfloat16 if `half_scales`, else as f32.
constexpr int64_t strip_rows = 16;
inline int64_t strip_count(int64_t rows) { return (rows + strip_rows - 1) / strip_rows; }
struct StripForm {
  int64_t columns, group;
  int bits;
  bool masked, half_scales;
  int64_t groups() const { return bits == 16 ? 0 : columns / group; }
  void check() const {
    require(bits == 16 || bits == 8 || bits == 4, "strips hold elements of 16, 8 or 4 bits");
    require(bits == 16 || group == columns || (group > 0 && group % 32 == 0 && columns % group == 0),
            "a group is a row, or a multiple of 32 columns that divides it");
  }
};
inline void require_strip_source(const StripForm& form, const Tensor& x, const Tensor& zeros) {
  form.check();
  require_plain(x, x.rows, x.columns, form.bits == 16 ? DType::bf16 : DType::u8, "x");
  if (form.bits < 16) require_plain(zeros, x.rows, form.groups(), DType::u8, "zeros");
}

// sizes i32 [1, strips] = the bytes of each strip.
struct MeasureStrips {
  Tensor sizes, x, zeros;  // zeros: with codes only
  int64_t group;
  int bits;
  bool masked, half_scales;
  SPARSEGPT_FIELDS(sizes, x, zeros, group, bits, masked, half_scales)
  SPARSEGPT_WRITES(sizes)
  StripForm form() const { return {x.columns, group, bits, masked, half_scales}; }
  void check() const {
    require_strip_source(form(), x, zeros);
    require_plain(sizes, 1, strip_count(x.rows), DType::i32, "sizes");
  }
};

// stream u8 [1, bytes]: the strips of x, each from its place in `offsets` on, u8 [strips, 8], little-endian integers that are the
// sums of the sizes; 64 bytes of any value follow the last one.
struct PackStrips {
  Tensor stream, x, zeros, scales, offsets;  // zeros, scales: [rows, groups], with codes only
  int64_t group;
  int bits;
  bool masked, half_scales;
  SPARSEGPT_FIELDS(stream, x, zeros, scales, offsets, group, bits, masked, half_scales)
  SPARSEGPT_WRITES(stream)
  StripForm form() const { return {x.columns, group, bits, masked, half_scales}; }
  void check() const {
    require_strip_source(form(), x, zeros);
    require_plain(stream, 1, stream.columns, DType::u8, "stream");
    require_plain(offsets, strip_count(x.rows), 8, DType::u8, "offsets");
    if (bits == 16) return;
    require_float(scales, "scales");
    require_shape(scales, x.rows, form().groups(), "scales");
    require(scales.contiguous(), "scales must be contiguous");
  }
};

// out = x Wᵀ + b of the matrix W [out.columns, x.columns] that PackStrips made a stream of; x has one to eight rows. With codes x may be
// rounded to 8 bits, with a scale for every 32 neighbours in a row, and products are summed exactly within these.
struct MultiplyStrips {
  Tensor out, x, stream, offsets, bias;
  int64_t group;
  int bits;
  bool masked, half_scales;
  SPARSEGPT_FIELDS(out, x, stream, offsets, bias, group, bits, masked, half_scales)
  SPARSEGPT_WRITES(out)
  static constexpr int64_t most_rows = 8;
  StripForm form() const { return {x.columns, group, bits, masked, half_scales}; }
  void check() const {
    form().check();
    require_float(x, "x");
    require_float(out, "output");
    require_shape(out, x.rows, out.columns, "output");
    require(x.rows <= most_rows, "strips are multiplied with at most 8 rows");
    require_plain(stream, 1, stream.columns, DType::u8, "stream");
    require_plain(offsets, strip_count(out.columns), 8, DType::u8, "offsets");
    if (!bias) return;
    require_float(bias, "bias");
    require_shape(bias, 1, out.columns, "bias");
  }
};

// --- inspection -----------------------------------------------------------------------------------------------------------

// stats f64 [1, 1 + patterns]: the number of zeros, then for each pattern (n, m) of `patterns`, i32 [patterns, 2] (may be empty),
// 1 when every group of m neighbours in a row has at least n zeros, else 0.
struct CountZeros {
  Tensor stats, tensor, patterns;
  SPARSEGPT_FIELDS(stats, tensor, patterns)
  SPARSEGPT_WRITES(stats)
  int64_t pattern_count() const { return patterns ? patterns.rows : 0; }
  void check() const {
    require_float(tensor, "tensor");
    if (patterns) require_plain(patterns, patterns.rows, 2, DType::i32, "patterns");
    require(pattern_count() <= 32, "at most 32 patterns are counted at once");
    require_plain(stats, 1, 1 + pattern_count(), DType::f64, "stats");
  }
};

// All of them: X(Operation). The name in JavaScript begins with a small letter.
// clang-format off
#define SPARSEGPT_OPERATIONS(X)                                                                                        \
  X(Cast) X(Transpose) X(Fill) X(WriteFile) X(Timestamp)                                                               \
  X(Embedding) X(Linear) X(LayerNorm) X(RmsNorm) X(Rotary) X(Attention) X(Activate) X(Gate) X(Add) X(Scale) X(Softcap) \
  X(TakeColumns) X(ScatterAdd) X(CrossEntropy)                                                                         \
  X(AccumulateGram) X(AccumulateSquares) X(AccumulateProduct) X(NormalizeGram) X(ScaleColumns)                         \
  X(CheckFinite) X(Scores) X(SelectMask) X(ApplyMask) X(MarkZeros) X(FactorHessian) X(TriangularProduct)               \
  X(ConjugateGradients) X(PruneSparsegpt)                                                                              \
  X(Multiply) X(AccumulateRows) X(NormGradient) X(AttentionGradient) X(ActivateGradient) X(GateGradient) X(PutColumns)  \
  X(RowDots) X(RelativeErrors) X(KlDivergence) X(Adam)                                                                 \
  X(MarkValues) X(PackValues) X(UnpackValues)                                                                          \
  X(FindGrids) X(QuantizeCodes) X(DequantizeCodes) X(MarkCodes) X(PackCodes) X(UnpackCodes)                            \
  X(MeasureStrips) X(PackStrips) X(MultiplyStrips)                                                                     \
  X(CountZeros)
// clang-format on

}  // namespace sparsegpt
