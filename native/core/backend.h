// What a device can do. A backend implements tensor operations; it knows nothing of models, files' formats or Node.
//
// Every operation runs on the device's queue thread, in the order of enqueuing, and reports bad input by throwing Error.
// Activations are [tokens, features]; a linear layer's weight is [out, in] (row-major). "Compute type" is the element type
// of the activations: float32, bfloat16 or float16; sums are always accumulated in float32 or better. Activations may have
// no tokens at all (of a routed expert), and rows that are farther apart than they are long.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "core/tensor.h"

namespace sparsegpt {

enum class Activation { relu, gelu, gelu_tanh, silu };

// Causal self-attention over `tokens / sequence` independent sequences. Heads lie side by side in a row of q, k and v;
// query head h reads key/value head h / (heads / kv_heads).
struct AttentionShape {
  int64_t sequence;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  float scale;
  int64_t window = 0;  // > 0: a query sees its latest `window` keys only, its own among them
  float softcap = 0;   // > 0: a scaled score s becomes softcap * tanh(s / softcap)
  Tensor slopes = {};  // ALiBi, f32 [1, heads], may be empty: slope * (key - query) is added to the score
};

// Which weights a solver removes. With a mask the mask decides, else with m > 0 the n smallest scores of every m
// neighbours in a row, else trunc(count * sparsity) smallest scores of the method's comparison group.
struct Selection {
  double sparsity = 0;
  int n = 0;
  int m = 0;
  Tensor mask;  // u8 [rows, columns], 1 = prune; may be empty
};

// What a solver reports, in a float64 tensor [1, count].
namespace solve_stats {
enum { loss, zeros, seconds, count };
}
namespace factor_stats {
enum { dampening, retries, dead_columns, seconds, count };
}

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string description() const = 0;

  // Waits until every operation so far has finished, for backends whose operations return earlier, and throws what only
  // showed meanwhile (naming the operation).
  virtual void synchronize() {}

  // Held while an operation runs: devices that share a backend take turns.
  std::mutex turn;

  // Memory. Storage allocates when first touched; see Storage::data.
  virtual std::shared_ptr<Storage> allocate(size_t bytes) = 0;

  // --- moving and converting ---------------------------------------------------------------------------------------
  virtual void upload(const Tensor& out, const void* host) = 0;       // contiguous, same type
  virtual void download(void* host, const Tensor& tensor) = 0;        // contiguous, same type
  virtual void cast(const Tensor& out, const Tensor& in) = 0;         // same shape; between float types
  virtual void transpose(const Tensor& out, const Tensor& in) = 0;    // out[j, i] = in[i, j]; between float types, or u8
  virtual void fill(const Tensor& out, double value) = 0;             // f32 or f64
  virtual void write_file(int fd, int64_t position, const Tensor& tensor) = 0;  // contiguous; WRITE_FAILED

  // --- forward -----------------------------------------------------------------------------------------------------
  virtual void embedding(const Tensor& out, const Tensor& table, const Tensor& ids) = 0;  // out[t] = table[ids[t]]
  virtual void linear(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias) = 0;  // x Wᵀ + b
  // The norms may work in place: out may be x.
  virtual void layer_norm(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) = 0;
  virtual void rms_norm(const Tensor& out, const Tensor& x, const Tensor& weight, float eps) = 0;
  // Rotates pairs (i, i + rotary / 2) of every head in place, or (2i, 2i + 1) when interleaved; cosine and sine are f32
  // [sequence, rotary / 2].
  virtual void rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine, int64_t head_dim, bool interleaved) = 0;
  virtual void attention(const Tensor& out, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape&) = 0;
  virtual void activation(const Tensor& x, Activation kind) = 0;                     // x = f(x)
  virtual void gate(const Tensor& x, const Tensor& up, Activation kind) = 0;         // x = f(x) * up
  virtual void add(const Tensor& x, const Tensor& y) = 0;                            // x += y
  virtual void scale(const Tensor& x, float factor) = 0;                             // x *= factor
  virtual void softcap(const Tensor& x, float cap) = 0;                              // x = cap * tanh(x / cap)
  // Fused projections: out[t, g * count + j] = x[t, g * stride + first + j] for j < count, g < out.columns / count.
  virtual void take_columns(const Tensor& out, const Tensor& x, int64_t first, int64_t count, int64_t stride) = 0;
  // out[ids[t]] += factors[t] * x[t]; factors is f32 [1, tokens]. No id occurs twice.
  virtual void scatter_add(const Tensor& out, const Tensor& x, const Tensor& ids, const Tensor& factors) = 0;
  // losses[t] = -log softmax(logits)[targets[t]], f32 [1, tokens], with logits = head x[t] + bias (which may be empty), capped
  // as softcap() does when softcap > 0; they are formed in tiles only.
  virtual void cross_entropy(const Tensor& losses, const Tensor& x, const Tensor& head, const Tensor& bias, float softcap,
                             const Tensor& targets) = 0;

  // --- calibration -------------------------------------------------------------------------------------------------
  // gram += scale * xᵀ x, upper triangle only. f32 [in, in].
  virtual void accumulate_gram(const Tensor& gram, const Tensor& x, float scale) = 0;
  // sums += scale * Σ_t x[t]², f32 [1, in].
  virtual void accumulate_squares(const Tensor& sums, const Tensor& x, float scale) = 0;

  // --- pruning: weights are f32 [rows, columns], changed in place ----------------------------------------------------
  // Factors the damped Hessian H = R Rᵀ (R upper triangular) in place, from its upper triangle. Dead columns (H_jj = 0) are
  // marked in `dead`, u8 [1, columns]. Throws NON_FINITE and NOT_POSITIVE_DEFINITE.
  virtual void factor_hessian(const Tensor& hessian, const Tensor& dead, double dampening, const Tensor& stats) = 0;
  // SparseGPT with the factor R; bits > 0 also rounds the kept weights to each row's grid.
  virtual void prune_sparsegpt(const Tensor& weight, const Tensor& mask, const Tensor& factor, const Tensor& dead,
                               const Selection&, int64_t block_size, int bits, const Tensor& stats) = 0;
  // Removes the smallest |w| of the whole matrix.
  virtual void prune_magnitude(const Tensor& weight, const Tensor& mask, const Selection&, const Tensor& stats) = 0;
  // Removes the smallest |w|·sqrt(squares) of each row (Sun et al. 2023, arXiv 2306.11695).
  virtual void prune_wanda(const Tensor& weight, const Tensor& mask, const Tensor& squares, const Selection&,
                           const Tensor& stats) = 0;

  // --- inspection --------------------------------------------------------------------------------------------------
  // stats f64 [1, 1 + patterns]: the number of zeros, then for each pattern (n, m) of `patterns`, i32 [patterns, 2], 1 when
  // every group of m neighbours in a row has at least n zeros, else 0.
  virtual void count_zeros(const Tensor& stats, const Tensor& tensor, const Tensor& patterns) = 0;
};

}  // namespace sparsegpt
