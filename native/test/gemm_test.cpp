// The matrix product of every level against sums in double.
#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

using Layout = Matrix::Layout;

constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
constexpr Layout layouts[] = {Layout::rows, Layout::transposed, Layout::scattered};

struct Case {
  int64_t m, n, k;
  DType a_type = DType::f32, b_type = DType::f32, c_type = DType::f32;
  Layout a_layout = Layout::rows, b_layout = Layout::transposed;
  float alpha = 1;
  bool accumulate = false, bias = false, upper = false;
};

// Any combination that gemm() takes.
Case random_case(Random& random, int64_t m, int64_t n, int64_t k) {
  const auto pick = [&](const auto& choices) { return choices[random.integer(0, 2)]; };
  Case c{m, n, k, pick(types), pick(types), pick(types), pick(layouts), pick(layouts)};
  c.alpha = random.flip() ? 1.0f : -0.3712345f;  // rounded to bfloat16 it would be off by 2e-3
  c.accumulate = c.c_type == DType::f32 && random.flip();
  c.bias = !c.accumulate && random.flip();
  c.upper = random.flip();
  return c;
}

// C as bytes, with gaps between its rows.
std::vector<char> multiply(cpu::Level level, int threads, const Case& c, const Matrix& a, const Matrix& b,
                           const std::vector<float>& bias, const std::vector<char>& before, int64_t stride) {
  ThreadPool pool(threads);
  std::vector<char> out = before;
  cpu::Gemm g{c.m, c.n, c.k, a.operand(), b.operand(), out.data(), stride};
  g.alpha = c.alpha;
  g.accumulate = c.accumulate;
  g.triangle = c.upper ? cpu::Triangle::upper : cpu::Triangle::full;
  g.bias = c.bias ? bias.data() : nullptr;
  g.dtype = c.c_type;
  cpu::gemm(pool, level, g);
  return out;
}

void check_product(cpu::Level level, Random& random, const Case& c, const std::vector<int>& other_threads = {}) {
  const Matrix a(random, c.a_type, c.m, c.k, c.a_layout, random.integer(0, 5));
  const Matrix b(random, c.b_type, c.k, c.n, c.b_layout, random.integer(0, 5));
  const auto bias = random.uniforms(c.n);
  const int64_t stride = c.n + random.integer(0, 5);
  // C starts as NaN where it must be overwritten, and as a known value where it must be kept or added to.
  constexpr float old = 0.75f;
  std::vector<float> before(static_cast<size_t>(c.m * stride), old);
  if (!c.accumulate)
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = c.upper ? i : 0; j < c.n; ++j) before[static_cast<size_t>(i * stride + j)] = NAN;
  const auto bytes = encode(before, c.c_type), product = multiply(level, 2, c, a, b, bias, bytes, stride);
  for (int threads : other_threads) CHECK(multiply(level, threads, c, a, b, bias, bytes, stride) == product);

  const auto after = decode(product, c.c_type);
  const double rounding = c.c_type == DType::f32 ? 0 : c.c_type == DType::bf16 ? 0x1p-8 : 0x1p-11;
  const double tolerance = rounding + 1e-6 + 2e-7 * static_cast<double>(c.k);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < stride; ++j) {
      const float actual = after[static_cast<size_t>(i * stride + j)];
      if (j >= c.n || (c.upper && j < i)) {
        CHECK_EQUAL(actual, old);
        continue;
      }
      double sum = 0;
      for (int64_t p = 0; p < c.k; ++p) sum += a(i, p) * b(p, j);
      const double expected = c.alpha * sum + (c.accumulate ? old : c.bias ? bias[static_cast<size_t>(j)] : 0);
      CHECK_CLOSE(actual, expected, tolerance);
    }
  }
}

std::string text(cpu::Level level, const Case& c) {
  const auto layout = [](Layout l) { return l == Layout::rows ? " rows" : l == Layout::transposed ? " transposed" : ""; };
  return std::string(cpu::level_name(level)) + ", " + std::to_string(c.m) + " x " + std::to_string(c.k) + " x " +
         std::to_string(c.n) + ", " + dtype_name(c.a_type) + layout(c.a_layout) + ", " + dtype_name(c.b_type) +
         layout(c.b_layout) + ", " + dtype_name(c.c_type) + (c.accumulate ? ", accumulate" : "") + (c.bias ? ", bias" : "") +
         (c.upper ? ", upper" : "");
}

}  // namespace

TEST("GEMM: random shapes, types, layouts, factors, biases, triangles") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      Random random(seed);
      const int64_t m = random.integer(1, 70), n = random.integer(1, 70), k = random.integer(0, 70);
      const Case c = random_case(random, m, n, k);
      describe_case("seed ", seed, ", ", text(level, c));
      check_product(level, random, c);
    }
  }
}

TEST("GEMM: two bfloat16 operands in every layout, of even and odd depth") {
  uint64_t seed = 0;
  for (cpu::Level level : cpu::available_levels()) {
    for (int64_t k : {1, 2, 31, 32, 33, 130}) {
      for (Layout a : layouts) {
        for (Layout b : layouts) {
          Random random(++seed);
          const Case c{61, 47, k, DType::bf16, DType::bf16, DType::f32, a, b, 0.3712345f};
          describe_case(text(level, c));
          check_product(level, random, c);
        }
      }
    }
  }
}

TEST("GEMM: one to nine rows with a matrix whose columns lie along the depth") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Random random(seed);
      const auto pick = [&](const auto& choices) { return choices[random.integer(0, 2)]; };
      Case c{random.integer(1, 9), random.integer(1, 70),
             random.flip() ? 64 * random.integer(1, 4) : random.integer(0, 300)};
      c.a_type = pick(types);
      c.b_type = random.flip() ? DType::bf16 : pick(types);
      c.c_type = pick(types);
      c.alpha = random.flip() ? 1.0f : -0.3712345f;
      c.bias = random.flip();
      describe_case("seed ", seed, ", ", text(level, c));
      check_product(level, random, c, {1, 3});
    }
  }
}

// More than one block in each dimension, and than what is packed of B at once: by less depth, or by fewer columns where C is not
// float32. In blocks that depend on the number of threads, with results that must not.
TEST("GEMM: large shapes, the same on any number of threads") {
  const DType f32 = DType::f32, bf16 = DType::bf16;
  const Layout rows = Layout::rows, transposed = Layout::transposed;
  const Case cases[] = {
      {401, 170, 67},
      {170, 401, 130, bf16, bf16, bf16, rows, transposed, 1, false, true},
      {300, 300, 600, f32, f32, f32, transposed, rows, 0.5f, true, false, true},
      {150, 150, 1500, bf16, bf16, f32, transposed, rows, 0.25f, true, false, true},
      {5, 2100, 1100, bf16, bf16, bf16, rows, transposed, 1, false, true},
      {60, 40, 1100, f32, f32, bf16, rows, rows, 1, false, true},
      {3, 500, 5000},
      {3, 500, 10001, bf16, bf16, bf16},
      {1, 2000, 50},
      {2000, 1, 50, f32, f32, f32, transposed},
      {33, 65, 0, f32, f32, f32, rows, rows, 1, false, true},
      {33, 65, 0, f32, f32, f32, rows, rows, 1, true},
  };
  for (cpu::Level level : cpu::available_levels()) {
    uint64_t seed = 1000;
    for (const Case& c : cases) {
      Random random(++seed);
      describe_case(text(level, c));
      check_product(level, random, c, {1, 3});
    }
  }
}

TEST("GEMM: a result of half precision is not added to, nor one with a bias") {
  ThreadPool pool(1);
  const float x = 1;
  float c = 1;
  cpu::Gemm g{1, 1, 1, cpu::operand(&x, 1), cpu::operand(&x, 1), &c, 1};
  g.accumulate = true;
  g.dtype = DType::bf16;
  CHECK_THROWS_CODE(cpu::gemm(pool, cpu::available_levels().back(), g), "INTERNAL", "a product is added");
  g.dtype = DType::f32;
  g.bias = &x;
  CHECK_THROWS_CODE(cpu::gemm(pool, cpu::available_levels().back(), g), "INTERNAL", "a product is added");
}
