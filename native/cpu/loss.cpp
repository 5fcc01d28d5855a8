// The loss of a language model.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(log_sum_exp, void, const float* x, int64_t count, float* largest, double* sum);  // of exp(x - largest)

// Replaces logits by scale times the gradient of the divergence, which it returns, by what they were before the soft cap; the
// offsets are the logarithms of Σ exp(logit).
SPARSEGPT_KERNEL(divergence, double, float* logits, const float* target, int64_t count, double offset, double target_offset,
                 float softcap, float scale);

namespace {

constexpr int64_t tile_tokens = 1024, tile_words = 4096;

// The logits of a tile. Without the operands' addresses.
Gemm product_of(const CrossEntropy& o, int64_t tokens, int64_t words) {
  return {tokens, words, o.x.columns, layout(o.x), layout(o.head).transposed(), nullptr, words};
}

struct Sizes {
  explicit Sizes(const CrossEntropy& o)
      : tokens(std::min(tile_tokens, o.x.rows)),
        words(std::min(tile_words, o.head.rows)),
        bias(o.bias ? o.head.rows : 0),
        logits(tokens * words) {}
  int64_t tokens, words;  // of a tile
  int64_t bias, logits;  // floats
};

struct Running {
  float largest;
  double sum;  // of exp(logit - largest)
  double wanted;
  int64_t likeliest;  // the word of the largest logit, if it is asked for
};

}  // namespace

void CpuBackend::compute(const CrossEntropy& o) {
  const int32_t* target = o.targets.data<int32_t>();
  for (int64_t t = 0; t < o.x.rows; ++t)
    if (target[t] < 0 || target[t] >= o.head.rows)
      throw Error("INVALID_OPTION",
                  "token id " + std::to_string(target[t]) + " is outside the vocabulary of " + std::to_string(o.head.rows));
  const Sizes sizes(o);
  const auto bias = pool_.scratch<float>(sizes.bias);
  if (o.bias) to_float[level_](bias.data(), o.bias.bytes(), o.bias.dtype, o.bias.columns);
  const auto logits = pool_.scratch<float>(sizes.logits);
  for (int64_t t0 = 0; t0 < o.x.rows; t0 += tile_tokens) {
    const int64_t tokens = std::min(tile_tokens, o.x.rows - t0);
    std::vector<Running> running(static_cast<size_t>(tokens), Running{-INFINITY, 0, 0, 0});
    for (int64_t w0 = 0; w0 < o.head.rows; w0 += tile_words) {
      const int64_t words = std::min(tile_words, o.head.rows - w0);
      Gemm product = product_of(o, tokens, words);
      product.a.data = row_of(o.x, t0);
      product.b.data = row_of(o.head, w0);
      product.c = logits.data();
      product.bias = o.bias ? bias.data() + w0 : nullptr;
      gemm(pool_, level_, product);
      for_rows(pool_, tokens, words, [&](int64_t t, std::vector<float>&) {
        float* row = logits.data() + t * words;
        if (o.softcap > 0) softcap[level_](row, o.softcap, words);
        Running& r = running[static_cast<size_t>(t)];
        float largest;
        double sum;
        log_sum_exp[level_](row, words, &largest, &sum);
        if (o.likeliest && largest > r.largest) r.likeliest = w0 + (std::find(row, row + words, largest) - row);
        const float top = std::max(largest, r.largest);
        r.sum = r.sum * std::exp(static_cast<double>(r.largest) - top) + sum * std::exp(static_cast<double>(largest) - top);
        r.largest = top;
        const int64_t wanted = target[t0 + t] - w0;
        if (wanted >= 0 && wanted < words) r.wanted = row[wanted];
      });
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const Running& r = running[static_cast<size_t>(t)];
      o.losses.data<float>()[t0 + t] = static_cast<float>(r.largest + std::log(r.sum) - r.wanted);
      if (o.likeliest) o.likeliest.data<int32_t>()[t0 + t] = static_cast<int32_t>(r.likeliest);
    }
  }
}

size_t CpuScratch::bytes(const CrossEntropy& o) const {
  const Sizes sizes(o);
  return Scratch<float>::bytes(sizes.bias) + Scratch<float>::bytes(sizes.logits) +
         gemm_scratch(level_, threads_, product_of(o, sizes.tokens, sizes.words));
}

namespace {

// Tokens whose logits of both models are held at once, in 192 MiB where the vocabulary is not larger than that for one token.
struct DivergenceSizes {
  explicit DivergenceSizes(const KlDivergence& o) {
    constexpr int64_t floats = int64_t{48} << 20;
    tokens = std::min(std::max<int64_t>(floats / (2 * o.head.rows), 1), std::max<int64_t>(o.x.rows, 1));
    tokens = std::min(tokens, tile_tokens);
    logits = tokens * o.head.rows;
    bias = o.bias ? o.head.rows : 0;
    target_bias = o.target_bias ? o.head.rows : 0;
  }
  int64_t tokens;
  int64_t logits, bias, target_bias;  // floats
};

Gemm logits_of(const Tensor& x, const Tensor& head, int64_t tokens) {
  return {tokens, head.rows, x.columns, layout(x), layout(head).transposed(), nullptr, head.rows};
}

// The gradient by x. Gradients of logits in bfloat16 fill the first halves of the rows of float32.
Gemm gradient_of(const KlDivergence& o, int64_t tokens) {
  const bool halves = o.head.dtype == DType::bf16;
  const Operand logits{nullptr, halves ? DType::bf16 : DType::f32, o.head.rows * (halves ? 2 : 1), 1};
  Gemm product{tokens, o.x.columns, o.head.rows, logits, layout(o.head), nullptr, o.dx.stride};
  product.dtype = o.dx.dtype;
  return product;
}

double log_of_sum(float largest, double sum) { return largest + std::log(sum); }

}  // namespace

void CpuBackend::compute(const KlDivergence& o) {
  const DivergenceSizes sizes(o);
  const int64_t words = o.head.rows;
  const auto bias = pool_.scratch<float>(sizes.bias), target_bias = pool_.scratch<float>(sizes.target_bias);
  if (o.bias) to_float[level_](bias.data(), o.bias.bytes(), o.bias.dtype, words);
  if (o.target_bias) to_float[level_](target_bias.data(), o.target_bias.bytes(), o.target_bias.dtype, words);
  const auto logits = pool_.scratch<float>(sizes.logits), wanted = pool_.scratch<float>(sizes.logits);
  for (int64_t t0 = 0; t0 < o.x.rows; t0 += sizes.tokens) {
    const int64_t tokens = std::min(sizes.tokens, o.x.rows - t0);
    const auto form = [&](float* out, const Tensor& x, const Tensor& head, const Scratch<float>& added) {
      Gemm product = logits_of(x, head, tokens);
      product.a.data = row_of(x, t0);
      product.b.data = head.bytes();
      product.c = out;
      product.bias = added.size() > 0 ? added.data() : nullptr;
      gemm(pool_, level_, product);
    };
    form(logits.data(), o.x, o.head, bias);
    form(wanted.data(), o.target, o.target_head, target_bias);
    pool_.parallel_for(tokens, [&](int64_t t, int) {
      float *own = logits.data() + t * words, *target = wanted.data() + t * words;
      double offsets[2];
      for (float* row : {own, target}) {
        if (o.softcap > 0) softcap[level_](row, o.softcap, words);
        float largest;
        double sum;
        log_sum_exp[level_](row, words, &largest, &sum);
        offsets[row == own ? 0 : 1] = log_of_sum(largest, sum);
      }
      o.losses.data<float>()[t0 + t] =
          static_cast<float>(divergence[level_](own, target, words, offsets[0], offsets[1], o.softcap, o.scale));
      if (o.dx && o.head.dtype == DType::bf16) from_float[level_](own, DType::bf16, own, words);
    });
    if (!o.dx) continue;
    Gemm product = gradient_of(o, tokens);
    product.a.data = logits.data();
    product.b.data = o.head.bytes();
    product.c = row_of(o.dx, t0);
    gemm(pool_, level_, product);
  }
}

size_t CpuScratch::bytes(const KlDivergence& o) const {
  const DivergenceSizes sizes(o);
  const size_t products = std::max({gemm_scratch(level_, threads_, logits_of(o.x, o.head, sizes.tokens)),
                                    gemm_scratch(level_, threads_, logits_of(o.target, o.target_head, sizes.tokens)),
                                    o.dx ? gemm_scratch(level_, threads_, gradient_of(o, sizes.tokens)) : 0});
  return Scratch<float>::bytes(sizes.bias) + Scratch<float>::bytes(sizes.target_bias) +
         2 * Scratch<float>::bytes(sizes.logits) + products;
}

}  // namespace sparsegpt::cpu
