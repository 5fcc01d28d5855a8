// Speed of the CPU backend as a share of what this processor can do at most, which is measured beside every line.
//
//   sparsegpt_cpu_bench [TABLE...] [--threads N] [--repeats N] [--clock wall|processor] [--large]
//
// Tables: gemm, linear, sparse, gram, solver, attention, rows; all of them when none is named. --large adds the solver's 7B sizes.
// A line gives the median of the repeats; every repeat is preceded by a run of the peak loop, so that a busy machine slows
// both. `--clock processor` counts the processor time that the process got instead of the time on the wall.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/peak.h"

namespace sparsegpt {
namespace {

struct Options {
  std::vector<std::string> tables;
  int threads = 0;
  int repeats = 5;
  bool processor_clock = false;
  bool large = false;
};
Options options;

double now() {
  timespec t;
  clock_gettime(options.processor_clock ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  const double seconds = static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  return options.processor_clock ? seconds / options.threads : seconds;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// FLOP/s of the peak loop, on the bench's clock.
double peak_once(ThreadPool& pool, DType dtype) {
  const double start = now(), flop = cpu::multiply_adds(pool, dtype);
  return flop / (now() - start);
}

// --- a line of a table -------------------------------------------------------------------------------------------------

class Bench {
 public:
  Bench() : pool(options.threads), backend(make_cpu_backend(options.threads)) {}

  void title(const char* text) { std::printf("\n%-44s %10s %10s %8s\n", text, "ms", "GFLOP/s", "of peak"); }

  // Times body(), which does `flop` operations on elements of the type; prepare() runs before each, untimed.
  void line(const std::string& name, DType dtype, double flop, const std::function<void()>& body,
            const std::function<void()>& prepare = nullptr) {
    std::vector<double> seconds, peaks;
    for (int repeat = -1; repeat < options.repeats; ++repeat) {  // the first one warms up
      if (prepare) prepare();
      const double peak = peak_once(pool, dtype), start = now();
      body();
      if (repeat < 0) continue;
      seconds.push_back(now() - start);
      peaks.push_back(peak);
    }
    const double time = median(seconds), rate = flop / time;
    std::printf("%-44s %10.2f %10.1f %7.1f%%\n", name.c_str(), 1e3 * time, 1e-9 * rate, 100 * rate / median(peaks));
    std::fflush(stdout);
  }

  // As line(), for what memory bounds: counts bytes instead of FLOP.
  void bandwidth(const std::string& name, double bytes, const std::function<void()>& body) {
    std::vector<double> seconds;
    for (int repeat = -1; repeat < options.repeats; ++repeat) {
      const double start = now();
      body();
      if (repeat >= 0) seconds.push_back(now() - start);
    }
    std::printf("%-44s %10.2f %10.1f\n", name.c_str(), 1e3 * median(seconds), 1e-9 * bytes / median(seconds));
    std::fflush(stdout);
  }

  Tensor empty(DType dtype, int64_t rows, int64_t columns) {
    return {backend->allocate(static_cast<size_t>(rows * columns) * dtype_size(dtype)), dtype, rows, columns, columns, 0};
  }

  // Uniform in [-1, 1).
  Tensor random(DType dtype, int64_t rows, int64_t columns) {
    const Tensor values = empty(DType::f32, rows, columns);
    float* data = values.data<float>();
    for (int64_t i = 0; i < values.size(); ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      data[i] = static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
    }
    if (dtype == DType::f32) return values;
    const Tensor out = empty(dtype, rows, columns);
    backend->run(Cast{out, values});
    return out;
  }

  ThreadPool pool;
  std::unique_ptr<Backend> backend;

 private:
  uint64_t state_ = 1;
};

std::string shape_text(DType dtype, std::initializer_list<int64_t> sizes, const char* tail = "") {
  std::string text = dtype_name(dtype);
  char separator = ' ';
  for (int64_t size : sizes) {
    text += (separator == ' ' ? "  " : " x ") + std::to_string(size);
    separator = 'x';
  }
  return text + tail;
}

constexpr DType both[] = {DType::f32, DType::bf16};

struct Product {
  int64_t tokens, in, out;
};

// x Wᵀ, [tokens, in] · [in, out], with inputs, weights and outputs of one type.
void linear_table(Bench& bench, const char* title, const std::vector<Product>& products) {
  bench.title(title);
  for (DType dtype : both) {
    for (const auto& [tokens, in, out] : products) {
      const Tensor x = bench.random(dtype, tokens, in), w = bench.random(dtype, out, in);
      const Tensor y = bench.empty(dtype, tokens, out);
      bench.line(shape_text(dtype, {tokens, in, out}), dtype, 2.0 * static_cast<double>(tokens * in * out),
                 [&] { bench.backend->run(Linear{y, x, w, {}}); });
    }
  }
}

// The same after pruning; of the FLOP of the dense product.
void sparse_table(Bench& bench) {
  bench.title("pruned linear layer  tokens x in x out");
  for (DType dtype : both) {
    for (const bool pattern : {true, false}) {
      for (const auto& [tokens, in, out] :
           {Product{4096, 576, 576}, {4096, 576, 1536}, {4096, 1536, 576}, {2048, 3072, 768}, {2048, 4096, 4096}}) {
        const Tensor x = bench.random(dtype, tokens, in), dense = bench.random(DType::f32, out, in);
        const Tensor y = bench.empty(dtype, tokens, out), w = bench.empty(dtype, out, in);
        const Tensor mask = bench.empty(DType::u8, out, in);
        bench.backend->run(SelectMask{mask, dense, 0.5, pattern ? 2 : 0, pattern ? 4 : 0, false, false});
        bench.backend->run(ApplyMask{dense, mask});
        bench.backend->run(Cast{w, dense});
        bench.line(shape_text(dtype, {tokens, in, out}, pattern ? "  2:4" : "  50 %"), dtype,
                   2.0 * static_cast<double>(tokens * in * out), [&] { bench.backend->run(Linear{y, x, w, {}}); });
      }
    }
  }
}

void gram_table(Bench& bench) {
  bench.title("Gram matrix  tokens x in (upper triangle)");
  for (DType dtype : both) {
    for (const auto& [tokens, in] : {std::pair<int64_t, int64_t>{4096, 576}, {4096, 1536}, {2048, 768}, {2048, 4096}}) {
      const Tensor x = bench.random(dtype, tokens, in), gram = bench.empty(DType::f32, in, in);
      bench.backend->run(Fill{gram, 0});
      bench.line(shape_text(dtype, {tokens, in}), dtype, static_cast<double>(tokens * in * (in + 1)),
                 [&] { bench.backend->run(AccumulateGram{gram, x, 0.25f}); });
    }
  }
}

void solver_table(Bench& bench) {
  bench.title("solver  rows x columns (n³/3 + rows·n² FLOP)");
  std::vector<std::pair<int64_t, int64_t>> sizes = {{768, 768}, {3072, 768}, {768, 3072}, {2048, 2048}, {4096, 4096}};
  if (options.large) sizes.insert(sizes.end(), {{11008, 4096}, {4096, 11008}});
  for (const auto& [rows, columns] : sizes) {
    const Tensor dense = bench.random(DType::f32, rows, columns), weight = bench.empty(DType::f32, rows, columns);
    const Tensor gram = bench.empty(DType::f32, columns, columns), factor = bench.empty(DType::f32, columns, columns);
    bench.backend->run(Fill{gram, 0});
    {
      const Tensor x = bench.random(DType::f32, 2 * columns, columns);
      bench.backend->run(AccumulateGram{gram, x, 1.0f / static_cast<float>(columns)});
    }
    const Tensor mask = bench.empty(DType::u8, rows, columns), dead = bench.empty(DType::u8, 1, columns);
    const Tensor report = bench.empty(DType::f64, 1, factor_report::count), loss = bench.empty(DType::f64, 1, 1);
    struct Case {
      const char* name;
      int n, m, bits;
    };
    for (const Case& c :
         {Case{"", 0, 0, -1}, {" 50 %", 0, 0, 0}, {" 2:4", 2, 4, 0}, {" 4:8", 4, 8, 0}, {" 50 % + 4 bit", 0, 0, 4}}) {
      const auto n = static_cast<double>(columns);
      const bool factor_only = c.bits < 0;
      bench.line(
          shape_text(DType::f32, {rows, columns}, factor_only ? "  factorisation alone" : c.name), DType::f32,
          n * n * n / 3 + (factor_only ? 0 : static_cast<double>(rows) * n * n),
          [&] {
            bench.backend->run(FactorHessian{factor, dead, report, 0.01});
            if (factor_only) return;
            bench.backend->run(PruneSparsegpt{weight, mask, loss, factor, dead, {}, 0.5, c.n, c.m, 128, c.bits});
          },
          [&] {
            std::memcpy(factor.bytes(), gram.bytes(), static_cast<size_t>(columns * columns) * 4);
            std::memcpy(weight.bytes(), dense.bytes(), static_cast<size_t>(rows * columns) * 4);
          });
    }
  }
}

void attention_table(Bench& bench) {
  bench.title("causal attention  sequences x length, heads/kv x dim");
  struct Case {
    int64_t sequences, length, heads, kv_heads, head_dim;
  };
  for (DType dtype : both) {
    for (const Case& c : {Case{8, 512, 9, 3, 64}, {2, 2048, 12, 12, 64}, {1, 2048, 32, 8, 128}}) {
      const int64_t tokens = c.sequences * c.length;
      const Tensor q = bench.random(dtype, tokens, c.heads * c.head_dim),
                   out = bench.empty(dtype, tokens, c.heads * c.head_dim);
      const Tensor k = bench.random(dtype, tokens, c.kv_heads * c.head_dim),
                   v = bench.random(dtype, tokens, c.kv_heads * c.head_dim);
      const Attention attention{out,     q,          k,           v,
                                {},      {},         c.sequences, 0,
                                c.heads, c.kv_heads, c.head_dim,  1 / std::sqrt(static_cast<float>(c.head_dim)),
                                0,       0};
      // Two products over half of the [length, length] scores.
      const double flop = 2.0 * static_cast<double>(tokens * (c.length + 1) * c.heads * c.head_dim);
      const std::string heads =
          ", " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " x " + std::to_string(c.head_dim);
      bench.line(shape_text(dtype, {c.sequences, c.length}, heads.c_str()), dtype, flop,
                 [&] { bench.backend->run(attention); });
    }
  }
}

void rows_table(Bench& bench) {
  std::printf("\n%-44s %10s %10s\n", "row operations  tokens x features", "ms", "GB/s");
  constexpr int64_t tokens = 4096, features = 1536;
  for (DType dtype : both) {
    const Tensor x = bench.random(dtype, tokens, features), y = bench.random(dtype, tokens, features);
    const Tensor weight = bench.random(DType::f32, 1, features), bias = bench.random(DType::f32, 1, features);
    const auto bytes = static_cast<double>(tokens * features) * static_cast<double>(dtype_size(dtype));
    const auto name = [&](const char* operation) { return shape_text(dtype, {tokens, features}) + "  " + operation; };
    bench.bandwidth(name("RMS norm"), 2 * bytes, [&] { bench.backend->run(RmsNorm{y, x, weight, 1e-5f}); });
    bench.bandwidth(name("layer norm"), 2 * bytes, [&] { bench.backend->run(LayerNorm{y, x, weight, bias, 1e-5f}); });
    bench.bandwidth(name("gate, SiLU"), 3 * bytes, [&] { bench.backend->run(Gate{x, y, Activation::silu}); });
    bench.bandwidth(name("GELU (tanh)"), 2 * bytes, [&] { bench.backend->run(Activate{x, Activation::gelu_tanh}); });
    bench.bandwidth(name("GELU (erf)"), 2 * bytes, [&] { bench.backend->run(Activate{x, Activation::gelu}); });
    bench.bandwidth(name("add"), 3 * bytes, [&] { bench.backend->run(Add{x, y}); });
  }
}

struct Table {
  const char* name;
  void (*run)(Bench&);
};
const Table tables[] = {
    {"gemm",
     [](Bench& bench) {
       linear_table(bench, "matrix product  m x k x n",
                    {{2048, 2048, 2048}, {4096, 4096, 128}, {128, 4096, 4096}, {16, 4096, 4096}, {1000, 999, 1001}});
     }},
    {"linear",
     [](Bench& bench) {
       linear_table(bench, "linear layer  tokens x in x out",
                    {{4096, 576, 576},
                     {4096, 576, 192},
                     {4096, 576, 1536},
                     {4096, 1536, 576},
                     {2048, 768, 3072},
                     {2048, 3072, 768},
                     {2048, 4096, 4096}});
     }},
    {"sparse", sparse_table},
    {"gram", gram_table},
    {"solver", solver_table},
    {"attention", attention_table},
    {"rows", rows_table},
};

[[noreturn]] void usage(const std::string& problem) {
  std::fprintf(
      stderr,
      "%s\nusage: sparsegpt_cpu_bench [gemm|linear|sparse|gram|solver|attention|rows]... [--threads N] [--repeats N] "
      "[--clock wall|processor] [--large]\n",
      problem.c_str());
  std::exit(2);
}

void parse(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) usage(argument + " needs a value");
      return argv[++i];
    };
    const auto number = [&] {
      const int n = std::atoi(value().c_str());
      if (n < 1) usage(argument + " needs a number from 1");
      return n;
    };
    if (argument == "--threads") {
      options.threads = number();
    } else if (argument == "--repeats") {
      options.repeats = number();
    } else if (argument == "--clock") {
      const std::string clock = value();
      if (clock != "wall" && clock != "processor") usage("--clock is wall or processor");
      options.processor_clock = clock == "processor";
    } else if (argument == "--large") {
      options.large = true;
    } else if (std::any_of(std::begin(tables), std::end(tables), [&](const Table& t) { return argument == t.name; })) {
      options.tables.push_back(argument);
    } else {
      usage("unknown argument " + argument);
    }
  }
  options.threads = thread_count(options.threads);
}

}  // namespace
}  // namespace sparsegpt

int main(int argc, char** argv) {
  using namespace sparsegpt;
  parse(argc, argv);
  Bench bench;
  std::printf("%s\n", bench.backend->description().c_str());
  for (DType dtype : both) {
    std::vector<double> peaks;
    for (int repeat = 0; repeat < 5; ++repeat) peaks.push_back(peak_once(bench.pool, dtype));
    std::printf("peak, %s: %.1f GFLOP/s\n", dtype_name(dtype), 1e-9 * median(peaks));
  }
  for (const Table& table : tables)
    if (options.tables.empty() ||
        std::find(options.tables.begin(), options.tables.end(), table.name) != options.tables.end())
      table.run(bench);
}
