// The CUDA backend against the CPU backend: every operation and solver case on random shapes, outputs poisoned first. Runs on
// the GPU where there is one, and on the emulation (cuda_emulation/) everywhere, so the kernels' logic is tested without a GPU.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>

#include "test/activations.h"
#include "test/problem.h"
#include "test/twins.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

// --- the loader -------------------------------------------------------------------------------------------------------

TEST("cuda: a missing, broken or foreign library is refused with what to do") {
  char name[] = "/tmp/sparsegpt-cuda-XXXXXX";
  const int file = mkstemp(name);
  CHECK(file >= 0 && write(file, "no library", 10) == 10);
  close(file);
  const std::string missing = std::string(name) + ".none";
  CHECK_THROWS_CODE(make_cuda_backend(missing), "DEVICE_UNAVAILABLE", "npm run build:cuda");
  CHECK_THROWS_CODE(make_cuda_backend(missing), "DEVICE_UNAVAILABLE", "is not built");
  CHECK_THROWS_CODE(make_cuda_backend(name), "DEVICE_UNAVAILABLE", "cannot be loaded");
  unlink(name);
  // Any other library, such as the C library, has no such entry; a program that is linked statically loads none.
  Dl_info libc{};
  if (dladdr(reinterpret_cast<void*>(&std::malloc), &libc) != 0)
    CHECK_THROWS_CODE(make_cuda_backend(libc.dli_fname), "DEVICE_UNAVAILABLE", "");
}

TEST("cuda: what there is, or why there is none") {
  const BackendKind& kind = cuda_kind();
  CHECK(std::string(kind.name()) == "cuda" && kind.loads_ahead() && !kind.in_host_memory());
  const Availability there_is = kind.probe();
  CHECK(there_is.devices.empty() != there_is.reason.empty());
  if (there_is.devices.empty()) CHECK_THROWS_CODE(kind.open(0, 0), "DEVICE_UNAVAILABLE", there_is.reason);
  for_every_gpu([](const std::string& name, const std::string& path) {
    const auto backend = make_cuda_backend(path);
    CHECK(!backend->in_host_memory());
    CHECK(backend->description().find(name) == 0);
  });
}

TEST("cuda: a library built from other headers is refused") {
  const std::string emulated = emulated_cuda_library();
  std::ifstream in(emulated, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (bytes.empty()) return;  // not Linux
  const std::string interface = SPARSEGPT_INTERFACE;
  const size_t at = bytes.find(interface);
  CHECK(at != std::string::npos);
  if (at == std::string::npos) return;
  bytes[at] = bytes[at] == '0' ? '1' : '0';
  char name[] = "/tmp/sparsegpt-cuda-XXXXXX";
  const int file = mkstemp(name);
  CHECK_EQUAL(write(file, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  close(file);
  CHECK_THROWS_CODE(make_cuda_backend(name), "DEVICE_UNAVAILABLE", "another version");
  CHECK_THROWS_CODE(make_cuda_backend(name), "DEVICE_UNAVAILABLE", "npm run build:cuda");
  unlink(name);
}

// --- moving and converting --------------------------------------------------------------------------------------------

TEST("cuda: cast, transpose and fill, of views and of host memory too") {
  on_every_gpu([](Both& both) {
    Random random(1);
    CHECK(!both.gpu.empty(DType::f32, 1, 1).storage->on_host());
    for (DType from : float_types) {
      for (DType to : float_types) {
        const int64_t rows = random.integer(1, 90), columns = random.integer(2, 90);
        describe_case(both.name, ", ", dtype_name(from), " to ", dtype_name(to), ", ", rows, " x ", columns);
        const Twin in = both.random(random, from, rows, columns), view = in.columns(1, columns - 1);
        const Twin out = both.output(to, rows, columns - 1), turned = both.output(to, columns - 1, rows);
        // The CPU's tensor stands for a mapped file.
        const Tensor copied = both.gpu.empty(to, rows, columns - 1), turned_copy = both.gpu.empty(to, columns - 1, rows);
        both.run([&](Backend& b, const auto& at) {
          b.run(Cast{at(out), at(view)});
          b.run(Transpose{at(turned), at(view)});
        });
        both.gpu.run([&](Backend& b) {
          b.run(Cast{copied, view.cpu});
          b.run(Transpose{turned_copy, view.cpu});
        });
        CHECK_TWIN(out, 0);
        CHECK_TWIN(turned, 0);
        CHECK_TWIN((Twin{out.cpu, copied}), 0);
        CHECK_TWIN((Twin{turned.cpu, turned_copy}), 0);
      }
    }
    const std::vector<uint8_t> mask = {1, 2, 3, 4, 5, 6};
    const Twin in = both.upload(DType::u8, 2, 3, mask.data()), out = both.empty(DType::u8, 3, 2);
    const Twin doubles = both.empty(DType::f64, 1, 3);
    both.run([&](Backend& b, const auto& at) {
      b.run(Transpose{at(out), at(in)});
      b.run(Fill{at(doubles), 0.1});
    });
    CHECK(both.gpu.read_as<uint8_t>(out.gpu) == (std::vector<uint8_t>{1, 4, 2, 5, 3, 6}));
    CHECK(both.gpu.read_as<double>(doubles.gpu) == (std::vector<double>{0.1, 0.1, 0.1}));
  });
}

TEST("cuda: copies larger than a pinned buffer, and files") {
  on_every_gpu([](Both& both) {
    Random random(2);
    constexpr int64_t rows = 1100, columns = 5000;  // 22 MB
    const auto values = random.uniforms(rows * columns);
    const Tensor t = both.gpu.floats(DType::f32, rows, columns, values);
    CHECK(both.gpu.read(t) == values);
    // A window of a mapped matrix.
    const Tensor host = both.cpu.floats(DType::f32, rows, columns, values), out = both.gpu.empty(DType::f32, rows, 4001);
    both.gpu.run([&](Backend& b) { b.run(Cast{out, host.column_range(7, 4001)}); });
    const auto window = both.gpu.read(out);
    bool same = true;
    for (int64_t i = 0; i < rows; ++i)
      same =
          same && std::equal(window.begin() + i * 4001, window.begin() + (i + 1) * 4001, values.begin() + i * columns + 7);
    CHECK(same);
    char path[] = "/tmp/sparsegpt-cuda-XXXXXX";
    const int fd = mkstemp(path);
    both.gpu.run([&](Backend& b) { b.run(WriteFile{t, fd, 100}); });
    std::vector<float> back(values.size());
    CHECK_EQUAL(pread(fd, back.data(), 4 * back.size(), 100), static_cast<ssize_t>(4 * back.size()));
    CHECK(back == values);
    close(fd);
    unlink(path);
    CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(WriteFile{t, fd, 0}); }), "WRITE_FAILED", "Bad file descriptor");
    const Tensor huge = both.gpu.empty(DType::u8, 1 << 20, 1 << 20);
    CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.upload(huge.row_range(0, 1), values.data()); }), "OUT_OF_MEMORY",
                      "bfloat16");
  });
}

TEST("cuda: the device's clock") {
  on_every_gpu([](Both& both) {
    describe_case(both.name);
    const Tensor first = both.gpu.empty(DType::f64, 1, 1), second = both.gpu.empty(DType::f64, 1, 1);
    const Tensor x = both.gpu.empty(DType::f32, 500, 700);
    double seconds = 0;
    both.gpu.run([&](Backend& b) {
      b.run(Timestamp{first});
      seconds = b.time([&] { b.run(Fill{x, 3.0}); });
      b.run(Timestamp{second});
    });
    const double start = both.gpu.read_as<double>(first)[0], end = both.gpu.read_as<double>(second)[0];
    CHECK(start >= 0 && start < 1 && end > start && end - start < 20);
    CHECK(seconds > 0 && seconds < 20);
    // What only shows when the device is waited for shows here too.
    const Tensor bad = both.gpu.floats(DType::f32, 1, 2, {1, NAN});
    CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.time([&] { b.run(CheckFinite{bad, "x"}); }); }), "NON_FINITE",
                      "x has");
  });
}

// --- forward ----------------------------------------------------------------------------------------------------------

TEST("cuda: linear layers in every type, with operands in host memory") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 0;
    for (DType x_type : float_types) {
      for (DType w_type : float_types) {
        for (DType out_type : {x_type, DType::f32, DType::bf16}) {
          Random random(++seed);
          const int64_t tokens = random.integer(1, 70), in = random.integer(1, 70), outs = random.integer(1, 70);
          describe_case(both.name, ", seed ", seed, ", ", dtype_name(x_type), " ", dtype_name(w_type), " ",
                        dtype_name(out_type));
          const Twin x = both.random(random, x_type, tokens, in + 3).columns(2, in);
          const Twin w = both.random(random, w_type, outs, in), bias = both.random(random, w_type, 1, outs);
          const Twin wide = both.output(out_type, tokens, outs + 5), window = wide.columns(3, outs);
          const Twin plain = both.output(out_type, tokens, outs);
          both.run([&](Backend& b, const auto& at) {
            b.run(Linear{at(window), at(x), at(w), at(bias)});
            b.run(Linear{at(plain), at(x), at(w), {}});
          });
          CHECK_TWIN(wide, tolerance_of(out_type));
          CHECK_TWIN(plain, tolerance_of(out_type));
          const Tensor mapped = both.gpu.empty(out_type, tokens, outs);
          both.gpu.run([&](Backend& b) { b.run(Linear{mapped, x.gpu, w.cpu, {}}); });
          CHECK(both.gpu.read(mapped) == both.gpu.read(plain.gpu));
        }
      }
    }
    const Twin x = both.output(DType::f32, 3, 4), w = both.output(DType::f32, 6, 5), out = both.output(DType::f32, 3, 6);
    CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(Linear{out.gpu, x.gpu, w.gpu, {}}); }), "INTERNAL",
                      "x float32 [3, 4] does not fit weight float32 [6, 5] (in operation)");
  });
}

TEST("cuda: elementwise operations, norms, rotary, fused projections") {
  on_every_gpu([](Both& both) {
    for (DType type : float_types) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        Random random(seed);
        const int64_t rows = 6 * random.integer(1, 9), columns = 12 * random.integer(1, 40);
        describe_case(both.name, ", ", dtype_name(type), ", ", rows, " x ", columns);
        const double tolerance = tolerance_of(type);
        const Twin y = both.random(random, seed == 2 ? DType::f32 : type, rows, columns);
        const Twin weight = both.random(random, DType::f32, 1, columns), bias = both.random(random, DType::f32, 1, columns);
        for (Activation kind : all_activations) {
          const Twin x = both.random(random, type, rows, columns + 4, -6, 6), view = x.columns(2, columns);
          both.run([&](Backend& b, const auto& at) { b.run(Activate{at(view), kind}); });
          CHECK_TWIN(x, tolerance);
          const Twin z = both.random(random, type, rows, columns, -6, 6);
          both.run([&](Backend& b, const auto& at) { b.run(Gate{at(z), at(y), kind}); });
          CHECK_TWIN(z, tolerance);
        }
        const Twin x = both.random(random, type, rows, columns, -2, 2);
        both.run([&](Backend& b, const auto& at) { b.run(Add{at(x), at(y)}); });
        CHECK_TWIN(x, tolerance);
        both.run([&](Backend& b, const auto& at) { b.run(Scale{at(x), 1.3f}); });
        CHECK_TWIN(x, 2 * tolerance);
        both.run([&](Backend& b, const auto& at) { b.run(Softcap{at(x), 1.7f}); });
        CHECK_TWIN(x, 3 * tolerance);
        const Twin normed = both.output(type, rows, columns);
        const Twin source = both.random(random, type, rows, columns, -2, 5);
        both.run([&](Backend& b, const auto& at) { b.run(LayerNorm{at(normed), at(source), at(weight), at(bias), 1e-5f}); });
        CHECK_TWIN(normed, tolerance);
        both.run([&](Backend& b, const auto& at) { b.run(RmsNorm{at(normed), at(source), at(weight), 1e-5f}); });
        CHECK_TWIN(normed, tolerance);
        for (bool interleaved : {false, true}) {
          const int64_t known = random.integer(1, 40), head_dim = 12, half = seed == 1 ? 6 : 4;
          const Twin cosine = both.random(random, DType::f32, known, half),
                     sine = both.random(random, DType::f32, known, half);
          std::vector<int32_t> values(static_cast<size_t>(rows));
          for (int32_t& position : values) position = static_cast<int32_t>(random.integer(0, known - 1));
          const Twin positions = both.ids(values);
          both.run([&](Backend& b, const auto& at) {
            b.run(Rotary{at(source), at(cosine), at(sine), at(positions), head_dim, interleaved});
          });
          CHECK_TWIN(source, 2 * tolerance);
          for (int32_t bad : {-1, static_cast<int32_t>(known)}) {
            values[3] = bad;
            const Tensor wrong = both.gpu.upload(DType::i32, 1, rows, values.data());
            CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) {
              b.run(Rotary{source.gpu, cosine.gpu, sine.gpu, wrong, head_dim, interleaved});
            }),
                              "INTERNAL", "position " + std::to_string(bad) + " of token 3");
          }
          // The GPU has rotated the rows whose positions are in the table.
          const auto rotated = both.cpu.read(source.cpu);
          both.gpu.run([&](Backend& b) { b.upload(source.gpu, encode(rotated, type).data()); });
        }
        const Twin taken = both.output(type, rows, columns / 12 * 4);
        both.run(
            [&](Backend& b, const auto& at) { b.run(TakeColumns{at(taken), at(y.cpu.dtype == type ? y : x), 3, 4, 12}); });
        CHECK_TWIN(taken, y.cpu.dtype == type ? 0 : 3 * tolerance);
        std::vector<int32_t> places(static_cast<size_t>(rows));
        std::iota(places.begin(), places.end(), 0);
        for (size_t i = places.size(); i > 1; --i)
          std::swap(places[i - 1], places[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
        places.resize(static_cast<size_t>(rows / 2));
        const Twin chosen = both.ids(places), part = both.random(random, type, rows / 2, columns);
        const Twin factors = both.random(random, DType::f32, 1, rows / 2);
        both.run([&](Backend& b, const auto& at) { b.run(ScatterAdd{at(x), at(part), at(chosen), at(factors)}); });
        CHECK_TWIN(x, 4 * tolerance);
      }
    }
  });
}

TEST("cuda: attention with shared heads, windows, soft caps and ALiBi") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 0;
    for (DType type : float_types) {
      for (int64_t head_dim : {5, 16, 64, 72, 128, 200, 256, 264, 300}) {
        Random random(++seed);
        const int64_t queries = head_dim == 16 || head_dim == 300 ? 150 : random.integer(1, 100);
        // Of the last sequences of a cache some keys are still to come.
        const int64_t start = seed % 3 == 1 ? 0 : random.integer(0, 90), keys = start + queries + (seed % 5 == 0 ? 7 : 0);
        const int64_t batch = random.integer(1, 2), kv_heads = 2, heads = kv_heads * random.integer(1, 2);
        Attention o{};
        o.sequences = batch;
        o.start = start;
        o.heads = heads;
        o.kv_heads = kv_heads;
        o.head_dim = head_dim;
        o.scale = static_cast<float>(1 / std::sqrt(head_dim));
        o.window = seed % 4 < 2 ? random.integer(1, start + queries) : 0;
        o.softcap = seed % 4 == 1 ? 2.0f : 0.0f;
        const Twin slopes = both.random(random, DType::f32, 1, heads, 0, 0.2);
        const Twin sinks = both.random(random, DType::f32, 1, heads, -2, 4);
        // Views of one fused projection, or of an odd width.
        const int64_t gap = seed % 2 == 0 ? 8 : 3, width = kv_heads * head_dim;
        const Twin q =
            both.random(random, type, batch * queries, heads * head_dim + gap, -2, 2).columns(0, heads * head_dim);
        const Twin k = both.random(random, type, batch * keys, width + gap, -2, 2).columns(gap, width);
        auto values = random.uniforms(batch * keys * (width + 2 * gap), -2, 2);
        for (int64_t s = 0; s < batch; ++s)  // what nobody sees
          for (int64_t i = s * keys + start + queries; i < (s + 1) * keys; ++i)
            std::fill_n(values.begin() + i * (width + 2 * gap), width + 2 * gap, NAN);
        const Twin v = both.floats(type, batch * keys, width + 2 * gap, values).columns(gap, width);
        const Twin out = both.output(type, batch * queries, heads * head_dim);
        describe_case(both.name, ", ", dtype_name(type), ", heads of ", head_dim, ", ", queries, " queries from ", start,
                      " of ", keys, " keys, window ", o.window, ", cap ", o.softcap);
        both.run([&](Backend& b, const auto& at) {
          Attention mine = o;
          mine.out = at(out);
          mine.q = at(q);
          mine.k = at(k);
          mine.v = at(v);
          if (seed % 2 == 1) mine.slopes = at(slopes);
          if (seed % 3 == 0) mine.sinks = at(sinks);
          b.run(mine);
        });
        CHECK_TWIN(out, type == DType::f32 ? 1e-5 : tolerance_of(type));
      }
    }
  });
}

TEST("cuda: embedding and cross entropy, of mapped tables too; ids outside the vocabulary") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 0;
    for (DType type : float_types) {
      Random random(++seed);
      describe_case(both.name, ", ", dtype_name(type));
      const int64_t words = seed == 1 ? 8500 : 300, hidden = random.integer(3, 20), tokens = random.integer(2, 20);
      const Twin table = both.random(random, type, words, hidden), bias = both.random(random, type, 1, words);
      std::vector<int32_t> values(static_cast<size_t>(tokens));
      for (int32_t& id : values) id = static_cast<int32_t>(random.integer(0, words - 1));
      values[0] = static_cast<int32_t>(words - 1);
      const Twin ids = both.ids(values);
      const Twin x = both.output(DType::f32, tokens, hidden);
      both.run([&](Backend& b, const auto& at) { b.run(Embedding{at(x), at(table), at(ids)}); });
      CHECK_TWIN(x, 0);
      const Tensor gathered = both.gpu.empty(DType::f32, tokens, hidden);
      both.gpu.run([&](Backend& b) { b.run(Embedding{gathered, table.cpu, ids.gpu}); });
      CHECK_TWIN((Twin{x.cpu, gathered}), 0);

      const Twin losses = both.output(DType::f32, 1, tokens), likeliest = both.empty(DType::i32, 1, tokens);
      for (int kind = 0; kind < 3; ++kind) {
        const Twin& input = x;
        both.run([&](Backend& b, const auto& at) {
          b.run(CrossEntropy{at(losses), at(input), at(table), kind > 0 ? at(bias) : Tensor{}, at(ids),
                             kind == 2 ? 1.5f : 0.0f, at(likeliest)});
        });
        CHECK_TWIN(losses, 2e-6);
        CHECK(both.gpu.read_as<int32_t>(likeliest.gpu) == both.cpu.read_as<int32_t>(likeliest.cpu));
      }
      const Tensor mapped = both.gpu.empty(DType::f32, 1, tokens);
      both.gpu.run([&](Backend& b) { b.run(CrossEntropy{mapped, x.gpu, table.cpu, bias.cpu, ids.gpu, 1.5f}); });
      CHECK(both.gpu.read(mapped) == both.gpu.read(losses.gpu));

      for (int32_t bad : {-1, static_cast<int32_t>(words)}) {
        values[1] = bad;
        const Tensor wrong = both.gpu.upload(DType::i32, 1, tokens, values.data());
        const std::string text = "token id " + std::to_string(bad) + " at position 1";
        CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(Embedding{x.gpu, table.gpu, wrong}); }), "INVALID_OPTION",
                          text);
        CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(Embedding{x.gpu, table.cpu, wrong}); }), "INVALID_OPTION",
                          text);
        CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(CrossEntropy{losses.gpu, x.gpu, table.gpu, {}, wrong, 0}); }),
                          "INVALID_OPTION", "token id " + std::to_string(bad) + " is outside the vocabulary");
      }
      // What was wrong is reported once.
      both.gpu.run([&](Backend& b) { b.run(Embedding{x.gpu, table.gpu, ids.gpu}); });
      CHECK_TWIN(x, 0);
    }
  });
}

// --- calibration and inspection ---------------------------------------------------------------------------------------

TEST("cuda: Gram matrix, squares and zeros") {
  on_every_gpu([](Both& both) {
    for (DType type : float_types) {
      Random random(6);
      const int64_t columns = type == DType::f32 ? 530 : random.integer(30, 90);  // more than one tile, or less
      const Twin gram = both.empty(DType::f32, columns, columns), squares = both.empty(DType::f32, 1, columns);
      both.run([&](Backend& b, const auto& at) {
        b.run(Fill{at(gram), 0.0});
        b.run(Fill{at(squares), 0.0});
      });
      for (int call = 0; call < 2; ++call) {
        const Twin x = both.random(random, type, random.integer(1, 60), columns + 2).columns(1, columns);
        both.run([&](Backend& b, const auto& at) {
          b.run(AccumulateGram{at(gram), at(x), 0.25f});
          b.run(AccumulateSquares{at(squares), at(x), 0.25f});
        });
      }
      describe_case(both.name, ", ", dtype_name(type));
      CHECK_TWIN(squares, 2e-6);
      auto expected = both.cpu.read(gram.cpu), actual = both.gpu.read(gram.gpu);
      double gap = 0, norm = 0;
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t j = i; j < columns; ++j) {
          const auto at = static_cast<size_t>(i * columns + j);
          gap += std::pow(static_cast<double>(actual[at]) - expected[at], 2);
          norm += std::pow(static_cast<double>(expected[at]), 2);
        }
      CHECK(std::sqrt(gap / norm) < 2e-6);

      const std::vector<int32_t> wanted = {2, 4, 1, 2, 4, 8, 1, 3};
      const std::vector<float> values = {0, 0, 1, 2, -0.0f, 3, 0, 4, 0, 1, 0, 1, 1, 0, 1, 0};
      const Twin patterns = both.upload(DType::i32, 4, 2, wanted.data()), t = both.floats(type, 2, 8, values);
      const Twin stats = both.empty(DType::f64, 1, 5);
      both.run([&](Backend& b, const auto& at) { b.run(CountZeros{at(stats), at(t), at(patterns)}); });
      CHECK(both.gpu.read_as<double>(stats.gpu) == (std::vector<double>{8, 1, 0, 1, 0}));
      both.gpu.run([&](Backend& b) { b.run(CountZeros{stats.gpu, t.cpu, patterns.gpu}); });
      CHECK(both.gpu.read_as<double>(stats.gpu) == both.cpu.read_as<double>(stats.cpu));
    }
  });
}

// --- pruning ----------------------------------------------------------------------------------------------------------

namespace {

int64_t differences(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return count;
}

// Factors and prunes on both devices and compares.
struct Solved {
  std::vector<float> weight;
  std::vector<uint8_t> mask;
  std::vector<double> report;
  double loss;
};
Solved solve_with(OnDevice& device, const Problem& p, const Method& method) {
  const int64_t n = p.columns;
  const Tensor w = device.floats(DType::f32, p.rows, n, p.weight), h = device.floats(DType::f32, n, n, p.hessian);
  const std::vector<uint8_t> poison(static_cast<size_t>(p.rows * n), 9);
  const Tensor mask = device.upload(DType::u8, p.rows, n, poison.data()),
               dead = device.upload(DType::u8, 1, n, poison.data());
  const Tensor report = device.empty(DType::f64, 1, factor_report::count), loss = device.empty(DType::f64, 1, 1);
  Tensor given;
  if (!method.mask.empty()) given = device.upload(DType::u8, p.rows, n, method.mask.data());
  Tensor steps, zeros;
  if (method.bits > 0) {
    steps = device.empty(method.clip ? DType::bf16 : DType::f32, p.rows, method.groups);
    zeros = device.empty(DType::f32, p.rows, method.groups);
  }
  device.run([&](Backend& b) {
    b.run(FactorHessian{h, dead, report, method.dampening});
    b.run(PruneSparsegpt{w, mask, loss, h, dead, given, method.sparsity, method.n, method.m, method.block_size, method.bits,
                         steps, zeros, method.symmetric, method.clip});
  });
  return {device.read(w), device.read_as<uint8_t>(mask), device.read_as<double>(report), device.read_as<double>(loss)[0]};
}

// float32 sums in another order may rank two nearly equal scores differently, which changes the rest of that row.
void check_solved(Both& both, const Problem& p, const Method& method, int64_t flips) {
  const Solved expected = solve_with(both.cpu, p, method), actual = solve_with(both.gpu, p, method);
  const int64_t different = differences(actual.mask, expected.mask);
  if (different > flips) {
    CHECK_EQUAL(different, flips);
  }
  double gap = 0, norm = 0;
  bool zero = true;
  for (int64_t r = 0; r < p.rows; ++r) {
    const auto begin = static_cast<size_t>(r * p.columns), end = begin + static_cast<size_t>(p.columns);
    bool same = true;
    for (size_t i = begin; i < end; ++i) {
      same = same && actual.mask[i] == expected.mask[i];
      zero = zero && (actual.mask[i] == 0 || (actual.mask[i] == 1 && actual.weight[i] == 0));
    }
    for (size_t i = begin; i < end && same; ++i) {
      gap += std::pow(static_cast<double>(actual.weight[i]) - expected.weight[i], 2);
      norm += std::pow(static_cast<double>(expected.weight[i]), 2);
    }
  }
  CHECK(zero);
  // A weight may be rounded to the neighbouring value of its grid.
  CHECK(gap <= norm * (method.bits > 0 ? 1e-2 : 1e-7) || norm == 0);
  if (expected.loss == 0) {
    CHECK_EQUAL(actual.loss, 0.0);
  } else {
    CHECK_CLOSE(actual.loss / expected.loss, 1, method.bits > 0 ? 1e-2 : 1e-3);
  }
  if (method.bits == 0)
    CHECK_EQUAL(std::count(actual.mask.begin(), actual.mask.end(), 1),
                std::count(expected.mask.begin(), expected.mask.end(), 1));
  for (size_t i = 0; i < factor_report::count; ++i) CHECK_CLOSE(actual.report[i], expected.report[i], 1e-12);
  CHECK(solve_with(both.gpu, p, method).weight == actual.weight);  // the same on every run
}

}  // namespace

TEST("cuda: SparseGPT, unstructured, blocks of any size") {
  on_every_gpu([](Both& both) {
    for (uint64_t seed = 1; seed <= (few_cases() ? 4 : 10); ++seed) {
      Random random(seed);
      const int64_t rows = random.integer(1, 100), columns = random.integer(1, few_cases() ? 150 : 300);
      Method method;
      method.sparsity = seed == 1 ? 0 : seed == 2 ? 0.999 : random.uniform(0.1, 0.9);
      method.block_size = seed <= 4 ? 128 : seed <= 6 ? random.integer(129, 400) : random.integer(1, 128);
      const auto p = random_problem(random, rows, columns, seed % 3 == 0 ? columns / 2 + 1 : 2 * columns);
      describe_case(both.name, ", seed ", seed, ", ", rows, " x ", columns, ", sparsity ", method.sparsity, ", blocks of ",
                    method.block_size);
      check_solved(both, p, method, std::max<int64_t>(2, rows * columns / 500));
    }
  });
}

TEST("cuda: SparseGPT, patterns, given masks, quantization, dead columns") {
  on_every_gpu([](Both& both) {
    struct Case {
      int n, m, bits;
      bool mask, dead;
      int64_t group = 0;  // columns with a grid of their own
    };
    const Case cases[] = {{2, 4, 0, false, false},     {4, 8, 0, false, true},      {1, 2, 0, false, false},
                          {3, 7, 0, false, false},     {9, 16, 0, false, false},    {5, 20, 0, false, false},
                          {50, 140, 0, false, false},  {0, 0, 0, true, true},       {0, 0, 4, false, false},
                          {2, 4, 3, false, false},     {0, 0, 8, true, false},      {2, 4, 4, false, false, 32},
                          {0, 0, 3, false, false, 64}, {9, 16, 4, false, false, 48}};
    uint64_t seed = 20;
    for (const Case& c : cases) {
      Random random(++seed);
      if (few_cases() && seed % 2 == 0) continue;
      const int64_t rows = random.integer(1, 80);
      const int64_t columns = c.group > 0 ? c.group * random.integer(2, 280 / c.group)
                              : c.m > 0   ? c.m * random.integer(1, 280 / c.m)
                                          : random.integer(100, 280);
      auto p = random_problem(random, rows, columns, 2 * columns);
      if (c.dead)
        for (int64_t j : {int64_t{0}, columns - 1})
          for (int64_t i = 0; i < columns; ++i)
            p.hessian[static_cast<size_t>(i * columns + j)] = p.hessian[static_cast<size_t>(j * columns + i)] = 0;
      Method method;
      method.n = c.n;
      method.m = c.m;
      method.bits = c.bits;
      if (c.group > 0) {
        method.groups = columns / c.group;
        method.symmetric = c.m > 0;
        method.clip = c.m != 4;
      }
      if (c.mask) {
        method.mask.resize(p.weight.size());
        for (uint8_t& m : method.mask) m = random.flip() ? static_cast<uint8_t>(random.integer(1, 3)) : 0;
      }
      describe_case(both.name, ", seed ", seed, ", ", rows, " x ", columns, ", ", c.n, ":", c.m, ", bits ", c.bits);
      check_solved(both, p, method, c.mask ? 0 : std::max<int64_t>(2, rows * columns / (c.bits > 0 ? 50 : 500)));
    }
  });
}

TEST("cuda: SparseGPT keeps zeros, and takes weights of any size") {
  on_every_gpu([](Both& both) {
    struct Case {
      int n, m, bits;
      int64_t block;
      bool mask;
    };
    const Case cases[] = {{0, 0, 0, 128, false}, {0, 0, 0, 200, false}, {0, 0, 4, 128, false},  {2, 4, 0, 128, false},
                          {4, 8, 0, 128, false}, {3, 7, 0, 128, false}, {9, 18, 0, 128, false}, {0, 0, 0, 128, true}};
    uint64_t seed = 60;
    for (const Case& c : cases) {
      for (const double share : {0.2, 0.7}) {
        Random random(++seed);
        const int64_t rows = random.integer(1, 80), columns = c.m > 0 ? c.m * random.integer(1, 250 / c.m) : 250;
        auto p = random_problem(random, rows, columns, 2 * columns);
        thin_out(random, p, share);
        Method method;
        method.n = c.n;
        method.m = c.m;
        method.bits = c.bits;
        method.block_size = c.block;
        if (c.mask) {
          method.mask.resize(p.weight.size());
          for (uint8_t& m : method.mask) m = random.flip() ? 1 : 0;
        }
        describe_case(both.name, ", ", c.n, ":", c.m, ", bits ", c.bits, ", blocks of ", c.block, ", ", share, " zero");
        check_solved(both, p, method, c.mask ? 0 : std::max<int64_t>(2, rows * columns / (c.bits > 0 ? 50 : 500)));
        const Solved actual = solve_with(both.gpu, p, method);
        int64_t filled = 0;
        for (size_t i = 0; i < p.weight.size(); ++i)
          filled += p.weight[i] == 0 && (actual.weight[i] != 0 || actual.mask[i] != 1);
        CHECK_EQUAL(filled, int64_t{0});
      }
    }
    for (const int exponent : {70, -70}) {
      for (const int m : {0, 4}) {
        Random random(90);
        auto p = random_problem(random, 40, 140, 300);
        for (float& w : p.weight) w = std::ldexp(w, exponent);
        Method method;
        method.n = m / 2;
        method.m = m;
        describe_case(both.name, ", 2^", exponent, ", m ", m);
        const Solved expected = solve_with(both.cpu, p, method), actual = solve_with(both.gpu, p, method);
        CHECK(differences(actual.mask, expected.mask) <= 12);
        CHECK_CLOSE(actual.loss / expected.loss, 1, 1e-2);
      }
    }
  });
}

TEST("cuda: weights that are next to nothing are no zeros: the share is exact, and they become others") {
  on_every_gpu([](Both& both) {
    for (const int m : {0, 4, 7, 8}) {
      Random random(90 + static_cast<uint64_t>(m));
      const int64_t rows = 40, columns = m > 0 ? m * (250 / m) : 250;
      auto p = random_problem(random, rows, columns, columns / 2);
      thin_out(random, p, 0.7);
      for (float& w : p.weight) w += 0x1p-120f;
      Method method;
      method.m = m;
      method.n = m / 2;
      method.sparsity = 0.8;
      describe_case(both.name, ", ", method.n, ":", m);
      for (OnDevice* device : {&both.cpu, &both.gpu}) {
        const Solved solved = solve_with(*device, p, method);
        const auto ones = std::count(solved.mask.begin(), solved.mask.end(), 1);
        CHECK_EQUAL(ones, m > 0 ? rows * columns / m * method.n : rows * 128 * 4 / 5 + rows * 122 * 4 / 5);
        int64_t grown = 0;
        for (size_t i = 0; i < p.weight.size(); ++i)
          grown += p.weight[i] == 0x1p-120f && std::fabs(solved.weight[i]) > 1e-6f;
        CHECK(grown > 0);
      }
    }
  });
}

TEST("cuda: equal scores go in the order of their index") {
  on_every_gpu([](Both& both) {
    Random random(40);
    // A diagonal Hessian of equal entries: scores are w² up to a factor, and weights have few values.
    Problem p{70, 150, random.uniforms(70 * 150), std::vector<float>(150 * 150)};
    for (float& w : p.weight) w = std::nearbyint(w * 3) / 4 + 1;
    for (size_t j = 0; j < 150; ++j) p.hessian[j * 151] = 1;
    for (const auto& [n, m, block] :
         std::vector<std::tuple<int, int, int64_t>>{{0, 0, 128}, {0, 0, 150}, {2, 6, 128}, {0, 0, 30}}) {
      Method method;
      method.sparsity = 0.43;
      method.n = n;
      method.m = m;
      method.block_size = block;
      describe_case(both.name, ", ", n, ":", m, ", blocks of ", block);
      check_solved(both, p, method, 0);
    }
    if (few_cases()) return;
    // More tiles of rows than a block of threads has threads.
    Problem tall{8400, 5, random.uniforms(8400 * 5), std::vector<float>(25)};
    for (float& w : tall.weight) w = std::nearbyint(w * 2) + 3;
    for (size_t j = 0; j < 5; ++j) tall.hessian[j * 6] = 1;
    Method method;
    method.sparsity = 0.37;
    describe_case(both.name, ", tall");
    CHECK(solve_with(both.gpu, tall, method).mask == solve_with(both.cpu, tall, method).mask);
  });
}

TEST("cuda: an indefinite Hessian is damped until it works; NaN and infinity are refused") {
  on_every_gpu([](Both& both) {
    Random random(10);
    auto p = random_problem(random, 20, 200, 70);  // singular
    double mean = 0;
    for (int64_t j = 0; j < 200; ++j) mean += p.hessian[static_cast<size_t>(j * 200 + j)] / 200;
    auto shifted = p;
    for (int64_t j = 0; j < 200; ++j) shifted.hessian[static_cast<size_t>(j * 201)] -= static_cast<float>(0.05 * mean);
    describe_case(both.name);
    check_solved(both, shifted, {}, 24);
    auto negative = p;
    for (float& h : negative.hessian) h = -h;
    CHECK_THROWS_CODE(solve_with(both.gpu, negative, {}), "NOT_POSITIVE_DEFINITE", "even with dampening 10");
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      auto broken = p;
      broken.weight[17 * 200 + 199] = bad;
      CHECK_THROWS_CODE(solve_with(both.gpu, broken, {}), "NON_FINITE", "row 17 (in pruneSparsegpt)");
      broken = p;
      broken.hessian[3 * 200 + 199] = bad;
      CHECK_THROWS_CODE(solve_with(both.gpu, broken, {}), "NON_FINITE", "the Hessian has a NaN or infinite entry in row 3");
    }
    Method method;
    method.n = 2;
    method.m = 3;
    CHECK_THROWS_CODE(solve_with(both.gpu, p, method), "INVALID_OPTION", "2:3");
  });
}

TEST("cuda: products with the factor of a Hessian and its inverse") {
  on_every_gpu([](Both& both) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      Random random(seed);
      const int64_t rows = random.integer(1, 50), n = random.integer(1, 150);
      const auto p = random_problem(random, 1, n, 3 * n);
      const Twin h = both.floats(DType::f32, n, n, p.hessian), dead = both.empty(DType::u8, 1, n);
      const Twin report = both.empty(DType::f64, 1, factor_report::count), x = both.random(random, DType::f32, rows, n);
      both.run([&](Backend& b, const auto& at) { b.run(FactorHessian{at(h), at(dead), at(report), 0.01}); });
      for (bool inverse : {false, true}) {
        for (bool transposed : {false, true}) {
          describe_case(both.name, ", ", rows, " x ", n, inverse ? ", inverse" : "", transposed ? ", transposed" : "");
          const Twin out = both.output(DType::f32, rows, n), back = both.output(DType::f32, rows, n);
          both.run([&](Backend& b, const auto& at) {
            b.run(TriangularProduct{at(out), at(x), at(h), inverse, transposed});
            b.run(TriangularProduct{at(back), at(out), at(h), !inverse, transposed});
          });
          CHECK_TWIN(out, 1e-4);
          CHECK_TWIN((Twin{x.cpu, back.gpu}), 1e-4);
        }
      }
    }
  });
}

TEST("cuda: sums of products, Gram matrices of unit diagonal, scaled columns, marked zeros") {
  on_every_gpu([](Both& both) {
    for (DType type : float_types) {
      Random random(16);
      const int64_t in = random.integer(20, 90), out = random.integer(20, 90);
      const Twin sums = both.random(random, DType::f32, in, out);
      const Twin x = both.random(random, type, 37, in + 2).columns(1, in), y = both.random(random, type, 37, out);
      both.run([&](Backend& b, const auto& at) { b.run(AccumulateProduct{at(sums), at(x), at(y), 0.25f}); });
      describe_case(both.name, ", ", dtype_name(type));
      CHECK_TWIN(sums, 2e-6);
    }
    Random random(17);
    const int64_t n = 70;
    auto p = random_problem(random, 5, n, 3 * n);
    for (int64_t j = 0; j < n; ++j)
      p.hessian[static_cast<size_t>(4 * n + j)] = p.hessian[static_cast<size_t>(j * n + 4)] = 0;
    const Twin gram = both.floats(DType::f32, n, n, p.hessian), norms = both.output(DType::f32, 1, n);
    both.run([&](Backend& b, const auto& at) { b.run(NormalizeGram{at(gram), at(norms)}); });
    CHECK_TWIN(norms, 2e-6);
    CHECK_TWIN(gram, 2e-6);
    const auto unit = both.gpu.read(gram.gpu), lengths = both.gpu.read(norms.gpu);
    for (int64_t i = 0; i < n; ++i) {
      CHECK_EQUAL(unit[static_cast<size_t>(i * n + i)], i == 4 ? 0.0f : 1.0f);
      const double expected = i == 4 ? 0
                                     : p.hessian[static_cast<size_t>(i * n + n - 1)] /
                                           std::sqrt(static_cast<double>(p.hessian[static_cast<size_t>(i * n + i)]) *
                                                     p.hessian[static_cast<size_t>(n * n - 1)]);
      CHECK_CLOSE(unit[static_cast<size_t>(i * n + n - 1)], expected, 1e-6);
    }
    const Twin w = both.floats(DType::f32, 5, n, p.weight), mask = both.empty(DType::u8, 5, n);
    both.run([&](Backend& b, const auto& at) { b.run(ScaleColumns{at(w), at(norms), false}); });
    CHECK_TWIN(w, 2e-6);
    CHECK_CLOSE(both.gpu.read(w.gpu)[7], p.weight[7] * lengths[7], 1e-6);
    both.run([&](Backend& b, const auto& at) {
      b.run(MarkZeros{at(mask), at(w)});
      b.run(ScaleColumns{at(w), at(norms), true});
    });
    CHECK_TWIN(w, 2e-6);
    const auto zeros = both.gpu.read_as<uint8_t>(mask.gpu), expected = both.cpu.read_as<uint8_t>(mask.cpu);
    CHECK(zeros == expected);
    for (size_t i = 0; i < zeros.size(); ++i)
      CHECK_EQUAL(static_cast<int>(zeros[i]), i % static_cast<size_t>(n) == 4 || p.weight[i] == 0 ? 1 : 0);
  });
}

// The normal equations over the entries that are left, by Gaussian elimination in double.
std::vector<double> solve_left(const std::vector<double>& a, std::vector<double> right, const uint8_t* mask, int64_t n) {
  std::vector<size_t> kept;
  for (int64_t j = 0; j < n; ++j)
    if (mask[j] == 0) kept.push_back(static_cast<size_t>(j));
  const size_t m = kept.size();
  std::vector<double> matrix(m * m), result(static_cast<size_t>(n), 0), b(m);
  for (size_t i = 0; i < m; ++i) {
    b[i] = right[kept[i]];
    for (size_t j = 0; j < m; ++j) matrix[i * m + j] = a[kept[i] * static_cast<size_t>(n) + kept[j]];
  }
  for (size_t k = 0; k < m; ++k)
    for (size_t i = k + 1; i < m; ++i) {
      const double f = matrix[i * m + k] / matrix[k * m + k];
      for (size_t j = k; j < m; ++j) matrix[i * m + j] -= f * matrix[k * m + j];
      b[i] -= f * b[k];
    }
  for (size_t k = m; k-- > 0;) {
    for (size_t j = k + 1; j < m; ++j) b[k] -= matrix[k * m + j] * b[j];
    b[k] /= matrix[k * m + k];
    result[kept[k]] = b[k];
  }
  return result;
}

TEST("cuda: conjugate gradients solve the normal equations of the kept weights") {
  on_every_gpu([](Both& both) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Random random(seed);
      const int64_t rows = random.integer(1, 40), n = seed == 4 ? 300 : random.integer(2, 140);
      auto p = random_problem(random, rows, n, 3 * n);
      std::vector<uint8_t> mask(static_cast<size_t>(rows * n));
      std::vector<float> start = p.weight;
      for (size_t i = 0; i < mask.size(); ++i) {
        mask[i] = random.uniform(0, 1) < 0.5 || i < static_cast<size_t>(n) / 2;
        if (mask[i] != 0) start[i] = 0;
      }
      const Twin h = both.floats(DType::f32, n, n, p.hessian), norms = both.empty(DType::f32, 1, n);
      const Twin dead = both.empty(DType::u8, 1, n), factored = both.empty(DType::f64, 1, factor_report::count);
      both.run([&](Backend& b, const auto& at) { b.run(NormalizeGram{at(h), at(norms)}); });
      const auto unit = both.cpu.read(h.cpu);
      std::vector<double> a(static_cast<size_t>(n * n));
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
          a[static_cast<size_t>(i * n + j)] =
              unit[static_cast<size_t>(std::min(i, j) * n + std::max(i, j))] + (i == j ? 0.05 : 0);
      // b = w A for the weight as it was: what is kept makes up for what is gone.
      std::vector<float> residual(static_cast<size_t>(rows * n));
      std::vector<double> expected;
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<double> b(static_cast<size_t>(n), 0);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < n; ++j) {
            const auto at = static_cast<size_t>(i * n + j), k = static_cast<size_t>(r * n + i);
            b[static_cast<size_t>(j)] += p.weight[k] * a[at];
            residual[static_cast<size_t>(r * n + j)] += static_cast<float>((p.weight[k] - start[k]) * a[at]);
          }
        const auto row = solve_left(a, b, mask.data() + r * n, n);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      const Twin w = both.floats(DType::f32, rows, n, start), left = both.floats(DType::f32, rows, n, residual);
      const Twin gone = both.upload(DType::u8, rows, n, mask.data());
      const Twin report = both.empty(DType::f64, 1, descent_report::count);
      both.run([&](Backend& b, const auto& at) {
        b.run(FactorHessian{at(h), at(dead), at(factored), 0.05});
        b.run(ConjugateGradients{at(w), at(left), at(gone), at(h), at(report), 1e-5, 500});
      });
      describe_case(both.name, ", ", rows, " x ", n);
      for (const auto& values : {both.cpu.read(w.cpu), both.gpu.read(w.gpu)}) {
        double gap = 0, norm = 0;
        for (size_t i = 0; i < values.size(); ++i) {
          gap += std::pow(values[i] - expected[i], 2);
          norm += std::pow(expected[i], 2);
          if (mask[i] != 0) CHECK_EQUAL(values[i], 0.0f);
        }
        CHECK(std::sqrt(gap) <= 1e-4 * std::sqrt(norm));
      }
      const auto told = both.gpu.read_as<double>(report.gpu);
      CHECK(told[descent_report::iterations] > 1 && told[descent_report::iterations] < 200);
      CHECK(told[descent_report::residual] <= 1e-5);
      CHECK_CLOSE(told[descent_report::iterations], both.cpu.read_as<double>(report.cpu)[descent_report::iterations], 2);
    }
  });
}

TEST("cuda: scores and masks are exactly those of the CPU") {
  on_every_gpu([](Both& both) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      Random random(seed);
      // The last case has a tile for each row.
      const int64_t rows = random.integer(1, seed == 6 ? 9 : 60), columns = seed == 6 ? 9000 : 4 * random.integer(1, 200);
      const auto distinct = random.uniforms(rows * columns);
      auto values = distinct;
      for (float& value : values) value = std::nearbyint(value * 50) / 50 + 0.001f;  // with ties
      const Twin squares = both.random(random, DType::f32, 1, columns, 0, 4);
      std::vector<uint8_t> poison(values.size(), 9);
      const Twin scores = both.output(DType::f32, rows, columns);
      struct Case {
        double sparsity;
        int n, m;
        bool by_row, inclusive;
      };
      std::vector<Case> cases = {{0, 2, 4, false, false}};
      for (double sparsity : {0.0, 0.37, 0.9999, 1.0})
        for (const auto& [by_row, inclusive] : {std::pair{false, false}, {true, false}, {false, true}})
          cases.push_back({sparsity, 0, 0, by_row, inclusive});
      for (const Case& c : cases) {
        for (bool wanda : {false, true}) {
          describe_case(both.name, ", seed ", seed, wanda ? ", wanda" : "", ", ", rows, " x ", columns, ", sparsity ",
                        c.sparsity, c.m > 0 ? ", groups" : "", c.by_row ? ", by row" : "", c.inclusive ? ", inclusive" : "");
          // Which of equal scores in a group of m goes is each backend's own choice.
          const Twin w = both.floats(DType::f32, rows, columns, c.m > 0 ? distinct : values);
          const Twin mask = both.upload(DType::u8, rows, columns, poison.data());
          both.run([&](Backend& b, const auto& at) {
            if (wanda) b.run(Scores{at(scores), at(w), at(squares)});
            b.run(SelectMask{at(mask), at(wanda ? scores : w), c.sparsity, c.n, c.m, c.by_row, c.inclusive});
            b.run(ApplyMask{at(w), at(mask)});
          });
          if (wanda) CHECK_TWIN(scores, 0);
          const auto chosen = both.gpu.read_as<uint8_t>(mask.gpu);
          CHECK(chosen == both.cpu.read_as<uint8_t>(mask.cpu));
          CHECK(both.gpu.read(w.gpu) == both.cpu.read(w.cpu));
          const auto count = std::count(chosen.begin(), chosen.end(), 1);
          if (c.m == 0 && !c.by_row && !c.inclusive)
            CHECK_EQUAL(count, static_cast<int64_t>(static_cast<double>(values.size()) * c.sparsity));
        }
      }
    }
    describe_case(both.name);
    // Of equal ones the leftmost; any value but zero is a mask's 1.
    const Tensor w = both.gpu.floats(DType::f32, 1, 8, {1, -1, 1, 1, -2, 3, 2, 2}), mask = both.gpu.empty(DType::u8, 1, 8);
    both.gpu.run([&](Backend& b) { b.run(SelectMask{mask, w, 0, 2, 4, false, false}); });
    CHECK(both.gpu.read_as<uint8_t>(mask) == (std::vector<uint8_t>{1, 1, 0, 0, 1, 0, 1, 0}));
    const std::vector<uint8_t> given = {0, 1, 2, 255, 0, 0, 0, 1};
    both.gpu.run([&](Backend& b) { b.run(ApplyMask{w, both.cpu.upload(DType::u8, 1, 8, given.data())}); });
    CHECK(both.gpu.read(w) == (std::vector<float>{1, 0, 0, 0, -2, 3, 2, 0}));
    CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(SelectMask{mask, w, 0, 2, 3, false, false}); }), "INVALID_OPTION",
                      "2:3");
  });
}

TEST("cuda: NaN and infinity are found in the first row that has them") {
  on_every_gpu([](Both& both) {
    describe_case(both.name);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> values(7 * 300, 1.0f);
      values[5 * 300 + 299] = values[6 * 300] = bad;
      const Twin x = both.floats(DType::f32, 7, 300, values);
      for (const Tensor& t : {x.gpu, x.cpu})
        CHECK_THROWS_CODE(both.gpu.run([&](Backend& b) { b.run(CheckFinite{t, "the weight"}); }), "NON_FINITE",
                          "the weight has a NaN or infinite entry in row 5 (in checkFinite)");
      both.gpu.run([&](Backend& b) { b.run(CheckFinite{x.gpu.row_range(0, 5), "the weight"}); });
    }
  });
}
