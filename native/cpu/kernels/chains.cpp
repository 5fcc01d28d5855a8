// Multiply-adds in registers and nothing else.
#include "cpu/kernels/vec.h"
#include "cpu/peak.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t chains = 16;
// Read anew for each chain: of chains that are known to be equal only one would be computed.
volatile float start = 0;
volatile float sink;

#if defined(__AVX512F__)
inline vf step(vf sum) { return sum * broadcast(0.5f) + broadcast(0.25f); }
#elif defined(__AVX2__)
inline vf step(vf sum) { return sum * sum + sum; }  // no register is left for a constant
#endif

}  // namespace

double float_chains(int64_t rounds) {
#if defined(__AVX2__)
  constexpr int64_t lanes = width;
  vf sums[chains];
  for (vf& sum : sums) sum = broadcast(start);
  for (int64_t r = 0; r < rounds; ++r)
    for (vf& sum : sums) sum = step(sum);
  for (const vf& sum : sums) sink = sum[0];
#else
  constexpr int64_t lanes = 1;
  float sums[chains];
  for (float& sum : sums) sum = start;
  for (int64_t r = 0; r < rounds; ++r)
    for (float& sum : sums) sum = sum * 0.5f + 0.25f;
  for (float sum : sums) sink = sum;
#endif
  return static_cast<double>(rounds * chains * lanes * 2);
}

#if defined(__AVX512BF16__)
double pair_chains(int64_t rounds) {
  vf sums[chains];
  for (vf& sum : sums) sum = broadcast(start);
  for (int64_t r = 0; r < rounds; ++r)
    for (vf& sum : sums) sum = add_pair_products(sum, vf{}, vf{});
  for (const vf& sum : sums) sink = sum[0];
  return static_cast<double>(rounds * chains * width * 4);
}
#endif

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
