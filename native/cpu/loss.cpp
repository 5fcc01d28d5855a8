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
  int64_t bias, logits;   // floats
};

struct Running {
  float largest;
  double sum;  // of exp(logit - largest)
  double wanted;
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
    std::vector<Running> running(static_cast<size_t>(tokens), Running{-INFINITY, 0, 0});
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
    }
  }
}

size_t CpuScratch::bytes(const CrossEntropy& o) const {
  const Sizes sizes(o);
  return Scratch<float>::bytes(sizes.bias) + Scratch<float>::bytes(sizes.logits) +
         gemm_scratch(level_, threads_, product_of(o, sizes.tokens, sizes.words));
}

}  // namespace sparsegpt::cpu
