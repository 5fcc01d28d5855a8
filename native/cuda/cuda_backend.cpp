// The Backend operations on a GPU: checks, copies of operands that lie in host memory, and the order of kernels and library
// calls. Nothing here waits for the GPU but what has to hand something to the host: download, write_file, synchronize, the
// outcome of a factorisation, and token ids that choose rows of a mapped table. What cast and transpose read from a mapped file
// arrives while the operations after them run; other operands in host memory are copied for the time of the operation.
#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/require.h"
#include "core/write_file.h"
#include "cuda/context.h"
#include "cuda/kernels.h"

namespace sparsegpt::cuda {

namespace {

cudaDataType_t library_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_32F;
}

// An operand of a product, row-major; `transposed` when its rows are the columns of the factor.
struct Operand {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed = false;
};

Operand operand(const Tensor& t) { return {t.bytes(), t.dtype, t.stride}; }
Operand transposed(const Tensor& t) { return {t.bytes(), t.dtype, t.stride, true}; }

class CudaBackend : public Backend {
 public:
  CudaBackend() : context_(std::make_shared<Context>()), stream_(context_->stream()) {}
  ~CudaBackend() override { context_->stop_loading(); }

  std::string description() const override { return context_->description(); }
  void synchronize() override { context_->synchronize(); }
  std::shared_ptr<Storage> allocate(size_t bytes) override { return context_->storage(bytes); }

  // --- moving and converting ---------------------------------------------------------------------------------------

  void upload(const Tensor& out, const void* host) override {
    require_device(out);
    require(out.contiguous(), "upload needs a contiguous tensor");
    context_->to_device(out, host);
  }

  void download(void* host, const Tensor& tensor) override {
    require(tensor.contiguous(), "download needs a contiguous tensor");
    if (tensor.storage->on_host()) {
      std::memcpy(host, tensor.bytes(), byte_size(tensor));
    } else {
      context_->to_host(host, tensor.bytes(), byte_size(tensor));
    }
  }

  void cast(const Tensor& out, const Tensor& in) override {
    require_float(in, "input");
    require_float(out, "output");
    require_shape(out, in.rows, in.columns, "output");
    require_device(out);
    if (!in.storage->on_host()) {
      cuda::cast(stream_, view(out), view(in));
    } else if (in.dtype == out.dtype && out.contiguous()) {
      context_->load("cast", out, in, nullptr);
    } else {
      context_->load("cast", out, in, [to = view(out)](cudaStream_t stream, const Tensor& rows, int64_t first) {
        View part = to;
        part.data = element(to, first, 0);
        part.rows = rows.rows;
        cuda::cast(stream, part, view(rows));
      });
    }
  }

  void transpose(const Tensor& out, const Tensor& in) override {
    require_shape(out, in.columns, in.rows, "output");
    require_device(out);
    if (in.dtype == DType::u8) {
      require(out.dtype == DType::u8, "output must be uint8");
    } else {
      require_float(in, "input");
      require_float(out, "output");
    }
    if (!in.storage->on_host()) {
      cuda::transpose(stream_, view(out), view(in));
      return;
    }
    context_->load("transpose", out, in, [to = view(out)](cudaStream_t stream, const Tensor& rows, int64_t first) {
      View part = to;
      part.data = element(to, 0, first);
      part.columns = rows.rows;
      cuda::transpose(stream, part, view(rows));
    });
  }

  void fill(const Tensor& out, double value) override {
    require_device(out);
    require(out.contiguous() && (out.dtype == DType::f32 || out.dtype == DType::f64),
            "fill needs a contiguous float32 or float64 tensor");
    cuda::fill(stream_, view(out), value);
  }

  void write_file(int fd, int64_t position, const Tensor& tensor) override {
    require(tensor.contiguous(), "write needs a contiguous tensor");
    if (tensor.storage->on_host()) {
      write_fully(fd, position, tensor.bytes(), byte_size(tensor));
      return;
    }
    context_->lane().for_pieces(tensor.bytes(), byte_size(tensor), [&](const std::byte* data, size_t bytes) {
      write_fully(fd, position, data, bytes);
      position += static_cast<int64_t>(bytes);
    });
  }

  // --- forward -----------------------------------------------------------------------------------------------------

  void embedding(const Tensor& out, const Tensor& table, const Tensor& ids) override {
    require_float(table, "table");
    require_float(out, "output");
    require_shape(out, ids.size(), table.columns, "output");
    require_device(out);
    require_plain(ids, ids.rows, ids.columns, DType::i32, "ids");
    const auto message = [rows = table.rows](int64_t position, int64_t id) {
      return "token id " + std::to_string(id) + " at position " + std::to_string(position) + " is outside the table of " +
             std::to_string(rows) + " entries";
    };
    if (!table.storage->on_host()) {
      int64_t* bad = watch_ids(
          "INVALID_OPTION", [message](int64_t position, int64_t id) { return message(position, id) + " (in embedding)"; });
      const Tensor i = local(ids);
      cuda::embedding(stream_, view(out), view(table), i.data<int32_t>(), bad);
      return;
    }
    // Of a mapped table only the rows wanted are read.
    std::vector<int32_t> rows(static_cast<size_t>(ids.size()));
    download(rows.data(), ids);
    const auto size = static_cast<int64_t>(dtype_size(table.dtype));
    const auto row_bytes = static_cast<size_t>(table.columns * size);
    std::vector<std::byte> gathered(rows.size() * row_bytes);
    for (size_t t = 0; t < rows.size(); ++t) {
      const int64_t id = rows[t];
      if (id < 0 || id >= table.rows) throw Error("INVALID_OPTION", message(static_cast<int64_t>(t), id));
      std::memcpy(gathered.data() + t * row_bytes, table.bytes() + id * table.stride * size, row_bytes);
    }
    const Tensor copy = context_->scratch(table.dtype, out.rows, out.columns);
    context_->to_device(copy, gathered.data());
    cuda::cast(stream_, view(out), view(copy));
  }

  void linear(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias) override {
    require_float(x, "x");
    require_float(weight, "weight");
    require_float(out, "output");
    require(x.columns == weight.columns, "x " + describe(x) + " does not fit weight " + describe(weight));
    require_shape(out, x.rows, weight.rows, "output");
    require_device(out);
    if (bias) require_shape(bias, 1, weight.rows, "bias");
    if (x.rows == 0 || weight.rows == 0) return;
    // cuBLAS multiplies operands of one type; others meet in float32.
    const DType type = x.dtype == weight.dtype ? x.dtype : DType::f32;
    const bool direct = out.dtype == type || out.dtype == DType::f32;
    const Tensor left = local(x, type);
    const bool whole = !weight.storage->on_host() && weight.dtype == type && direct;
    const int64_t step = whole ? weight.rows : rows_per_tile(weight.columns);
    for (int64_t o = 0; o < weight.rows; o += step) {
      const int64_t count = std::min(step, weight.rows - o);
      const Tensor right = local(weight.row_range(o, count), type);
      const Tensor target = out.column_range(o, count);
      const Tensor sums = direct ? target : context_->scratch(DType::f32, x.rows, count);
      // The bias is there before the product is added, so that a half-precision output is rounded once.
      if (bias) cuda::set_rows(stream_, view(sums), view(local(bias.column_range(o, count))));
      gemm(x.rows, count, x.columns, 1, operand(left), transposed(right), bias ? 1 : 0, sums);
      if (!direct) cuda::cast(stream_, view(target), view(sums));
    }
  }

  void layer_norm(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) override {
    require_shape(weight, 1, x.columns, "weight");
    require_shape(bias, 1, x.columns, "bias");
    require_map(out, x);
    const Tensor w = local(weight), b = local(bias);
    cuda::layer_norm(stream_, view(out), view(x), w.data<float>(), b.data<float>(), eps);
  }

  void rms_norm(const Tensor& out, const Tensor& x, const Tensor& weight, float eps) override {
    require_shape(weight, 1, x.columns, "weight");
    require_map(out, x);
    const Tensor w = local(weight);
    cuda::rms_norm(stream_, view(out), view(x), w.data<float>(), eps);
  }

  void rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine, int64_t head_dim, bool interleaved) override {
    const int64_t sequence = cosine.rows, half = cosine.columns;
    require_shape(sine, sequence, half, "sine");
    require(cosine.dtype == DType::f32 && sine.dtype == DType::f32, "cosine and sine must be float32");
    require(2 * half <= head_dim && x.columns % head_dim == 0 && x.rows % sequence == 0,
            "x " + describe(x) + " does not hold whole sequences of heads");
    require_map(x, x);
    cuda::rotary(stream_, view(x), view(local(cosine)), view(local(sine)), head_dim, interleaved);
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
    require_float(q, "q");
    require(q.dtype == k.dtype && q.dtype == v.dtype && q.dtype == out.dtype, "q, k, v and output must agree in type");
    Tensor slopes;
    if (shape.slopes) {
      require_plain(shape.slopes, 1, shape.heads, DType::f32, "slopes");
      slopes = local(shape.slopes);
    }
    for (const Tensor* t : {&out, &q, &k, &v}) require_device(*t);
    if (q.rows == 0) return;
    cuda::attention(stream_, view(out), view(q), view(k), view(v), shape, slopes ? slopes.data<float>() : nullptr);
  }

  void activation(const Tensor& x, Activation kind) override {
    require_map(x, x);
    cuda::activation(stream_, view(x), kind);
  }

  void gate(const Tensor& x, const Tensor& up, Activation kind) override {
    require_pair(x, up);
    cuda::gate(stream_, view(x), view(local(up)), kind);
  }

  void add(const Tensor& x, const Tensor& y) override {
    require_pair(x, y);
    cuda::add(stream_, view(x), view(local(y)));
  }

  void scale(const Tensor& x, float factor) override {
    require_map(x, x);
    cuda::scale(stream_, view(x), factor);
  }

  void softcap(const Tensor& x, float cap) override {
    require(cap > 0, "the cap must be positive");
    require_map(x, x);
    cuda::softcap(stream_, view(x), cap);
  }

  void take_columns(const Tensor& out, const Tensor& x, int64_t first, int64_t count, int64_t stride) override {
    require_shape(out, x.rows, out.columns, "output");
    require_float(x, "x");
    require_device(out);
    require(out.dtype == x.dtype && count > 0 && out.columns % count == 0 && first >= 0 && stride >= 0 &&
                first + (out.columns / count - 1) * stride + count <= x.columns,
            "x " + describe(x) + " does not hold the columns of output " + describe(out));
    cuda::take_columns(stream_, view(out), view(local(x)), first, count, stride);
  }

  void scatter_add(const Tensor& out, const Tensor& x, const Tensor& ids, const Tensor& factors) override {
    require_float(x, "x");
    require_float(out, "output");
    require_device(out);
    require_shape(x, ids.size(), out.columns, "x");
    require_plain(ids, ids.rows, ids.columns, DType::i32, "ids");
    require_plain(factors, 1, x.rows, DType::f32, "factors");
    int64_t* bad = watch_ids("INTERNAL", [text = describe(out)](int64_t, int64_t id) {
      return "row " + std::to_string(id) + " is outside output " + text + " (in scatterAdd)";
    });
    const Tensor i = local(ids), f = local(factors);
    cuda::scatter_add(stream_, view(out), view(local(x)), i.data<int32_t>(), f.data<float>(), bad);
  }

  void cross_entropy(const Tensor& losses, const Tensor& x, const Tensor& head, const Tensor& bias, float softcap,
                     const Tensor& targets) override {
    require_plain(losses, 1, x.rows, DType::f32, "losses");
    require_device(losses);
    require_shape(targets, 1, x.rows, "targets");
    require_float(x, "x");
    require_float(head, "head");
    require(x.columns == head.columns, "x " + describe(x) + " does not fit head " + describe(head));
    if (bias) require_shape(bias, 1, head.rows, "bias");
    if (x.rows == 0) return;
    const int64_t tokens = x.rows;
    int64_t* bad = watch_ids("INVALID_OPTION", [rows = head.rows](int64_t, int64_t id) {
      return "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(rows) +
             " (in crossEntropy)";
    });
    const Tensor target = local(targets);
    const DType type = x.dtype == head.dtype ? x.dtype : DType::f32;
    const Tensor left = local(x, type), biases = bias ? local(bias, DType::f32) : Tensor{};
    const Tensor running_memory = context_->scratch(DType::u8, tokens, sizeof(RunningLoss));
    auto* running = reinterpret_cast<RunningLoss*>(running_memory.bytes());
    start_losses(stream_, running, tokens, target.data<int32_t>(), head.rows, bad);
    // Words outside, so that a head in host memory travels once.
    constexpr int64_t tile_tokens = 2048, tile_words = 8192;
    const Tensor logits = context_->scratch(DType::f32, 1, std::min(tile_tokens, tokens) * std::min(tile_words, head.rows));
    for (int64_t w = 0; w < head.rows; w += tile_words) {
      const int64_t words = std::min(tile_words, head.rows - w);
      const Tensor right = local(head.row_range(w, words), type);
      for (int64_t t = 0; t < tokens; t += tile_tokens) {
        const int64_t count = std::min(tile_tokens, tokens - t);
        Tensor tile = logits;
        tile.rows = count;
        tile.columns = tile.stride = words;
        gemm(count, words, x.columns, 1, operand(left.row_range(t, count)), transposed(right), 0, tile);
        extend_losses(stream_, running + t, view(tile), biases ? biases.data<float>() + w : nullptr, softcap,
                      target.data<int32_t>() + t, w);
      }
    }
    finish_losses(stream_, losses.data<float>(), running, tokens);
  }

  // --- calibration -------------------------------------------------------------------------------------------------

  void accumulate_gram(const Tensor& gram, const Tensor& x, float scale) override {
    require_float(x, "x");
    require_plain(gram, x.columns, x.columns, DType::f32, "gram");
    require_device(gram);
    if (x.rows == 0) return;
    // Rows of tiles of the upper triangle; below the diagonal only what lies in a tile on it is computed for nothing.
    const Tensor rows = local(x);
    const int64_t n = x.columns, step = std::max<int64_t>(512, (n / 8 + 127) / 128 * 128);
    for (int64_t i = 0; i < n; i += step) {
      const int64_t count = std::min(step, n - i);
      gemm(count, n - i, x.rows, scale, transposed(rows.column_range(i, count)), operand(rows.column_range(i, n - i)), 1,
           gram.row_range(i, count).column_range(i, n - i));
    }
  }

  void accumulate_squares(const Tensor& sums, const Tensor& x, float scale) override {
    require_float(x, "x");
    require_plain(sums, 1, x.columns, DType::f32, "sums");
    require_device(sums);
    cuda::accumulate_squares(stream_, sums.data<float>(), view(local(x)), scale);
  }

  // --- pruning -----------------------------------------------------------------------------------------------------

  // H = R Rᵀ with R upper is the Cholesky factorisation of H with its rows and columns in reverse, which in memory is just the
  // array in reverse: A = L Lᵀ, row-major. To cuSOLVER, whose matrices are column-major, L is the upper factor: A = LᵀᵀLᵀ. It
  // touches one triangle only, so the other keeps H for another try.
  void factor_hessian(const Tensor& hessian, const Tensor& dead, double dampening, const Tensor& stats) override {
    const int64_t n = hessian.columns;
    require_plain(hessian, n, n, DType::f32, "hessian");
    require_plain(dead, 1, n, DType::u8, "dead");
    require_plain(stats, 1, factor_stats::count, DType::f64, "stats");
    for (const Tensor* t : {&hessian, &dead, &stats}) require_device(*t);
    auto* h = hessian.data<float>();
    start_clock(stream_, stats.data<double>(), factor_stats::seconds);
    find_non_finite(stream_, h, n, n, true, context_->watch("NON_FINITE", [](int64_t row) {
      return "the Hessian has a NaN or infinite entry in row " + std::to_string(row) + ": the layer's inputs are not finite";
    }));
    const Tensor diagonal = context_->scratch(DType::f32, 1, n), memory = context_->scratch(DType::u8, 1, sizeof(Diagonal));
    auto* summary = reinterpret_cast<Diagonal*>(memory.bytes());
    read_diagonal(stream_, h, n, diagonal.data<float>(), dead.data<uint8_t>(), summary);
    mirror(stream_, h, n);
    reverse(stream_, h, n * n);

    size_t device_bytes = 0, host_bytes = 0;
    check(cusolverDnXpotrf_bufferSize(context_->solver(), context_->solver_options(), CUBLAS_FILL_MODE_UPPER, n, CUDA_R_32F,
                                      h, n, CUDA_R_32F, &device_bytes, &host_bytes),
          "sizing a factorisation");
    const Tensor workspace = context_->scratch(DType::u8, 1, static_cast<int64_t>(std::max<size_t>(device_bytes, 1)));
    const Tensor outcome = context_->scratch(DType::i32, 1, 1);
    std::vector<std::byte> host_workspace(host_bytes);
    int retries = 0;
    for (double used = dampening;; ++retries) {
      set_reversed_diagonal(stream_, h, n, diagonal.data<float>(), summary, used);
      check(cusolverDnXpotrf(context_->solver(), context_->solver_options(), CUBLAS_FILL_MODE_UPPER, n, CUDA_R_32F, h, n,
                             CUDA_R_32F, workspace.bytes(), device_bytes, host_workspace.data(), host_bytes,
                             outcome.data<int32_t>()),
            "factoring");
      check_diagonal(stream_, h, n, outcome.data<int32_t>());
      // Whether to try again is the one thing that the host has to know; it also waits for the host workspace.
      int32_t info = 0;
      context_->to_host(&info, outcome.bytes(), sizeof info);
      if (retries == 0) context_->synchronize();  // reports NaN and infinity before they look like a failed factorisation
      require(info >= 0, "cuSOLVER refused argument " + std::to_string(-info) + " of a factorisation");
      if (info == 0) {
        reverse(stream_, h, n * n);
        finish_factor(stream_, stats.data<double>(), used, retries, summary);
        return;
      }
      if (retries == 3)
        throw Error("NOT_POSITIVE_DEFINITE", "the Hessian cannot be factored, even with dampening " + std::to_string(used) +
                                                 ": it is not a Gram matrix of the layer's inputs, or these are degenerate");
      used = used > 0 ? used * 10 : 0.001;
      mirror(stream_, h, n);
    }
  }

  void prune_sparsegpt(const Tensor& weight, const Tensor& mask, const Tensor& factor, const Tensor& dead,
                       const Selection& selection, int64_t block_size, int bits, const Tensor& stats) override {
    require_plain(factor, weight.columns, weight.columns, DType::f32, "factor");
    require_plain(dead, 1, weight.columns, DType::u8, "dead");
    require_device(factor);
    require_device(dead);
    prune(weight, mask, selection, stats, "pruneSparsegpt", [&](const uint8_t* given) {
      const Tensor losses =
          solve(weight, mask, factor.data<float>(), dead.data<uint8_t>(), selection, given, block_size, bits);
      require_finite(weight, "pruneSparsegpt");
      return losses;
    });
  }

  void prune_magnitude(const Tensor& weight, const Tensor& mask, const Selection& selection, const Tensor& stats) override {
    prune(weight, mask, selection, stats, "pruneMagnitude", [&](const uint8_t* given) {
      prune_by_score(weight, mask, Scores::magnitude, nullptr, selection, given);
      return Tensor{};
    });
  }

  void prune_wanda(const Tensor& weight, const Tensor& mask, const Tensor& squares, const Selection& selection,
                   const Tensor& stats) override {
    require_plain(squares, 1, weight.columns, DType::f32, "squares");
    prune(weight, mask, selection, stats, "pruneWanda", [&](const uint8_t* given) {
      const Tensor sums = local(squares), norms = context_->scratch(DType::f32, 1, weight.columns);
      find_non_finite(stream_, sums.data<float>(), 1, weight.columns, false, context_->watch("NON_FINITE", [](int64_t) {
        return std::string("the layer's inputs have a NaN or infinite entry (in pruneWanda)");
      }));
      square_roots(stream_, norms.data<float>(), sums.data<float>(), weight.columns);
      prune_by_score(weight, mask, Scores::wanda, norms.data<float>(), selection, given);
      return Tensor{};
    });
  }

  // --- inspection --------------------------------------------------------------------------------------------------

  void count_zeros(const Tensor& stats, const Tensor& tensor, const Tensor& patterns) override {
    require_float(tensor, "tensor");
    require_plain(patterns, patterns.rows, 2, DType::i32, "patterns");
    require_plain(stats, 1, 1 + patterns.rows, DType::f64, "stats");
    require_device(stats);
    const Tensor wanted = local(patterns), counts = zeroed(1 + patterns.rows);
    auto* found = counters(counts);
    const int64_t step = tensor.storage->on_host() ? rows_per_tile(tensor.columns) : std::max<int64_t>(tensor.rows, 1);
    for (int64_t i = 0; i < tensor.rows; i += step) {
      const Tensor rows = local(tensor.row_range(i, std::min(step, tensor.rows - i)));
      cuda::count_zeros(stream_, found, view(rows), wanted.data<int32_t>(), patterns.rows);
    }
    finish_zeros(stream_, stats.data<double>(), found, wanted.data<int32_t>(), patterns.rows, tensor.columns);
  }

 private:
  // --- operands ----------------------------------------------------------------------------------------------------

  static void require_device(const Tensor& tensor) {
    require(tensor && !tensor.storage->on_host(), "a tensor to be written must be in device memory");
  }
  static void require_map(const Tensor& out, const Tensor& x) {
    require_float(x, "input");
    require_float(out, "output");
    require_shape(out, x.rows, x.columns, "output");
    require_device(out);
    require_device(x);
  }
  static void require_pair(const Tensor& x, const Tensor& y) {
    require_map(x, x);
    require_float(y, "second operand");
    require_shape(y, x.rows, x.columns, "second operand");
  }

  // The tensor itself, or a copy in device memory for the time of the operation.
  Tensor local(const Tensor& tensor) {
    if (!tensor.storage->on_host()) return tensor;
    const Tensor copy = context_->scratch(tensor.dtype, tensor.rows, tensor.columns);
    context_->lane().to_device(copy.bytes(), tensor);
    return copy;
  }
  Tensor local(const Tensor& tensor, DType dtype) {
    const Tensor near = local(tensor);
    if (near.dtype == dtype) return near;
    const Tensor converted = context_->scratch(dtype, tensor.rows, tensor.columns);
    cuda::cast(stream_, view(converted), view(near));
    return converted;
  }

  // Counters at zero.
  Tensor zeroed(int64_t count) {
    const Tensor t = context_->scratch(DType::f64, 1, count);
    clear(t);
    return t;
  }
  static unsigned long long* counters(const Tensor& t) { return reinterpret_cast<unsigned long long*>(t.bytes()); }
  void clear(const Tensor& t) { check(cudaMemsetAsync(t.bytes(), 0, byte_size(t), stream_), "clearing memory"); }

  template <typename Message>
  int64_t* watch_ids(const char* code, Message message) {
    return context_->watch(code, [message](int64_t number) {
      return message(number >> 32, static_cast<int32_t>(static_cast<uint32_t>(number)));
    });
  }

  // With 64-bit sizes, since a matrix of 49152 columns (OPT-175B) has more than 2^31 elements.
  // C = alpha · A B + beta · C; A [m, k], B [k, n], C [m, n] f32 or of the operands' type. A column-major library sees the
  // transposes of row-major matrices, and Cᵀ = Bᵀ Aᵀ.
  void gemm(int64_t m, int64_t n, int64_t k, float alpha, const Operand& a, const Operand& b, float beta, const Tensor& c) {
    require(a.dtype == b.dtype, "the operands of a product must agree in type");
    check(cublasGemmEx_64(context_->blas(), b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                          a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &alpha, b.data, library_type(b.dtype), b.stride,
                          a.data, library_type(a.dtype), a.stride, &beta, c.bytes(), library_type(c.dtype), c.stride,
                          a.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying");
  }

  // --- pruning -----------------------------------------------------------------------------------------------------

  void require_finite(const Tensor& weight, const char* operation) {
    find_non_finite(stream_, weight.data<float>(), weight.rows, weight.columns, false,
                    context_->watch("NON_FINITE", [operation](int64_t row) {
                      return "the weight has a NaN or infinite entry in row " + std::to_string(row) + " (in " + operation +
                             ")";
                    }));
  }

  // Checks, clock and statistics around a method, which gets the given mask (or null) and returns its losses (or nothing).
  template <typename Method>
  void prune(const Tensor& weight, const Tensor& mask, const Selection& selection, const Tensor& stats,
             const char* operation, const Method& method) {
    require_plain(weight, weight.rows, weight.columns, DType::f32, "weight");
    require_plain(mask, weight.rows, weight.columns, DType::u8, "mask");
    require_plain(stats, 1, solve_stats::count, DType::f64, "stats");
    for (const Tensor* t : {&weight, &mask, &stats}) require_device(*t);
    Tensor given;
    if (selection.mask) {
      require_plain(selection.mask, weight.rows, weight.columns, DType::u8, "selection mask");
      given = local(selection.mask);
    } else if (selection.m > 0) {
      require_groups(weight.columns, selection.n, selection.m);
    }
    start_clock(stream_, stats.data<double>(), solve_stats::seconds);
    require_finite(weight, operation);
    const Tensor losses = method(given ? given.data<uint8_t>() : nullptr);
    const Tensor zeros = zeroed(1);
    cuda::count_zeros(stream_, counters(zeros), view(weight), nullptr, 0);
    finish_solve(stream_, stats.data<double>(), losses ? losses.data<double>() : nullptr, losses ? losses.columns : 0,
                 counters(zeros));
  }

  // Room for selections among the scores of a matrix in tiles of `tile_rows` rows.
  struct Chooser {
    Tensor state_memory, quota_memory;
    int64_t tile_rows;
    SelectionState* state() const { return reinterpret_cast<SelectionState*>(state_memory.bytes()); }
    unsigned long long* quota() const { return counters(quota_memory); }
  };
  Chooser make_chooser(int64_t rows, int64_t tile_rows) {
    Chooser chooser{context_->scratch(DType::u8, 1, sizeof(SelectionState)),
                    context_->scratch(DType::f64, 1, (rows + tile_rows - 1) / tile_rows), tile_rows};
    clear(chooser.state_memory);
    return chooser;
  }
  // The threshold below which trunc(count · sparsity) of all scores lie.
  void choose(const Chooser& chooser, const Scores& scores, double sparsity) {
    const int64_t total = scores.rows * scores.columns;
    const auto count = static_cast<int64_t>(static_cast<double>(total) * sparsity);
    if (count > 0 && count < total) {
      find_threshold(stream_, scores, static_cast<unsigned long long>(count), chooser.tile_rows, chooser.state());
      share_ties(stream_, scores, chooser.tile_rows, chooser.state(), chooser.quota());
      return;
    }
    // Every score's bits are below a key of ones, none below zero.
    check(cudaMemsetAsync(&chooser.state()->threshold, count > 0 ? 0xff : 0, sizeof(Threshold), stream_), "clearing memory");
    clear(chooser.quota_memory);
  }

  void prune_by_score(const Tensor& weight, const Tensor& mask, Scores::Kind kind, const float* factor,
                      const Selection& selection, const uint8_t* given) {
    const Scores scores{kind, weight.data<float>(), weight.rows, weight.columns, weight.columns, factor};
    auto* out = mask.data<uint8_t>();
    if (given != nullptr) {
      copy_mask(stream_, out, given, weight.size());
    } else if (selection.m > 0) {
      mask_groups(stream_, scores, selection.n, selection.m, out, weight.columns);
    } else if (kind == Scores::wanda) {
      const auto count = static_cast<int64_t>(static_cast<double>(weight.columns) * selection.sparsity);
      if (count > 0 && count < weight.columns) {
        mask_row_smallest(stream_, scores, static_cast<unsigned long long>(count), out, weight.columns);
      } else {
        check(cudaMemsetAsync(out, count > 0 ? 1 : 0, byte_size(mask), stream_), "clearing memory");
      }
    } else if (selection.sparsity > 0) {
      // The reference prunes up to the threshold at this rank, which it counts in, and weights of the same size with it.
      const Chooser chooser = make_chooser(weight.rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(weight.columns, 1)));
      const auto rank = static_cast<int64_t>(static_cast<double>(weight.size()) * selection.sparsity);
      const auto count = static_cast<unsigned long long>(std::min(rank + 1, weight.size()));
      find_threshold(stream_, scores, count, chooser.tile_rows, chooser.state());
      check(cudaMemsetAsync(chooser.quota(), 0xff, byte_size(chooser.quota_memory), stream_), "setting memory");
      mask_smallest(stream_, scores, chooser.tile_rows, chooser.state(), chooser.quota(), out, weight.columns);
    } else {
      clear(mask);
    }
    apply_mask(stream_, weight.data<float>(), out, weight.size());
  }

  // SparseGPT. Returns the partial sums of (w - q)² / U_jj².
  Tensor solve(const Tensor& weight, const Tensor& mask, const float* factor, const uint8_t* dead,
               const Selection& selection, const uint8_t* given, int64_t block_size, int bits) {
    const int64_t rows = weight.rows, columns = weight.columns;
    auto* w = weight.data<float>();
    auto* pruned = mask.data<uint8_t>();

    // Groups of up to a strip are chosen inside the sweep. Wider ones are blocks whose mask is chosen before the sweep, as are
    // unstructured blocks of more columns than one sweep takes. Neither groups nor given masks depend on the block size.
    const bool groups = given == nullptr && selection.m > 0;
    const bool inside = groups && selection.m <= sweep_strip;
    const int64_t block = std::min<int64_t>(columns, inside             ? sweep_columns / selection.m * selection.m
                                                     : groups           ? selection.m
                                                     : given != nullptr ? sweep_columns
                                                                        : std::max<int64_t>(block_size, 1));
    const Pieces pieces{columns, block, std::min<int64_t>(block, sweep_columns)};
    const bool ahead = given == nullptr && !inside && (groups || block > pieces.piece);
    const int strip = inside ? sweep_strip / selection.m * selection.m : sweep_strip;

    Tensor grid_scale, grid_zero;
    if (bits > 0) {
      grid_scale = context_->scratch(DType::f32, 1, rows);
      grid_zero = context_->scratch(DType::f32, 1, rows);
      make_grid(stream_, w, rows, columns, bits, grid_scale.data<float>(), grid_zero.data<float>());
    }
    zero_dead(stream_, w, rows, columns, dead);

    // `weight` holds the dense W right of the current piece and Q left of it; `error` the dense W, and E = W - Q left of it.
    const Tensor error = context_->scratch(DType::f32, rows, columns);
    check(cudaMemcpyAsync(error.bytes(), w, byte_size(error), cudaMemcpyDeviceToDevice, stream_), "copying");
    const int64_t packed_floats = packed_size(pieces.piece, strip);
    const Tensor inverse = context_->scratch(DType::f32, pieces.count(), pieces.piece * pieces.piece);
    const Tensor packed = context_->scratch(DType::f32, pieces.count(), packed_floats);
    const Tensor inverse_diagonal = context_->scratch(DType::f32, 1, columns);
    invert_pieces(stream_, factor, pieces, strip, inverse.data<float>(), packed.data<float>(),
                  inverse_diagonal.data<float>());
    const Tensor carried = context_->scratch(DType::f32, rows, pieces.piece);
    const int64_t tiles = (rows + sweep_rows - 1) / sweep_rows;
    const Tensor losses = zeroed(tiles);
    const Chooser chooser = make_chooser(rows, sweep_rows);
    const auto factor_block = [&](int64_t i, int64_t j) { return Operand{factor + i * columns + j, DType::f32, columns}; };

    for (int64_t begin = 0; begin < columns; begin += block) {
      const int64_t size = std::min(block, columns - begin);
      const uint8_t* chosen = given != nullptr ? given + begin : nullptr;
      if (ahead) {
        // The compensated weights of the whole block, W_B + (E R) R_BB⁻¹, for their scores only.
        const Tensor ready = context_->scratch(DType::f32, rows, size);
        if (begin > 0) {
          gemm(rows, size, begin, 1, operand(error), factor_block(0, begin), 0, ready);
          const float one = 1;
          check(cublasStrsm_64(context_->blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT,
                               size, rows, &one, factor + begin * columns + begin, columns, ready.data<float>(), size),
                "solving a triangle");
        } else {
          clear(ready);
        }
        add_matrix(stream_, ready.data<float>(), w + begin, rows, size, columns);
        const Scores scores{
            Scores::sparsegpt, ready.data<float>(), rows, size, size, inverse_diagonal.data<float>() + begin};
        if (groups) {
          mask_groups(stream_, scores, selection.n, selection.m, pruned + begin, columns);
        } else {
          choose(chooser, scores, selection.sparsity);
          mask_smallest(stream_, scores, chooser.tile_rows, chooser.state(), chooser.quota(), pruned + begin, columns);
        }
        chosen = pruned + begin;
      }

      for (int64_t at = begin; at < begin + size; at += pieces.piece) {
        const int64_t width = std::min(pieces.piece, begin + size - at);
        const int64_t index = begin / block * pieces.per_block() + (at - begin) / pieces.piece;
        Tensor piece = weight.column_range(at, width);
        // Compensate: W̃ = W + (E R) U.
        if (at > 0) {
          Tensor product = carried;
          product.columns = product.stride = width;
          gemm(rows, width, at, 1, operand(error), factor_block(0, at), 0, product);
          gemm(rows, width, width, 1, operand(product),
               Operand{inverse.data<float>() + index * pieces.piece * pieces.piece, DType::f32, pieces.piece}, 1, piece);
        }
        // Choose: the smallest w² / U_jj² over all rows.
        if (chosen == nullptr && !inside)
          choose(chooser,
                 {Scores::sparsegpt, piece.data<float>(), rows, width, columns, inverse_diagonal.data<float>() + at},
                 selection.sparsity);
        Sweep s{};
        s.rows = rows;
        s.stride = columns;
        s.size = static_cast<int>(width);
        s.weight = piece.data<float>();
        s.error = error.data<float>() + at;
        s.mask = pruned + at;
        s.chosen = chosen != nullptr ? chosen + (at - begin) : nullptr;
        s.chosen_stride = columns;
        s.packed = packed.data<float>() + index * packed_floats;
        s.strip = strip;
        s.diagonal = inverse_diagonal.data<float>() + at;
        s.n = selection.n;
        s.m = inside ? selection.m : 0;
        s.state = chooser.state();
        s.quota = chooser.quota();
        if (bits > 0) {
          s.grid_scale = grid_scale.data<float>();
          s.grid_zero = grid_zero.data<float>();
          s.grid_max = static_cast<float>((1 << bits) - 1);
        }
        s.losses = losses.data<double>();
        sweep(stream_, s);
      }
    }
    return losses;
  }

  std::shared_ptr<Context> context_;
  cudaStream_t stream_;
};

}  // namespace

Backend* create_backend() { return new CudaBackend(); }

}  // namespace sparsegpt::cuda
