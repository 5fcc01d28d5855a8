// A layer to prune, and the paper's algorithm on it in double precision, written from its definition (Cholesky, inverse,
// Cholesky of the inverse, one column at a time) and not from our way to compute it.
#pragma once

#include <vector>

#include "cpu/factor.h"
#include "cpu/sparsegpt.h"
#include "test/check.h"

namespace sparsegpt::test {

struct Problem {
  int64_t rows, columns;
  std::vector<float> weight;   // [rows, columns]
  std::vector<float> hessian;  // [columns, columns], of correlated inputs; symmetric
};

// tokens < columns gives a singular Hessian, which only the dampening makes definite.
Problem random_problem(Random& random, int64_t rows, int64_t columns, int64_t tokens);

// Sets about this share of the weights to zero.
void thin_out(Random& random, Problem& problem, double share);

// How to prune; `mask` may be empty.
struct Method {
  double sparsity = 0.5;
  int n = 0, m = 0;
  std::vector<uint8_t> mask;
  int64_t block_size = 128;
  int bits = 0;
  int64_t groups = 1;  // of a row, with a grid each
  bool symmetric = false, clip = false;
  double dampening = 0.01;
};

struct Pruned {
  std::vector<float> weight;
  std::vector<uint8_t> mask;
  double loss = 0;
  cpu::FactorReport report;
  std::vector<float> steps, zeros;  // of the grids
};

// Our solver.
Pruned solve(const Problem& problem, const Method& method, ThreadPool& pool, cpu::Level level);
// The plain one. For n:m the block size must be a multiple of m.
Pruned solve_plainly(const Problem& problem, const Method& method);

// H with dead columns' diagonal at 1 and dampening · mean(diagonal) added.
std::vector<double> damped_hessian(const Problem& problem, double dampening);

}  // namespace sparsegpt::test
