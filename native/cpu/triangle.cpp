#include "cpu/triangle.h"

#include <algorithm>

#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

int64_t split_columns(int64_t columns) {
  const int64_t blocks = divide_up(columns, factor_columns);
  return columns - blocks / 2 * factor_columns;
}

void solve_triangle(ThreadPool& pool, Level level, Part<float> a, int64_t rows, int64_t columns, Part<const float> r,
                    bool transposed, float* scratch) {
  if (columns <= factor_columns) {
    pool.parallel_for(divide_up(rows, lanes), [&](int64_t tile, int thread) {
      const int64_t row = tile * lanes;
      solve_panel[level](a.at(row, 0), a.stride, r.data, r.stride, transposed, std::min(lanes, rows - row), columns,
                         scratch + thread * factor_scratch);
    });
    return;
  }
  // The columns whose solution the others wait for come first: of R⁻¹ the left ones, of R⁻ᵀ the right ones.
  const int64_t middle = split_columns(columns), rest = columns - middle;
  const auto solve_left = [&] { solve_triangle(pool, level, a, rows, middle, r, transposed, scratch); };
  const auto solve_right = [&] {
    solve_triangle(pool, level, {a.at(0, middle), a.stride}, rows, rest, {r.at(middle, middle), r.stride}, transposed,
                   scratch);
  };
  const Operand beside = operand(r.at(0, middle), r.stride);  // R[left, right]
  const auto subtract = [&](int64_t from, int64_t depth, const Operand& factor, int64_t to, int64_t width) {
    Gemm product{rows, width, depth, operand(a.at(0, from), a.stride), factor, a.at(0, to), a.stride};
    product.alpha = -1;
    product.accumulate = true;
    gemm(pool, level, product);
  };
  if (transposed) {
    solve_right();
    subtract(middle, rest, beside.transposed(), 0, middle);
    solve_left();
  } else {
    solve_left();
    subtract(0, middle, beside, middle, rest);
    solve_right();
  }
}

size_t solve_scratch(Level level, int threads, int64_t rows, int64_t columns) {
  size_t most = 0;
  while (columns > factor_columns) {
    const int64_t middle = split_columns(columns), rest = columns - middle;
    const Operand any = operand(static_cast<const float*>(nullptr), columns);
    most = std::max(most, gemm_scratch(level, threads, {rows, middle, rest, any, any.transposed(), nullptr, columns}));
    columns = std::max(middle, rest);
  }
  return most;
}

namespace {

constexpr int64_t product_columns = 256;  // of a block on the diagonal

// out = x R or x Rᵀ by recursive halves; the blocks on the diagonal are copied to have zeros below it.
class TriangleProduct {
 public:
  TriangleProduct(ThreadPool& pool, Level level, Part<float> out, Part<const float> x, int64_t rows, Part<const float> r,
                  bool transposed, float* block)
      : pool_(pool), level_(level), out_(out), x_(x), r_(r), rows_(rows), transposed_(transposed), block_(block) {}

  void run(int64_t begin, int64_t end) {
    if (end - begin <= product_columns) return multiply_block(begin, end - begin);
    const int64_t middle = middle_of(begin, end);
    run(begin, middle);
    run(middle, end);
    const Operand beside = operand(r_.at(begin, middle), r_.stride);
    if (transposed_) {
      multiply(middle, end - middle, beside.transposed(), begin, middle - begin, true);
    } else {
      multiply(begin, middle - begin, beside, middle, end - middle, true);
    }
  }

  static int64_t middle_of(int64_t begin, int64_t end) {
    return begin + divide_up(divide_up(end - begin, product_columns), 2) * product_columns;
  }

 private:
  void multiply_block(int64_t begin, int64_t size) {
    pool_.parallel_for(size, [&](int64_t i, int) {
      float* row = block_ + i * size;
      std::fill_n(row, i, 0.0f);
      std::copy_n(r_.at(begin + i, begin + i), size - i, row + i);
    });
    const Operand block = operand(block_, size);
    multiply(begin, size, transposed_ ? block.transposed() : block, begin, size, false);
  }

  // out[:, to] (+)= x[:, from] · factor
  void multiply(int64_t from, int64_t depth, const Operand& factor, int64_t to, int64_t width, bool accumulate) {
    Gemm product{rows_, width, depth, operand(x_.at(0, from), x_.stride), factor, out_.at(0, to), out_.stride};
    product.accumulate = accumulate;
    gemm(pool_, level_, product);
  }

  ThreadPool& pool_;
  const Level level_;
  const Part<float> out_;
  const Part<const float> x_, r_;
  const int64_t rows_;
  const bool transposed_;
  float* block_;
};

}  // namespace

int64_t triangle_block(int64_t columns) {
  const int64_t size = std::min(columns, product_columns);
  return size * size;
}

void multiply_triangle(ThreadPool& pool, Level level, Part<float> out, Part<const float> x, int64_t rows, int64_t columns,
                       Part<const float> r, bool transposed, float* block) {
  TriangleProduct(pool, level, out, x, rows, r, transposed, block).run(0, columns);
}

size_t multiply_scratch(Level level, int threads, int64_t rows, int64_t columns) {
  size_t most = 0;
  const Operand any = operand(static_cast<const float*>(nullptr), columns);
  for (int64_t size = columns;;) {
    const bool block = size <= product_columns;
    const int64_t left = block ? size : TriangleProduct::middle_of(0, size), right = block ? size : size - left;
    most = std::max(most, gemm_scratch(level, threads, {rows, right, left, any, any, nullptr, columns}));
    if (block) return most;
    size = left;
  }
}

void CpuBackend::compute(const TriangularProduct& o) {
  const int64_t rows = o.x.rows, columns = o.x.columns;
  if (rows == 0 || columns == 0) return;
  const float* x = o.x.data<float>();
  float* out = o.out.data<float>();
  const Part<const float> factor{o.factor.data<float>(), columns};
  if (!o.inverse) {
    const auto block = pool_.scratch<float>(triangle_block(columns));
    return multiply_triangle(pool_, level_, {out, columns}, {x, columns}, rows, columns, factor, o.transposed, block.data());
  }
  const auto scratch = pool_.scratch<float>(pool_.threads() * factor_scratch);
  for_rows(pool_, rows, columns,
           [&](int64_t i, std::vector<float>&) { std::copy_n(x + i * columns, columns, out + i * columns); });
  solve_triangle(pool_, level_, {out, columns}, rows, columns, factor, o.transposed, scratch.data());
}

size_t CpuScratch::bytes(const TriangularProduct& o) const {
  const int64_t rows = o.x.rows, columns = o.x.columns;
  if (o.inverse) return Scratch<float>::bytes(threads_ * factor_scratch) + solve_scratch(level_, threads_, rows, columns);
  return Scratch<float>::bytes(triangle_block(columns)) + multiply_scratch(level_, threads_, rows, columns);
}

}  // namespace sparsegpt::cpu
