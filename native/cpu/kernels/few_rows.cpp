// The dot products of few_rows.h: four columns of B at a time, which share the loads of A, with the sums of up to four rows in
// registers.
#include "cpu/few_rows.h"

#include "cpu/kernels/elements.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t column_group = 4, row_group = 4;

// How `Elements` of A and B are loaded and multiplied, a vector at a time.
template <typename A, typename B>
struct Products {
  using Left = A;
  using Right = B;
  static constexpr int64_t elements = width;
  static vf add(vf sum, vf x, vf y) { return sum + x * y; }
};

#if defined(__AVX512BF16__)
struct PairProducts {
  using Left = PairElements;
  using Right = PairElements;
  static constexpr int64_t elements = 2 * width;
  static vf add(vf sum, vf x, vf y) { return add_pair_products(sum, x, y); }
};
#endif

void store_element(void* c, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::bf16: static_cast<uint16_t*>(c)[index] = float_to_bf16(value); break;
    case DType::f16: static_cast<uint16_t*>(c)[index] = float_to_f16(value); break;
    default: static_cast<float*>(c)[index] = value;
  }
}

// Rows [first, first + rows) of the columns [j, j + count) of C.
template <typename P, int64_t rows>
void multiply_group(const FewRows& o, int64_t first, int64_t j, int64_t count) {
  using Left = typename P::Left;
  using Right = typename P::Right;
  const char *x[rows], *y[column_group];
  for (int64_t r = 0; r < rows; ++r) x[r] = static_cast<const char*>(o.a) + (first + r) * o.a_stride * Left::bytes;
  // Of columns that do not exist the last one is multiplied again.
  for (int64_t i = 0; i < column_group; ++i)
    y[i] = static_cast<const char*>(o.b) + (j + (i < count ? i : count - 1)) * o.b_stride * Right::bytes;
  const int64_t ahead = 2 * column_group * o.b_stride * Right::bytes;
  vf sums[rows][column_group] = {};
  const auto step = [&](int64_t d, int64_t left) {
    vf columns[column_group];
#pragma GCC unroll 4
    for (int64_t i = 0; i < column_group; ++i) {
      const char* at = y[i] + d * Right::bytes;
      columns[i] = Right::load(at, left);
      // The columns are too short for the processor to find out in time where the next ones lie.
      __builtin_prefetch(at + ahead);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < rows; ++r) {
      const vf row = Left::load(x[r] + d * Left::bytes, left);
#pragma GCC unroll 4
      for (int64_t i = 0; i < column_group; ++i) sums[r][i] = P::add(sums[r][i], row, columns[i]);
    }
  };
  int64_t d = 0;
  for (; d + P::elements <= o.depth; d += P::elements) step(d, P::elements);
  if (d < o.depth) step(d, o.depth - d);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < count; ++i) {
      const float bias = o.bias == nullptr ? 0.0f : o.bias[j + i];
      store_element(o.c, o.c_dtype, (first + r) * o.c_stride + j + i, o.alpha * horizontal_sum(sums[r][i]) + bias);
    }
  }
}

template <typename P>
void multiply_all(const FewRows& o) {
  for (int64_t j = 0; j < o.columns; j += column_group) {
    const int64_t count = o.columns - j < column_group ? o.columns - j : column_group;
    for (int64_t i = 0; i < o.rows; i += row_group) {
      switch (o.rows - i) {
        case 1: multiply_group<P, 1>(o, i, j, count); break;
        case 2: multiply_group<P, 2>(o, i, j, count); break;
        case 3: multiply_group<P, 3>(o, i, j, count); break;
        default: multiply_group<P, row_group>(o, i, j, count);
      }
    }
  }
}

}  // namespace

void multiply_few(const FewRows& o) {
#if defined(__AVX512BF16__)
  if (o.a_dtype == DType::bf16) return multiply_all<PairProducts>(o);
#endif
  if (o.b_dtype == DType::bf16) return multiply_all<Products<FloatElements, BfloatElements>>(o);
  multiply_all<Products<FloatElements, FloatElements>>(o);
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
