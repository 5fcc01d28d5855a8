#include "cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "core/write_file.h"
#include "cpu/dispatch.h"
#include "cpu/factor.h"
#include "cpu/gemm.h"
#include "cpu/kernels/kernels.h"
#include "cpu/memory_pool.h"
#include "cpu/prune.h"

namespace sparsegpt {

namespace {

using cpu::Kernels;
using cpu::operand;

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads)
      : kernels_(cpu::selected_kernels()), pool_(thread_count(threads)), memory_(std::make_shared<cpu::MemoryPool>()) {}

  std::string description() const override {
    return std::string(kernels_.name) + ", " + std::to_string(pool_.threads()) + " threads";
  }

  std::shared_ptr<Storage> allocate(size_t bytes) override { return memory_->storage(bytes); }

  // --- moving and converting ---------------------------------------------------------------------------------------

  void upload(const Tensor& out, const void* host) override {
    require(out.contiguous(), "upload needs a contiguous tensor");
    std::memcpy(out.bytes(), host, byte_size(out));
  }

  void download(void* host, const Tensor& tensor) override {
    require(tensor.contiguous(), "download needs a contiguous tensor");
    std::memcpy(host, tensor.bytes(), byte_size(tensor));
  }

  void cast(const Tensor& out, const Tensor& in) override {
    require_float(in, "input");
    require_float(out, "output");
    require_shape(out, in.rows, in.columns, "output");
    for_rows(in.rows, in.columns, [&](int64_t i, std::vector<float>& row) {
      if (out.dtype == DType::f32) {
        kernels_.to_float(reinterpret_cast<float*>(row_of(out, i)), row_of(in, i), in.dtype, in.columns);
      } else if (in.dtype == DType::f32) {
        kernels_.from_float(row_of(out, i), out.dtype, reinterpret_cast<const float*>(row_of(in, i)), in.columns);
      } else {
        row.resize(static_cast<size_t>(in.columns));
        kernels_.to_float(row.data(), row_of(in, i), in.dtype, in.columns);
        kernels_.from_float(row_of(out, i), out.dtype, row.data(), in.columns);
      }
    });
  }

  void transpose(const Tensor& out, const Tensor& in) override {
    require_shape(out, in.columns, in.rows, "output");
    if (in.dtype == DType::u8) {
      for (int64_t i = 0; i < in.rows; ++i)
        for (int64_t j = 0; j < in.columns; ++j)
          out.data<uint8_t>()[j * out.stride + i] = in.data<uint8_t>()[i * in.stride + j];
      return;
    }
    require_float(in, "input");
    require_float(out, "output");
    // Tiles keep both sides in cache.
    constexpr int64_t side = 32;
    const int64_t down = (in.rows + side - 1) / side, across = (in.columns + side - 1) / side;
    pool_.parallel_for(down * across, [&](int64_t task, int) {
      const int64_t i0 = task / across * side, j0 = task % across * side;
      const int64_t rows = std::min(side, in.rows - i0), columns = std::min(side, in.columns - j0);
      float tile[side][side], turned[side][side];
      for (int64_t i = 0; i < rows; ++i) kernels_.to_float(tile[i], element(in, i0 + i, j0), in.dtype, columns);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) turned[j][i] = tile[i][j];
      for (int64_t j = 0; j < columns; ++j) kernels_.from_float(element(out, j0 + j, i0), out.dtype, turned[j], rows);
    });
  }

  void fill(const Tensor& out, double value) override {
    require(out.contiguous(), "fill needs a contiguous tensor");
    if (out.dtype == DType::f64) {
      std::fill_n(out.data<double>(), out.size(), value);
    } else {
      std::fill_n(out.data<float>(), out.size(), static_cast<float>(value));
    }
  }

  void write_file(int fd, int64_t position, const Tensor& tensor) override {
    require(tensor.contiguous(), "write needs a contiguous tensor");
    write_fully(fd, position, tensor.bytes(), byte_size(tensor));
  }

  // --- forward -----------------------------------------------------------------------------------------------------

  void embedding(const Tensor& out, const Tensor& table, const Tensor& ids) override {
    require_float(table, "table");
    require_float(out, "output");
    require_shape(out, ids.size(), table.columns, "output");
    const int32_t* id = ids.data<int32_t>();
    for (int64_t t = 0; t < out.rows; ++t)
      if (id[t] < 0 || id[t] >= table.rows)
        throw Error("INVALID_OPTION", "token id " + std::to_string(id[t]) + " at position " + std::to_string(t) +
                                          " is outside the table of " + std::to_string(table.rows) + " entries");
    for_rows(out.rows, out.columns, [&](int64_t t, std::vector<float>& row) {
      row.resize(static_cast<size_t>(out.columns));
      kernels_.to_float(row.data(), row_of(table, id[t]), table.dtype, out.columns);
      kernels_.from_float(row_of(out, t), out.dtype, row.data(), out.columns);
    });
  }

  void linear(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias) override {
    require_float(x, "x");
    require_float(weight, "weight");
    require_float(out, "output");
    require(x.columns == weight.columns, "x " + describe(x) + " does not fit weight " + describe(weight));
    require_shape(out, x.rows, weight.rows, "output");
    std::vector<float> bias_row;
    if (bias) {
      require_shape(bias, 1, weight.rows, "bias");
      bias_row.resize(static_cast<size_t>(bias.columns));
      kernels_.to_float(bias_row.data(), bias.bytes(), bias.dtype, bias.columns);
    }
    cpu::Gemm product{x.rows, out.columns, x.columns, operand(x), operand(weight).transposed(), out.bytes(), out.stride};
    product.bias = bias ? bias_row.data() : nullptr;
    product.dtype = out.dtype;
    product.sparse_b = true;
    cpu::gemm(pool_, kernels_, product);
  }

  void layer_norm(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) override {
    require_shape(weight, 1, x.columns, "weight");
    require_shape(bias, 1, x.columns, "bias");
    map_rows(out, x, [&](float* y, const float* row) {
      kernels_.layer_norm(y, row, weight.data<float>(), bias.data<float>(), x.columns, eps);
    });
  }

  void rms_norm(const Tensor& out, const Tensor& x, const Tensor& weight, float eps) override {
    require_shape(weight, 1, x.columns, "weight");
    map_rows(out, x, [&](float* y, const float* row) { kernels_.rms_norm(y, row, weight.data<float>(), x.columns, eps); });
  }

  void rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine, int64_t head_dim, bool interleaved) override {
    const int64_t sequence = cosine.rows, half = cosine.columns;
    require_shape(sine, sequence, half, "sine");
    require(2 * half <= head_dim && x.columns % head_dim == 0 && x.rows % sequence == 0,
            "x " + describe(x) + " does not hold whole sequences of heads");
    map_rows(x, x, [&](float* y, const float*, int64_t t) {
      const int64_t position = t % sequence;
      for (int64_t h = 0; h < x.columns; h += head_dim)
        kernels_.rotary(y + h, cosine.data<float>() + position * cosine.stride, sine.data<float>() + position * sine.stride,
                        half, interleaved);
    });
  }

  void attention(const Tensor& out, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionShape& shape) override {
    const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
    require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && q.rows % shape.sequence == 0,
            "heads or sequences do not divide");
    require_shape(q, q.rows, width, "q");
    require_shape(out, q.rows, width, "output");
    require_shape(k, q.rows, kv_width, "k");
    require_shape(v, q.rows, kv_width, "v");
    require(q.dtype == k.dtype && q.dtype == v.dtype && q.dtype == out.dtype && k.stride == v.stride,
            "q, k, v and output must agree in type, k and v in layout");
    if (shape.slopes) require_plain(shape.slopes, 1, shape.heads, DType::f32, "slopes");
    const int64_t group = shape.heads / shape.kv_heads;
    const int64_t scratch_size = kernels_.attention_scratch(shape.sequence, shape.head_dim);
    const auto scratch = pool_.scratch<float>(pool_.threads() * scratch_size);
    pool_.parallel_for(q.rows / shape.sequence * shape.kv_heads, [&](int64_t task, int thread) {
      const int64_t first = task / shape.kv_heads * shape.sequence, head = task % shape.kv_heads;
      cpu::AttentionHead h{};
      h.dtype = q.dtype;
      h.q = element(q, first, head * group * shape.head_dim);
      h.k = element(k, first, head * shape.head_dim);
      h.v = element(v, first, head * shape.head_dim);
      h.out = element(out, first, head * group * shape.head_dim);
      h.q_stride = q.stride;
      h.kv_stride = k.stride;
      h.out_stride = out.stride;
      h.queries = group;
      h.sequence = shape.sequence;
      h.head_dim = shape.head_dim;
      h.scale = shape.scale;
      h.window = shape.window;
      h.softcap = shape.softcap;
      h.slopes = shape.slopes ? shape.slopes.data<float>() + head * group : nullptr;
      kernels_.attention(h, scratch.data() + thread * scratch_size);
    });
  }

  void activation(const Tensor& x, Activation kind) override {
    map_elements(x, [&](float* y, int64_t count) { kernels_.activation(y, count, kind); });
  }

  void gate(const Tensor& x, const Tensor& up, Activation kind) override {
    combine_elements(x, up, [&](float* y, const float* other, int64_t count) { kernels_.gate(y, other, count, kind); });
  }

  void add(const Tensor& x, const Tensor& y) override {
    combine_elements(x, y, [&](float* sum, const float* other, int64_t count) { kernels_.add(sum, other, count); });
  }

  void scale(const Tensor& x, float factor) override {
    map_elements(x, [&](float* y, int64_t count) { kernels_.scale(y, factor, count); });
  }

  void softcap(const Tensor& x, float cap) override {
    require(cap > 0, "the cap must be positive");
    map_elements(x, [&](float* y, int64_t count) { kernels_.softcap(y, cap, count); });
  }

  void take_columns(const Tensor& out, const Tensor& x, int64_t first, int64_t count, int64_t stride) override {
    require_shape(out, x.rows, out.columns, "output");
    require(out.dtype == x.dtype && count > 0 && out.columns % count == 0 && first >= 0 && stride >= 0 &&
                first + (out.columns / count - 1) * stride + count <= x.columns,
            "x " + describe(x) + " does not hold the columns of output " + describe(out));
    const auto bytes = static_cast<size_t>(count) * dtype_size(x.dtype);
    for_rows(x.rows, out.columns, [&](int64_t t, std::vector<float>&) {
      for (int64_t g = 0; g < out.columns / count; ++g)
        std::memcpy(element(out, t, g * count), element(x, t, g * stride + first), bytes);
    });
  }

  void scatter_add(const Tensor& out, const Tensor& x, const Tensor& ids, const Tensor& factors) override {
    require_float(x, "x");
    require_float(out, "output");
    require_shape(x, ids.size(), out.columns, "x");
    require_plain(factors, 1, x.rows, DType::f32, "factors");
    const int32_t* id = ids.data<int32_t>();
    for (int64_t t = 0; t < x.rows; ++t)
      require(id[t] >= 0 && id[t] < out.rows, "row " + std::to_string(id[t]) + " is outside output " + describe(out));
    for_rows(x.rows, x.columns, [&](int64_t t, std::vector<float>& row) {
      row.resize(static_cast<size_t>(2 * x.columns));
      float *sum = row.data(), *term = sum + x.columns;
      kernels_.to_float(sum, row_of(out, id[t]), out.dtype, x.columns);
      kernels_.to_float(term, row_of(x, t), x.dtype, x.columns);
      kernels_.scale(term, factors.data<float>()[t], x.columns);
      kernels_.add(sum, term, x.columns);
      kernels_.from_float(row_of(out, id[t]), out.dtype, sum, x.columns);
    });
  }

  void cross_entropy(const Tensor& losses, const Tensor& x, const Tensor& head, const Tensor& bias, float softcap,
                     const Tensor& targets) override {
    require_plain(losses, 1, x.rows, DType::f32, "losses");
    require_shape(targets, 1, x.rows, "targets");
    require(x.columns == head.columns, "x " + describe(x) + " does not fit head " + describe(head));
    const int32_t* target = targets.data<int32_t>();
    for (int64_t t = 0; t < x.rows; ++t)
      if (target[t] < 0 || target[t] >= head.rows)
        throw Error("INVALID_OPTION",
                    "token id " + std::to_string(target[t]) + " is outside the vocabulary of " + std::to_string(head.rows));
    std::vector<float> bias_row;
    if (bias) {
      require_shape(bias, 1, head.rows, "bias");
      bias_row.resize(static_cast<size_t>(head.rows));
      kernels_.to_float(bias_row.data(), bias.bytes(), bias.dtype, bias.columns);
    }
    constexpr int64_t tile_tokens = 1024, tile_words = 4096;
    const auto logits = pool_.scratch<float>(std::min(tile_tokens, x.rows) * std::min(tile_words, head.rows));
    struct Running {
      float largest;
      double sum;  // of exp(logit - largest)
      double wanted;
    };
    for (int64_t t0 = 0; t0 < x.rows; t0 += tile_tokens) {
      const int64_t tokens = std::min(tile_tokens, x.rows - t0);
      std::vector<Running> running(static_cast<size_t>(tokens), Running{-INFINITY, 0, 0});
      for (int64_t w0 = 0; w0 < head.rows; w0 += tile_words) {
        const int64_t words = std::min(tile_words, head.rows - w0);
        cpu::Gemm product{tokens,
                          words,
                          x.columns,
                          operand(x.row_range(t0, tokens)),
                          operand(head.row_range(w0, words)).transposed(),
                          logits.data(),
                          words};
        product.bias = bias ? bias_row.data() + w0 : nullptr;
        cpu::gemm(pool_, kernels_, product);
        for_rows(tokens, words, [&](int64_t t, std::vector<float>&) {
          float* row = logits.data() + t * words;
          if (softcap > 0) kernels_.softcap(row, softcap, words);
          Running& r = running[static_cast<size_t>(t)];
          float largest;
          double sum;
          kernels_.log_sum_exp(row, words, &largest, &sum);
          const float top = std::max(largest, r.largest);
          r.sum =
              r.sum * std::exp(static_cast<double>(r.largest) - top) + sum * std::exp(static_cast<double>(largest) - top);
          r.largest = top;
          const int64_t wanted = target[t0 + t] - w0;
          if (wanted >= 0 && wanted < words) r.wanted = row[wanted];
        });
      }
      for (int64_t t = 0; t < tokens; ++t) {
        const Running& r = running[static_cast<size_t>(t)];
        losses.data<float>()[t0 + t] = static_cast<float>(r.largest + std::log(r.sum) - r.wanted);
      }
    }
  }

  // --- calibration -------------------------------------------------------------------------------------------------

  void accumulate_gram(const Tensor& gram, const Tensor& x, float scale) override {
    require_float(x, "x");
    require_plain(gram, x.columns, x.columns, DType::f32, "gram");
    cpu::Gemm product{x.columns, x.columns, x.rows, operand(x).transposed(), operand(x), gram.data<float>(), gram.stride};
    product.alpha = scale;
    product.accumulate = true;
    product.triangle = cpu::Triangle::upper;
    cpu::gemm(pool_, kernels_, product);
  }

  void accumulate_squares(const Tensor& sums, const Tensor& x, float scale) override {
    require_float(x, "x");
    require_plain(sums, 1, x.columns, DType::f32, "sums");
    // By columns, so that the order of summation does not depend on the number of threads.
    constexpr int64_t strip = 256;
    pool_.parallel_for((x.columns + strip - 1) / strip, [&](int64_t task, int) {
      const int64_t j = task * strip, count = std::min(strip, x.columns - j);
      float row[strip];
      for (int64_t t = 0; t < x.rows; ++t) {
        kernels_.to_float(row, element(x, t, j), x.dtype, count);
        kernels_.add_squares(sums.data<float>() + j, row, scale, count);
      }
    });
  }

  // --- pruning -----------------------------------------------------------------------------------------------------

  void factor_hessian(const Tensor& hessian, const Tensor& dead, double dampening, const Tensor& stats) override {
    const Stopwatch watch;
    require_plain(hessian, hessian.columns, hessian.columns, DType::f32, "hessian");
    require_plain(dead, 1, hessian.columns, DType::u8, "dead");
    require_plain(stats, 1, factor_stats::count, DType::f64, "stats");
    const auto report =
        cpu::factor_hessian(pool_, kernels_, hessian.data<float>(), hessian.columns, dead.data<uint8_t>(), dampening);
    double* out = stats.data<double>();
    out[factor_stats::dampening] = report.dampening;
    out[factor_stats::retries] = report.retries;
    out[factor_stats::dead_columns] = static_cast<double>(report.dead_columns);
    out[factor_stats::seconds] = watch.seconds();
  }

  void prune_sparsegpt(const Tensor& weight, const Tensor& mask, const Tensor& factor, const Tensor& dead,
                       const Selection& selection, int64_t block_size, int bits, const Tensor& stats) override {
    require_plain(factor, weight.columns, weight.columns, DType::f32, "factor");
    require_plain(dead, 1, weight.columns, DType::u8, "dead");
    prune(weight, mask, selection, stats, [&](const cpu::WeightMatrix& w, const cpu::Choice& choice) {
      return cpu::prune_sparsegpt(pool_, kernels_, w, factor.data<float>(), dead.data<uint8_t>(), choice, block_size, bits);
    });
  }

  void prune_magnitude(const Tensor& weight, const Tensor& mask, const Selection& selection, const Tensor& stats) override {
    prune(weight, mask, selection, stats, [&](const cpu::WeightMatrix& w, const cpu::Choice& choice) {
      cpu::prune_magnitude(pool_, kernels_, w, choice);
      return NAN;
    });
  }

  void prune_wanda(const Tensor& weight, const Tensor& mask, const Tensor& squares, const Selection& selection,
                   const Tensor& stats) override {
    require_plain(squares, 1, weight.columns, DType::f32, "squares");
    prune(weight, mask, selection, stats, [&](const cpu::WeightMatrix& w, const cpu::Choice& choice) {
      cpu::prune_wanda(pool_, kernels_, w, squares.data<float>(), choice);
      return NAN;
    });
  }

  // --- inspection --------------------------------------------------------------------------------------------------

  void count_zeros(const Tensor& stats, const Tensor& tensor, const Tensor& patterns) override {
    require_float(tensor, "tensor");
    require_shape(patterns, patterns.rows, 2, "patterns");
    require_plain(stats, 1, 1 + patterns.rows, DType::f64, "stats");
    const int32_t* pattern = patterns.data<int32_t>();
    struct Row {
      int64_t zeros = 0;
      uint32_t broken = 0;  // bit p: pattern p does not hold
    };
    std::vector<Row> rows(static_cast<size_t>(tensor.rows));
    for_rows(tensor.rows, tensor.columns, [&](int64_t i, std::vector<float>& values) {
      values.resize(static_cast<size_t>(tensor.columns));
      kernels_.to_float(values.data(), row_of(tensor, i), tensor.dtype, tensor.columns);
      Row& row = rows[static_cast<size_t>(i)];
      for (float value : values) row.zeros += value == 0;
      for (int64_t p = 0; p < patterns.rows; ++p) {
        const int32_t n = pattern[2 * p], m = pattern[2 * p + 1];
        bool holds = tensor.columns % m == 0;
        for (int64_t j = 0; holds && j < tensor.columns; j += m) {
          int32_t zeros = 0;
          for (int64_t g = j; g < j + m; ++g) zeros += values[static_cast<size_t>(g)] == 0;
          holds = zeros >= n;
        }
        if (!holds) row.broken |= 1u << p;
      }
    });
    Row all;
    for (const Row& row : rows) {
      all.zeros += row.zeros;
      all.broken |= row.broken;
    }
    stats.data<double>()[0] = static_cast<double>(all.zeros);
    for (int64_t p = 0; p < patterns.rows; ++p) stats.data<double>()[1 + p] = (all.broken >> p & 1u) == 0;
  }

 private:
  static std::byte* element(const Tensor& tensor, int64_t row, int64_t column) {
    return tensor.bytes() + (row * tensor.stride + column) * static_cast<int64_t>(dtype_size(tensor.dtype));
  }
  static std::byte* row_of(const Tensor& tensor, int64_t row) { return element(tensor, row, 0); }

  // body(row, buffer) for every row, in parallel; rows of `columns` elements are handed out some at a time.
  template <typename Body>
  void for_rows(int64_t rows, int64_t columns, const Body& body) {
    const int64_t per_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
    pool_.parallel_for((rows + per_task - 1) / per_task, [&](int64_t task, int) {
      std::vector<float> buffer;
      for (int64_t i = task * per_task; i < std::min(rows, (task + 1) * per_task); ++i) body(i, buffer);
    });
  }

  // out = f(in) by rows in float32, whatever the element types; out may be in. f(out row, in row [, index]).
  template <typename Function>
  void map_rows(const Tensor& out, const Tensor& in, const Function& f) {
    require_float(in, "input");
    require_float(out, "output");
    require_shape(out, in.rows, in.columns, "output");
    const auto call = [&](float* y, const float* x, int64_t i) {
      if constexpr (std::is_invocable_v<Function, float*, const float*, int64_t>) {
        f(y, x, i);
      } else {
        f(y, x);
      }
    };
    for_rows(in.rows, in.columns, [&](int64_t i, std::vector<float>& buffer) {
      float* y = reinterpret_cast<float*>(row_of(out, i));
      if (out.dtype != DType::f32) {
        buffer.resize(static_cast<size_t>(in.columns));
        y = buffer.data();
      }
      call(y, as_floats(in, i, 0, in.columns, y), i);
      if (out.dtype != DType::f32) kernels_.from_float(row_of(out, i), out.dtype, y, in.columns);
    });
  }

  // Elements of other types that are converted and worked on together: few, so that meanwhile the next ones are read.
  static constexpr int64_t span = 256;

  // x = f(x) by elements in float32: f(x, count).
  template <typename Function>
  void map_elements(const Tensor& x, const Function& f) {
    require_float(x, "input");
    for_spans(x, x.dtype == DType::f32, [&](int64_t, int64_t, float* values, int64_t count) { f(values, count); });
  }

  // x = f(x, y) by elements in float32: f(x, y, count).
  template <typename Function>
  void combine_elements(const Tensor& x, const Tensor& y, const Function& f) {
    require_float(x, "first operand");
    require_float(y, "second operand");
    require_shape(y, x.rows, x.columns, "second operand");
    const bool floats = x.dtype == DType::f32 && y.dtype == DType::f32;
    for_spans(x, floats, [&](int64_t i, int64_t j, float* values, int64_t count) {
      float buffer[span];
      f(values, as_floats(y, i, j, count, buffer), count);
    });
  }

  // Changes the elements of x in float32: body(row, column, elements, count), by whole rows where nothing is converted.
  template <typename Body>
  void for_spans(const Tensor& x, bool floats, const Body& body) {
    const int64_t step = floats ? x.columns : span;
    for_rows(x.rows, x.columns, [&](int64_t i, std::vector<float>&) {
      float buffer[span];
      for (int64_t j = 0; j < x.columns; j += step) {
        const int64_t count = std::min(step, x.columns - j);
        float* values = as_floats(x, i, j, count, buffer);
        body(i, j, values, count);
        if (x.dtype != DType::f32) kernels_.from_float(element(x, i, j), x.dtype, values, count);
      }
    });
  }

  // Elements of a row in float32: themselves, or converted into the buffer.
  float* as_floats(const Tensor& tensor, int64_t row, int64_t column, int64_t count, float* buffer) const {
    if (tensor.dtype == DType::f32) return reinterpret_cast<float*>(element(tensor, row, column));
    kernels_.to_float(buffer, element(tensor, row, column), tensor.dtype, count);
    return buffer;
  }

  template <typename Method>
  void prune(const Tensor& weight, const Tensor& mask, const Selection& selection, const Tensor& stats,
             const Method& method) {
    const Stopwatch watch;
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(mask, weight.rows, weight.columns, DType::u8, "mask");
    require_plain(stats, 1, solve_stats::count, DType::f64, "stats");
    if (selection.mask) require_plain(selection.mask, weight.rows, weight.columns, DType::u8, "selection mask");
    const cpu::WeightMatrix matrix{weight.data<float>(), mask.data<uint8_t>(), weight.rows, weight.columns};
    const cpu::Choice choice{selection.sparsity, selection.n, selection.m,
                             selection.mask ? selection.mask.data<uint8_t>() : nullptr};
    double* out = stats.data<double>();
    out[solve_stats::loss] = method(matrix, choice);
    std::atomic<int64_t> zeros{0};
    pool_.parallel_for(weight.rows, [&](int64_t i, int) {
      const float* row = matrix.weight + i * weight.columns;
      zeros += std::count(row, row + weight.columns, 0.0f);
    });
    out[solve_stats::zeros] = static_cast<double>(zeros);
    out[solve_stats::seconds] = watch.seconds();
  }

  const Kernels& kernels_;
  ThreadPool pool_;
  std::shared_ptr<cpu::MemoryPool> memory_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace sparsegpt
