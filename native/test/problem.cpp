#include "test/problem.h"

#include <algorithm>
#include <numeric>

namespace sparsegpt::test {

namespace {

using Square = std::vector<double>;  // [n, n]

// A = L Lᵀ.
Square cholesky(Square a, int64_t n) {
  const auto at = [&](int64_t i, int64_t j) -> double& { return a[static_cast<size_t>(i * n + j)]; };
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < j; ++k) at(j, j) -= at(j, k) * at(j, k);
    at(j, j) = std::sqrt(at(j, j));
    for (int64_t i = j + 1; i < n; ++i) {
      for (int64_t k = 0; k < j; ++k) at(i, j) -= at(i, k) * at(j, k);
      at(i, j) /= at(j, j);
    }
    for (int64_t i = 0; i < j; ++i) at(i, j) = 0;
  }
  return a;
}

// (L Lᵀ)⁻¹ by solving for every unit vector.
Square inverse_of_product(const Square& l, int64_t n) {
  Square out(l.size());
  std::vector<double> x(static_cast<size_t>(n));
  const auto at = [&](int64_t i, int64_t j) { return l[static_cast<size_t>(i * n + j)]; };
  for (int64_t column = 0; column < n; ++column) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = i == column;
      for (int64_t k = 0; k < i; ++k) sum -= at(i, k) * x[static_cast<size_t>(k)];
      x[static_cast<size_t>(i)] = sum / at(i, i);
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      for (int64_t k = i + 1; k < n; ++k) x[static_cast<size_t>(i)] -= at(k, i) * x[static_cast<size_t>(k)];
      x[static_cast<size_t>(i)] /= at(i, i);
      out[static_cast<size_t>(i * n + column)] = x[static_cast<size_t>(i)];
    }
  }
  return out;
}

// Indices of the `count` smallest, the lowest index first among equal ones.
std::vector<size_t> smallest(const std::vector<double>& scores, int64_t count) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

}  // namespace

Problem random_problem(Random& random, int64_t rows, int64_t columns, int64_t tokens) {
  Problem p{rows, columns, random.normals(rows * columns), std::vector<float>(static_cast<size_t>(columns * columns))};
  std::vector<double> x(static_cast<size_t>(columns)), scale(x.size()), sum(p.hessian.size());
  for (double& s : scale) s = random.uniform(0.3, 2);
  for (int64_t t = 0; t < tokens; ++t) {
    const double common = random.normal();
    double previous = 0;
    for (size_t j = 0; j < x.size(); ++j) {
      previous = random.normal() + 0.5 * previous;
      x[j] = scale[j] * (previous + 0.7 * common);
    }
    for (size_t i = 0; i < x.size(); ++i)
      for (size_t j = 0; j < x.size(); ++j) sum[i * x.size() + j] += x[i] * x[j];
  }
  for (size_t i = 0; i < sum.size(); ++i) p.hessian[i] = static_cast<float>(sum[i] * 2 / static_cast<double>(tokens));
  return p;
}

std::vector<double> damped_hessian(const Problem& p, double dampening) {
  const int64_t n = p.columns;
  std::vector<double> h(p.hessian.begin(), p.hessian.end());
  double mean = 0;
  for (int64_t j = 0; j < n; ++j) {
    double& diagonal = h[static_cast<size_t>(j * n + j)];
    if (diagonal == 0) diagonal = 1;
    mean += diagonal / static_cast<double>(n);
  }
  for (int64_t j = 0; j < n; ++j) h[static_cast<size_t>(j * n + j)] += dampening * mean;
  return h;
}

Pruned solve(const Problem& p, const Method& method, ThreadPool& pool, cpu::Level level) {
  Pruned out;
  auto factor = p.hessian;
  std::vector<uint8_t> dead(static_cast<size_t>(p.columns), 7);
  out.report = cpu::factor_hessian(pool, level, factor.data(), p.columns, dead.data(), method.dampening);
  out.weight = p.weight;
  out.mask.assign(p.weight.size(), 7);
  const cpu::Choice choice{method.sparsity, method.n, method.m, method.mask.empty() ? nullptr : method.mask.data()};
  if (method.bits > 0) {
    out.steps.resize(static_cast<size_t>(p.rows * method.groups));
    out.zeros.resize(out.steps.size());
  }
  const cpu::Rounding rounding{method.bits, method.groups,    method.symmetric, method.clip,
                               DType::f32,  out.steps.data(), out.zeros.data()};
  out.loss = cpu::prune_sparsegpt(pool, level, {out.weight.data(), out.mask.data(), p.rows, p.columns}, factor.data(),
                                  dead.data(), choice, method.block_size, rounding);
  return out;
}

void thin_out(Random& random, Problem& problem, double share) {
  for (float& w : problem.weight)
    if (random.uniform(0, 1) < share) w = random.flip() ? 0.0f : -0.0f;
}

Pruned solve_plainly(const Problem& p, const Method& method) {
  const int64_t rows = p.rows, n = p.columns;
  const auto at = [n](int64_t i, int64_t j) { return static_cast<size_t>(i * n + j); };
  const auto inverse = inverse_of_product(cholesky(damped_hessian(p, method.dampening), n), n);
  const auto lower = cholesky(inverse, n);  // U = lowerᵀ
  const auto u = [&](int64_t i, int64_t j) { return lower[at(j, i)]; };

  std::vector<double> w(p.weight.begin(), p.weight.end());
  for (int64_t j = 0; j < n; ++j)
    if (p.hessian[at(j, j)] == 0)
      for (int64_t r = 0; r < rows; ++r) w[at(r, j)] = 0;

  Pruned out;
  out.weight.resize(w.size());
  out.mask.resize(w.size());
  // Zeros stay zero.
  const auto zero = [dense = w, at](int64_t r, int64_t j) { return dense[at(r, j)] == 0; };
  const auto score = [&](int64_t r, int64_t j) { return zero(r, j) ? 0 : w[at(r, j)] * w[at(r, j)] / (u(j, j) * u(j, j)); };
  for (int64_t begin = 0; begin < n; begin += method.block_size) {
    const int64_t end = std::min(begin + method.block_size, n);
    if (!method.mask.empty()) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = begin; j < end; ++j) out.mask[at(r, j)] = method.mask[at(r, j)] != 0;
    } else if (method.m == 0) {
      std::vector<double> scores;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = begin; j < end; ++j) scores.push_back(score(r, j));
      const auto size = static_cast<size_t>(end - begin);
      const auto count = static_cast<int64_t>(static_cast<double>(scores.size()) * method.sparsity);
      for (size_t i : smallest(scores, count))
        out.mask[at(static_cast<int64_t>(i / size), begin + static_cast<int64_t>(i % size))] = 1;
    }
    std::vector<double> errors(w.size());
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        if (method.mask.empty() && method.m > 0 && i % method.m == 0) {
          std::vector<double> scores;
          for (int64_t j = i; j < i + method.m; ++j) scores.push_back(score(r, j));
          for (size_t j : smallest(scores, method.n)) out.mask[at(r, i + static_cast<int64_t>(j))] = 1;
        }
        if (zero(r, i)) out.mask[at(r, i)] = 1;
        double q = out.mask[at(r, i)] != 0 ? 0 : w[at(r, i)];
        if (method.bits > 0) {
          const int64_t size = n / method.groups;
          const float* row = p.weight.data() + r * n + i / size * size;
          double low = std::min(*std::min_element(row, row + size), 0.0f);
          double high = std::max(*std::max_element(row, row + size), 0.0f);
          if (low == high) low = -1, high = 1;
          const double top = (1 << method.bits) - 1, step = (high - low) / top, zero = std::nearbyint(-low / step);
          q = step * (std::clamp(std::nearbyint(q / step) + zero, 0.0, top) - zero);
        }
        const double error = (w[at(r, i)] - q) / u(i, i);
        out.loss += 0.5 * error * error;
        out.weight[at(r, i)] = static_cast<float>(q);
        errors[at(r, i)] = error;
        for (int64_t j = i + 1; j < end; ++j) w[at(r, j)] -= error * u(i, j);
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = end; j < n; ++j) w[at(r, j)] -= errors[at(r, i)] * u(i, j);
  }
  return out;
}

}  // namespace sparsegpt::test
