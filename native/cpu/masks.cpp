// Choosing weights by scores that do not change while they are pruned, and removing them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"
#include "cpu/selection.h"

namespace sparsegpt::cpu {

void CpuBackend::compute(const CheckFinite& o) {
  const float* x = o.x.data<float>();
  std::atomic<int64_t> bad{o.x.rows};  // the first
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t i, std::vector<float>&) {
    if (all_finite[level_](x + i * o.x.columns, o.x.columns)) return;
    for (int64_t known = bad; i < known && !bad.compare_exchange_weak(known, i);) {
    }
  });
  if (bad < o.x.rows) throw Error("NON_FINITE", CheckFinite::message(o.subject, o.x.rows, bad));
}

void CpuBackend::compute(const Scores& o) {
  const int64_t columns = o.weight.columns;
  const auto norms = pool_.scratch<float>(columns);
  for (int64_t j = 0; j < columns; ++j) norms[j] = std::sqrt(o.squares.data<float>()[j]);
  for_rows(pool_, o.weight.rows, columns, [&](int64_t i, std::vector<float>&) {
    const float *weight = o.weight.data<float>() + i * columns, *norm = norms.data();
    float* out = o.out.data<float>() + i * columns;
    for (int64_t j = 0; j < columns; ++j) out[j] = std::fabs(weight[j]) * norm[j];
  });
}

size_t CpuScratch::bytes(const Scores& o) const { return Scratch<float>::bytes(o.weight.columns); }

namespace {

int64_t share(int64_t total, double sparsity) { return static_cast<int64_t>(static_cast<double>(total) * sparsity); }

// Each thread's for select_smallest().
int64_t key_count(const SelectMask& o) { return o.m == 0 && o.by_row ? o.scores.columns : 0; }

// Those of the whole matrix.
void select_of_all(ThreadPool& pool, Level level, const SelectMask& o) {
  const int64_t rows = o.scores.rows, columns = o.scores.columns, total = rows * columns, count = share(total, o.sparsity);
  const float* scores = o.scores.data<float>();
  uint8_t* mask = o.mask.data<uint8_t>();
  if (total == 0 || (o.inclusive ? o.sparsity <= 0 : count <= 0)) {
    std::fill_n(mask, total, 0);
    return;
  }
  const auto row = [&](int64_t i) { return std::pair<const float*, int64_t>(scores + i * columns, columns); };
  RankSearch search(pool, level);
  pool.parallel_for(rows, [&](int64_t i, int thread) { search.count(thread, scores + i * columns, columns); });
  const auto found = search.find(rows, std::min(o.inclusive ? count : count - 1, total - 1), row);
  const auto ties = pool.scratch<int64_t>(rows);  // scores in each row that equal the threshold
  for_rows(pool, rows, columns, [&](int64_t i, std::vector<float>&) {
    int64_t equal = 0;
    for (int64_t j = i * columns; j < (i + 1) * columns; ++j) {
      const float score = std::fabs(scores[j]);
      mask[j] = score <= found.score;
      equal += score == found.score;
    }
    ties[i] = equal;
  });
  if (o.inclusive) return;
  // Then those of them that stay: the last.
  int64_t left = count - found.smaller;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t gone = std::min(ties[i], left);
    left -= gone;
    ties[i] -= gone;
  }
  for_rows(pool, rows, columns, [&](int64_t i, std::vector<float>&) {
    int64_t surplus = ties[i];
    for (int64_t j = (i + 1) * columns - 1; surplus > 0; --j) {
      if (std::fabs(scores[j]) != found.score) continue;
      mask[j] = 0;
      --surplus;
    }
  });
}

}  // namespace

void CpuBackend::compute(const SelectMask& o) {
  if (o.m == 0 && !o.by_row) return select_of_all(pool_, level_, o);
  const int64_t columns = o.scores.columns;
  const auto keys = pool_.scratch<uint32_t>(pool_.threads() * key_count(o));
  pool_.parallel_for(o.scores.rows, [&](int64_t i, int thread) {
    const float* scores = o.scores.data<float>() + i * columns;
    uint8_t* mask = o.mask.data<uint8_t>() + i * columns;
    if (o.m > 0) {
      select_groups(scores, columns, o.n, o.m, mask);
    } else {
      select_smallest(scores, columns, share(columns, o.sparsity), mask, keys.data() + thread * columns);
    }
  });
}

size_t CpuScratch::bytes(const SelectMask& o) const {
  if (o.m == 0 && !o.by_row) return RankSearch::scratch(threads_) + Scratch<int64_t>::bytes(o.scores.rows);
  return Scratch<uint32_t>::bytes(threads_ * key_count(o));
}

void CpuBackend::compute(const ApplyMask& o) {
  const int64_t columns = o.weight.columns;
  for_rows(pool_, o.weight.rows, columns, [&](int64_t i, std::vector<float>&) {
    float* weight = o.weight.data<float>() + i * columns;
    const uint8_t* mask = o.mask.data<uint8_t>() + i * columns;
    for (int64_t j = 0; j < columns; ++j) weight[j] = mask[j] != 0 ? 0 : weight[j];
  });
}

void CpuBackend::compute(const MarkZeros& o) {
  const int64_t columns = o.x.columns;
  for_rows(pool_, o.x.rows, columns, [&](int64_t i, std::vector<float>&) {
    const float* x = o.x.data<float>() + i * columns;
    uint8_t* mask = o.mask.data<uint8_t>() + i * columns;
    for (int64_t j = 0; j < columns; ++j) mask[j] = x[j] == 0;
  });
}

}  // namespace sparsegpt::cpu
