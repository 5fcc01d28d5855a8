#include "cpu/peak.h"

#include <vector>

#include "cpu/dispatch.h"

namespace sparsegpt::cpu {

namespace {

volatile float sink;

using Chains = double (*)(int64_t);

// The widest multiply-add that the selected level has for this element type.
Chains chains_of(DType dtype) {
  const Level level = selected_level();
  if (dtype == DType::bf16) {
    if (tile_chains[level] != nullptr) return tile_chains[level];
    if (pair_chains[level] != nullptr) return pair_chains[level];
  }
  return float_chains[level];
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
