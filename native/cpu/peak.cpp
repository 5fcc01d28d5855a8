#include "cpu/peak.h"

#include <vector>

#if defined(SPARSEGPT_X86_64)
#include <immintrin.h>
#endif

#include "cpu/dispatch.h"

namespace sparsegpt::cpu {

namespace {

volatile float sink;

#if defined(SPARSEGPT_X86_64)
#define SPARSEGPT_CHAINS(name, isa, vector, zero, step, lanes, flop)                                          \
  __attribute__((target(isa))) double name(int64_t rounds) {                                                  \
    vector a = zero(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;                                       \
    vector i = a, j = a, k = a, l = a, m = a, n = a, o = a, p = a;                                            \
    for (int64_t r = 0; r < rounds; ++r) {                                                                    \
      a = step(a), b = step(b), c = step(c), d = step(d), e = step(e), f = step(f), g = step(g), h = step(h); \
      i = step(i), j = step(j), k = step(k), l = step(l), m = step(m), n = step(n), o = step(o), p = step(p); \
      /* Equal chains would be computed once. */                                                              \
      asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h));              \
      asm volatile("" : "+v"(i), "+v"(j), "+v"(k), "+v"(l), "+v"(m), "+v"(n), "+v"(o), "+v"(p));              \
    }                                                                                                         \
    const vector all[] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};                                    \
    for (const vector& one : all) sink = reinterpret_cast<const float*>(&one)[0];                             \
    return static_cast<double>(rounds) * 16 * (lanes) * (flop);                                               \
  }

__attribute__((target("fma,avx"))) inline __m256 step_avx2(__m256 sum) {
  return _mm256_fmadd_ps(sum, sum, sum);  // AVX2 has no register left for a constant
}
__attribute__((target("avx512f"))) inline __m512 step_avx512(__m512 sum) {
  return _mm512_fmadd_ps(_mm512_set1_ps(0.5f), sum, _mm512_set1_ps(0.25f));
}
__attribute__((target("avx512f,avx512bf16"))) inline __m512 step_bf16(__m512 sum) {
  const __m512 factor = _mm512_set1_ps(0.0f);
  return _mm512_dpbf16_ps(sum, (__m512bh)factor, (__m512bh)factor);
}
SPARSEGPT_CHAINS(chains_avx2, "fma,avx", __m256, _mm256_setzero_ps, step_avx2, 8, 2)
SPARSEGPT_CHAINS(chains_avx512, "avx512f", __m512, _mm512_setzero_ps, step_avx512, 16, 2)
SPARSEGPT_CHAINS(chains_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps, step_bf16, 16, 4)
#endif

double chains_plain(int64_t rounds) {
  float sums[16] = {};
  for (int64_t r = 0; r < rounds; ++r)
    for (float& sum : sums) sum = sum * 0.5f + 0.25f;
  for (float sum : sums) sink = sum;
  return static_cast<double>(rounds) * 16 * 2;
}

using Chains = double (*)(int64_t);

// The widest multiply-add that the selected level has for this element type.
Chains chains_of(DType dtype) {
#if defined(SPARSEGPT_X86_64)
  switch (selected_level()) {
    case Level::amx:
      if (dtype == DType::bf16) return tile_chains[Level::amx];
      return chains_avx512;
    case Level::avx512bf16: return dtype == DType::bf16 ? chains_bf16 : chains_avx512;
    case Level::avx512: return chains_avx512;
    case Level::avx2: return chains_avx2;
    case Level::baseline: break;
  }
#endif
  (void)dtype;
  return chains_plain;
}

}  // namespace

double multiply_adds(ThreadPool& pool, DType dtype) {
  const Chains chains = chains_of(dtype);
  // In pieces, so that a thread that comes late does not leave its whole share to another.
  const int64_t pieces = 16 * pool.threads();
  std::vector<double> flop(static_cast<size_t>(pieces));
  pool.parallel_for(pieces, [&](int64_t i, int) { flop[static_cast<size_t>(i)] = chains(250000); });
  double total = 0;
  for (double f : flop) total += f;
  return total;
}

void read_memory(ThreadPool& pool, const uint32_t* words, size_t count) {
  const Level level = selected_level();
  const size_t pieces = 16 * static_cast<size_t>(pool.threads());
  pool.parallel_for(static_cast<int64_t>(pieces), [&](int64_t i, int) {
    const size_t first = static_cast<size_t>(i) * count / pieces, end = (static_cast<size_t>(i) + 1) * count / pieces;
    sink = static_cast<float>(read_vectors[level](words + first, static_cast<int64_t>(end - first)));
  });
}

}  // namespace sparsegpt::cpu
