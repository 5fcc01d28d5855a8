// gemm(), which takes OpenBLAS where it is built in: against the portable product, and the same for any number of threads.
#include <cstring>

#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

using Layout = Matrix::Layout;

struct Case {
  int64_t m, n, k;
  Layout a_layout, b_layout;
  bool accumulate, upper;
  float alpha;
};

// Larger than the tiles that are handed to the threads, and no multiples of them.
const Case cases[] = {
    {401, 1603, 67, Layout::rows, Layout::transposed, false, false, 1},
    {900, 130, 301, Layout::rows, Layout::rows, true, false, 1},
    {777, 777, 129, Layout::transposed, Layout::rows, true, true, 0.5f},
    {1700, 1700, 33, Layout::rows, Layout::transposed, true, true, -1},
    {1, 2000, 50, Layout::rows, Layout::transposed, false, false, 1},
    {2000, 1, 50, Layout::transposed, Layout::rows, false, false, 1},
    {100, 100, 1, Layout::transposed, Layout::transposed, true, false, 1},
};

std::vector<float> multiply(int threads, const cpu::Kernels& level, const Case& c, const Matrix& a, const Matrix& b,
                            decltype(&cpu::gemm) method) {
  ThreadPool pool(threads);
  std::vector<float> out(static_cast<size_t>(c.m * (c.n + 3)), 0.25f);
  cpu::Gemm g{c.m, c.n, c.k, a.operand(), b.operand(), out.data(), c.n + 3};
  g.alpha = c.alpha;
  g.accumulate = c.accumulate;
  g.triangle = c.upper ? cpu::Triangle::upper : cpu::Triangle::full;
  method(pool, level, g);
  return out;
}

}  // namespace

TEST("GEMM: equals the portable product, and bit for bit itself on 1, 2 and 3 threads") {
  const auto& level = *cpu::available_kernels().back();
  uint64_t seed = 0;
  for (const Case& c : cases) {
    Random random(++seed);
    describe_case("case ", seed, ", m n k ", c.m, " ", c.n, " ", c.k);
    const Matrix a(random, DType::f32, c.m, c.k, c.a_layout, 2), b(random, DType::f32, c.k, c.n, c.b_layout, 3);
    const auto one = multiply(1, level, c, a, b, cpu::gemm);
    const auto packed = multiply(1, level, c, a, b, cpu::gemm);
    for (size_t i = 0; i < one.size(); ++i) CHECK_CLOSE(one[i], packed[i], 1e-5);
    for (int threads : {2, 3}) {
      CHECK(multiply(threads, level, c, a, b, cpu::gemm) == one);
      CHECK(multiply(threads, level, c, a, b, cpu::gemm) == packed);
    }
  }
}

TEST("GEMM: the upper triangle leaves every entry below the diagonal alone") {
  const auto& level = *cpu::available_kernels().back();
  for (auto method : {cpu::gemm, cpu::gemm}) {
    for (int64_t n : {5, 40, 383, 385, 1601}) {
      for (bool accumulate : {false, true}) {
        describe_case(n, method == cpu::gemm ? "" : ", packed", accumulate ? ", accumulate" : "");
        Random random(static_cast<uint64_t>(n));
        const Matrix a(random, DType::f32, n, 20, Layout::rows, 0);
        Case c{n, n, 20, Layout::rows, Layout::transposed, accumulate, true, 1};
        ThreadPool pool(2);
        std::vector<float> out(static_cast<size_t>(n * n), 0.25f);
        cpu::Gemm g{n, n, 20, a.operand(), a.operand().transposed(), out.data(), n};
        g.accumulate = c.accumulate;
        g.triangle = cpu::Triangle::upper;
        method(pool, level, g);
        int64_t touched = 0, wrong = 0;
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const float actual = out[static_cast<size_t>(i * n + j)];
            if (j < i) {
              touched += actual != 0.25f;
            } else {
              double sum = accumulate ? 0.25 : 0;
              for (int64_t p = 0; p < 20; ++p) sum += a(i, p) * a(j, p);
              wrong += !close(actual, sum, 1e-5);
            }
          }
        }
        CHECK_EQUAL(touched, int64_t{0});
        CHECK_EQUAL(wrong, int64_t{0});
      }
    }
  }
}

// OpenBLAS built for one thread is safe to call from many only when it was built with locking.
TEST("GEMM: many small products at once from several threads") {
  const auto& level = *cpu::available_kernels().back();
  Random random(5);
  const Case c{1600, 30, 40, Layout::rows, Layout::rows, false, false, 1};
  const Matrix a(random, DType::f32, c.m, c.k, c.a_layout, 0), b(random, DType::f32, c.k, c.n, c.b_layout, 0);
  const auto expected = multiply(1, level, c, a, b, cpu::gemm);
  for (int repeat = 0; repeat < 200; ++repeat) CHECK(multiply(4, level, c, a, b, cpu::gemm) == expected);
}

