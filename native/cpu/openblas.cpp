#include "cpu/openblas.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(SPARSEGPT_OPENBLAS)

extern "C" {
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc);
char* openblas_get_config();
char* openblas_get_corename();
void openblas_set_num_threads(int threads);
}

namespace sparsegpt::cpu {

namespace {

// OpenBLAS chooses its kernels in a constructor, from the processor's family: on AMD with AVX-512 it takes the AVX2 ones and
// reaches less than half of the peak. The only way to overrule it is this variable, set before that constructor runs; hence
// a constructor of the earliest priority in an object that is linked before the library. A choice of the user stands.
// It also must not start threads of its own.
#if defined(SPARSEGPT_X86_64)
__attribute__((constructor(101))) void choose_openblas_kernels() {
  __builtin_cpu_init();
  const char* wanted = std::getenv("SPARSEGPT_CPU");
  const bool any = wanted == nullptr || *wanted == '\0';
  const char* core = "Prescott";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (any || std::strcmp(wanted, "baseline") != 0)) {
    core = "Haswell";
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && (any || std::strncmp(wanted, "avx512", 6) == 0))
      core = "SkylakeX";
  }
  setenv("OPENBLAS_CORETYPE", core, 0);
  setenv("OPENBLAS_NUM_THREADS", "1", 1);
}
#endif

constexpr int row_major = 101, no_trans = 111, trans = 112;

// Large enough that packing is a few percent, small enough that a few threads share the work evenly.
// The columns of a tile are a multiple of its rows, so a tile right of the diagonal's block never crosses the diagonal.
constexpr int64_t tile_rows = 384, tile_columns = 1536;
static_assert(tile_columns % tile_rows == 0);
constexpr int64_t strip_rows = 128;

bool unit_stride(const Operand& x) { return x.dtype == DType::f32 && (x.column_stride == 1 || x.row_stride == 1); }

}  // namespace

namespace openblas {

bool serves(const Gemm& g) { return unit_stride(g.a) && unit_stride(g.b) && g.k > 0; }

void gemm(ThreadPool& pool, const Gemm& g) {
  [[maybe_unused]] static const bool single_threaded = (openblas_set_num_threads(1), true);
  const bool a_plain = g.a.column_stride == 1, b_plain = g.b.column_stride == 1;
  // Leading dimensions of one-row operands may be smaller than BLAS demands.
  const auto leading = [](int64_t stride, int64_t least) { return static_cast<int>(std::max(stride, least)); };
  const int lda = a_plain ? leading(g.a.row_stride, g.k) : leading(g.a.column_stride, g.m);
  const int ldb = b_plain ? leading(g.b.row_stride, g.n) : leading(g.b.column_stride, g.k);
  const int64_t down = (g.m + tile_rows - 1) / tile_rows, across = (g.n + tile_columns - 1) / tile_columns;
  const auto multiply = [&](int64_t i, int64_t rows, int64_t j, int64_t columns, float* c, int64_t c_stride, float beta) {
    cblas_sgemm(row_major, a_plain ? no_trans : trans, b_plain ? no_trans : trans, static_cast<int>(rows),
                static_cast<int>(columns), static_cast<int>(g.k), g.alpha, static_cast<const float*>(g.a.at(i, 0)), lda,
                static_cast<const float*>(g.b.at(0, j)), ldb, beta, c, static_cast<int>(c_stride));
  };
  const int64_t c_stride = std::max(g.c_stride, g.n);
  const float beta = g.accumulate ? 1.0f : 0.0f;
  pool.parallel_for(down * across, [&](int64_t task, int) {
    const int64_t i = task % down * tile_rows, j0 = task / down * tile_columns;
    const int64_t rows = std::min(tile_rows, g.m - i), end = std::min(j0 + tile_columns, g.n);
    int64_t j = j0;
    if (g.triangle == Triangle::upper && j0 <= i) {
      // The block on the diagonal, by strips; the triangle that starts each goes through a buffer.
      j = std::min(i + rows, end);
      for (int64_t s = i; s < j; s += strip_rows) {
        const int64_t height = std::min(strip_rows, i + rows - s), width = std::min(height, j - s);
        float tile[strip_rows * strip_rows];
        multiply(s, height, s, width, tile, strip_rows, 0.0f);
        store_upper(g.c + s * g.c_stride + s, g.c_stride, tile, strip_rows, height, width, 0, g.accumulate);
        if (s + width < j) multiply(s, height, s + width, j - s - width, g.c + s * g.c_stride + s + width, c_stride, beta);
      }
    }
    if (j < end) multiply(i, rows, j, end - j, g.c + i * g.c_stride + j, c_stride, beta);
  });
}

}  // namespace openblas

const char* blas_description() {
  static const std::string text = std::string(openblas_get_config()) + ", kernels " + openblas_get_corename();
  return text.c_str();
}

}  // namespace sparsegpt::cpu

#else

namespace sparsegpt::cpu {

namespace openblas {
bool serves(const Gemm&) { return false; }
void gemm(ThreadPool&, const Gemm&) {}
}  // namespace openblas

const char* blas_description() { return "portable"; }

}  // namespace sparsegpt::cpu

#endif
