// Products that skip zeros, of every level, against sums in double.
#include "cpu/sparse.h"

#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

using Layout = Matrix::Layout;

// Which elements of B are zero.
enum class Zeros { two_of_four, scattered, most, all };

struct Case {
  int64_t m, n, k;
  Zeros zeros = Zeros::two_of_four;
  DType a_type = DType::f32, b_type = DType::f32, c_type = DType::f32;
  Layout a_layout = Layout::rows, b_layout = Layout::transposed;
  float alpha = 1;
  bool accumulate = false, bias = false;
};

void remove_some(Random& random, Matrix& b, int64_t n, int64_t k, Zeros zeros) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t p = 0; p < k; p += 4) {
      // Two different ones of four elements.
      const int64_t first = random.integer(0, 3), second = (first + random.integer(1, 3)) % 4;
      for (int64_t e = 0; e < 4 && p + e < k; ++e) {
        bool zero = zeros == Zeros::all;
        if (zeros == Zeros::two_of_four) zero = e == first || e == second;
        if (zeros == Zeros::scattered) zero = random.integer(0, 7) < 5;
        if (zeros == Zeros::most) zero = random.integer(0, 9) > 0;
        if (zero) b.clear(p + e, j);
      }
    }
  }
}

std::string text(cpu::Level level, const Case& c) {
  return std::string(cpu::level_name(level)) + ", " + std::to_string(c.m) + " x " + std::to_string(c.k) + " x " +
         std::to_string(c.n) + ", zeros " + std::to_string(static_cast<int>(c.zeros)) + ", " + dtype_name(c.a_type) + ", " +
         dtype_name(c.b_type) + ", " + dtype_name(c.c_type);
}

void check_product(cpu::Level level, uint64_t seed, const Case& c) {
  Random random(seed);
  describe_case("seed ", seed, ", ", text(level, c));
  const Matrix a(random, c.a_type, c.m, c.k, c.a_layout, random.integer(0, 5));
  Matrix b(random, c.b_type, c.k, c.n, c.b_layout, random.integer(0, 5));
  remove_some(random, b, c.n, c.k, c.zeros);
  const auto bias = random.uniforms(c.n);
  const int64_t stride = c.n + random.integer(0, 5);
  constexpr float old = 0.75f;
  const auto before = encode(std::vector<float>(static_cast<size_t>(c.m * stride), old), c.c_type);

  std::vector<char> product;
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    std::vector<char> out = before;
    cpu::Gemm g{c.m, c.n, c.k, a.operand(), b.operand(), out.data(), stride};
    g.alpha = c.alpha;
    g.accumulate = c.accumulate;
    g.bias = c.bias ? bias.data() : nullptr;
    g.dtype = c.c_type;
    CHECK(cpu::multiply_sparse(pool, level, g));
    if (product.empty()) product = out;
    CHECK(out == product);
  }

  const auto after = decode(product, c.c_type);
  const double rounding = c.c_type == DType::f32 ? 0 : c.c_type == DType::bf16 ? 0x1p-8 : 0x1p-11;
  const double tolerance = rounding + 1e-6 + 2e-7 * static_cast<double>(c.k);
  // Of the large ones some rows.
  for (int64_t i = 0; i < c.m; i += c.n * c.k > 40000 ? 31 : 1) {
    for (int64_t j = 0; j < stride; ++j) {
      const float actual = after[static_cast<size_t>(i * stride + j)];
      if (j >= c.n) {
        CHECK_EQUAL(actual, old);
        continue;
      }
      double sum = 0;
      for (int64_t p = 0; p < c.k; ++p) sum += a(i, p) * b(p, j);
      CHECK_CLOSE(actual, c.alpha * sum + (c.accumulate ? old : c.bias ? bias[static_cast<size_t>(j)] : 0), tolerance);
    }
  }
}

}  // namespace

TEST("sparse product: random shapes, types, layouts, patterns") {
  constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
  constexpr Layout layouts[] = {Layout::rows, Layout::transposed, Layout::scattered};
  constexpr Zeros zeros[] = {Zeros::two_of_four, Zeros::scattered, Zeros::most, Zeros::all};
  uint64_t seed = 0;
  for (cpu::Level level : cpu::available_levels()) {
    for (int round = 0; round < 12; ++round) {
      Random random(++seed);
      const auto pick = [&](const auto& choices) { return choices[random.integer(0, 2)]; };
      Case c{cpu::sparse_panel_rows[level]() + random.integer(0, 150), 64 + random.integer(0, 80),
             64 + random.integer(0, 80)};
      c.zeros = zeros[random.integer(0, 3)];
      c.a_type = pick(types);
      c.b_type = random.flip() ? c.a_type : pick(types);
      c.c_type = pick(types);
      c.a_layout = pick(layouts);
      c.b_layout = pick(layouts);
      c.alpha = random.flip() ? 1.0f : -0.3712345f;
      c.accumulate = c.c_type == DType::f32 && random.flip();
      c.bias = !c.accumulate && random.flip();
      check_product(level, seed, c);
    }
  }
}

// More columns than are held at once, more than share a pass, and a panel too deep to be packed at once.
TEST("sparse product: wide and deep") {
  const DType f32 = DType::f32, bf16 = DType::bf16;
  uint64_t seed = 1000;
  for (cpu::Level level : cpu::available_levels()) {
    check_product(level, ++seed, {cpu::sparse_panel_rows[level]() + 3, 850, 70});
    check_product(level, ++seed, {cpu::sparse_panel_rows[level](), 850, 70, Zeros::scattered, bf16, bf16, bf16});
    check_product(level, ++seed, {cpu::sparse_panel_rows[level](), 65, 4500, Zeros::most, f32, bf16, f32});
    check_product(level, ++seed, {cpu::sparse_panel_rows[level](), 65, 4501, Zeros::scattered, bf16, bf16, f32});
  }
  const cpu::Level level = cpu::available_levels().back();
  check_product(level, ++seed, {cpu::sparse_panel_rows[level](), 130, 35000, Zeros::most});
}

TEST("sparse product: left to the dense one where few elements are zero, or there are few rows") {
  ThreadPool pool(1);
  for (cpu::Level level : cpu::available_levels()) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      Random random(1);
      const int64_t m = cpu::sparse_panel_rows[level]();
      const Matrix a(random, dtype, m, 64, Layout::rows, 0), b(random, dtype, 64, 64, Layout::transposed, 0);
      const std::vector<float> before(static_cast<size_t>(m * 64), 1);
      std::vector<float> c = before;
      cpu::Gemm g{m, 64, 64, a.operand(), b.operand(), c.data(), 64};
      CHECK(!cpu::multiply_sparse(pool, level, g));
      Matrix sparse(random, dtype, 64, 64, Layout::transposed, 0);
      remove_some(random, sparse, 64, 64, Zeros::two_of_four);
      g.b = sparse.operand();
      g.m = m - 1;
      CHECK(!cpu::multiply_sparse(pool, level, g));
      CHECK(c == before);
      g.m = m;
      CHECK(cpu::multiply_sparse(pool, level, g));
    }
  }
}

// A zero of a dense product would hide neither.
TEST("sparse product: NaN and infinity come through") {
  ThreadPool pool(1);
  for (cpu::Level level : cpu::available_levels()) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      Random random(1);
      const int64_t m = cpu::sparse_panel_rows[level]();
      Matrix a(random, dtype, m, 64, Layout::rows, 0), b(random, dtype, 64, 64, Layout::transposed, 0);
      remove_some(random, b, 64, 64, Zeros::scattered);
      b.set(5, 7, NAN);
      for (int64_t j = 0; j < 64; ++j) b.set(9, j, 1);
      a.set(3, 9, INFINITY);
      std::vector<float> c(static_cast<size_t>(m * 64));
      CHECK(cpu::multiply_sparse(pool, level, {m, 64, 64, a.operand(), b.operand(), c.data(), 64}));
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < 64; ++j) {
          const float value = c[static_cast<size_t>(i * 64 + j)];
          if (j == 7) {
            CHECK(std::isnan(value));
          } else {
            CHECK_EQUAL(std::isinf(value), i == 3);
          }
        }
    }
  }
}
