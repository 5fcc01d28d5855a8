// How the CUDA backend moves data between the host and the device: what is copied while kernels run, in which order, and what is
// said when it fails or memory is short.
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "core/spill_file.h"
#include "test/cuda_devices.h"
#include "test/on_device.h"
#include "test/problem.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// Stands for a mapped file, whose pages come when the test lets them.
class SlowFile : public Storage {
 public:
  explicit SlowFile(const std::vector<float>& values, DType dtype = DType::f32, bool open = false)
      : bytes_(encode(values, dtype)), open_(open) {}
  std::byte* data() override {
    std::unique_lock<std::mutex> lock(mutex_);
    touched_ = true;
    changed_.notify_all();
    // A test that would wait for ever fails instead.
    in_time_ = changed_.wait_for(lock, std::chrono::seconds(20), [this] { return open_; }) && in_time_;
    return reinterpret_cast<std::byte*>(bytes_.data());
  }
  size_t size() const override { return bytes_.size(); }
  bool read_only() const override { return true; }
  void release_pages(size_t, size_t) override {
    std::lock_guard<std::mutex> lock(mutex_);
    read_ = true;
    changed_.notify_all();
  }

  void open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool touched() { return wait_for(touched_, 0); }
  bool wait_until_touched() { return wait_for(touched_, 20); }
  // All of it has been read.
  bool wait_until_read() { return wait_for(read_, 20); }
  bool in_time() {
    std::lock_guard<std::mutex> lock(mutex_);
    return in_time_;
  }

 private:
  bool wait_for(const bool& flag, int seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(seconds), [&] { return flag; });
  }

  std::vector<char> bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_, touched_ = false, read_ = false, in_time_ = true;
};

struct File {
  std::shared_ptr<SlowFile> file;
  Tensor tensor;
};
File slow_file(DType dtype, int64_t rows, int64_t columns, const std::vector<float>& values, bool open = false) {
  auto file = std::make_shared<SlowFile>(values, dtype, open);
  return {file, {file, dtype, rows, columns, columns, 0}};
}

std::vector<float> plus(std::vector<float> values, const std::vector<float>& others) {
  for (size_t i = 0; i < values.size(); ++i) values[i] += others[i];
  return values;
}

}  // namespace

TEST("cuda memory: a mapped tensor is loaded while other operations run, and waited for by who uses it") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    describe_case(name);
    OnDevice gpu(make_cuda_backend(path));
    Random random(1);
    const auto values = random.uniforms(700), others = random.uniforms(700);
    const File slow = slow_file(DType::f32, 70, 10, values), ready = slow_file(DType::f32, 10, 70, others, true);
    const Tensor first = gpu.empty(DType::f32, 70, 10), second = gpu.empty(DType::f32, 70, 10);
    gpu.run([&](Backend& b) { b.run(Cast{first, slow.tensor}); });
    CHECK(slow.file->wait_until_touched());
    // Neither this nor a load that is needed at once waits for the one that is under way.
    const Tensor uploaded = gpu.floats(DType::f32, 70, 10, values);
    gpu.run([&](Backend& b) {
      b.run(Transpose{second, ready.tensor});
      b.run(Add{uploaded, second});
    });
    CHECK(gpu.read(uploaded)[12] == values[12] + others[2 * 70 + 1]);
    CHECK(slow.file->in_time());
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      slow.file->open();
    });
    CHECK(gpu.read(first) == values);
    later.join();
    CHECK(slow.file->in_time());
  });
}

TEST("cuda memory: a load that nobody wants any more is left out") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    describe_case(name);
    OnDevice gpu(make_cuda_backend(path));
    const std::vector<float> values = {1, 2, 3};
    const File slow = slow_file(DType::f32, 1, 3, values), dropped = slow_file(DType::f32, 1, 3, values, true),
               last = slow_file(DType::f32, 1, 3, values, true);
    Tensor first = gpu.empty(DType::f32, 1, 3), second = gpu.empty(DType::f32, 1, 3), third = gpu.empty(DType::f32, 1, 3);
    gpu.run([&](Backend& b) { b.run(Cast{first, slow.tensor}); });
    CHECK(slow.file->wait_until_touched());
    gpu.run([&](Backend& b) {
      b.run(Cast{second, dropped.tensor});
      b.run(Cast{third, last.tensor});
    });
    first = second = {};
    slow.file->open();
    CHECK(last.file->wait_until_read());
    CHECK(!dropped.file->touched());
    CHECK(gpu.read(third) == values);
  });
  // A device that goes away does not wait for what is left.
  for_every_gpu([](const std::string& name, const std::string& path) {
    describe_case(name);
    const File slow = slow_file(DType::f32, 1, 3, {1, 2, 3}), left = slow_file(DType::f32, 1, 3, {1, 2, 3}, true);
    Tensor first, second;
    {
      OnDevice gpu(make_cuda_backend(path));
      first = gpu.empty(DType::f32, 1, 3);
      second = gpu.empty(DType::f32, 1, 3);
      gpu.run([&](Backend& b) { b.run(Cast{first, slow.tensor}); });
      CHECK(slow.file->wait_until_touched());
      gpu.run([&](Backend& b) { b.run(Cast{second, left.tensor}); });
      slow.file->open();
    }
    first = second = {};
  });
}

TEST("cuda memory: kernels wait for loads, loads for those that have used the memory") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice gpu(make_cuda_backend(path));
    Random random(2);
    for (int round = 0; round < 60; ++round) {
      constexpr int64_t rows = 30, columns = 40;
      const DType from = round % 3 == 1 ? DType::bf16 : DType::f32;
      const bool turned = round % 4 == 3;
      describe_case(name, ", round ", round, ", ", dtype_name(from), turned ? ", turned" : "");
      auto values = random.uniforms(rows * columns);
      for (float& value : values) value = std::nearbyint(value * 100) / 128;  // also in bfloat16
      const auto others = random.uniforms(rows * columns);
      const File file = turned ? slow_file(from, columns, rows, values, true) : slow_file(from, rows, columns, values, true);
      const Tensor other = gpu.floats(DType::f32, rows, columns, others);
      Tensor old = gpu.floats(DType::f32, rows, columns, others), loaded = gpu.empty(DType::f32, rows, columns);
      const Tensor sum = gpu.empty(DType::f32, rows, columns);
      // A load that was never used has its memory to itself for as long as it takes.
      const File passing = slow_file(from, 1, 77, std::vector<float>(77, 0.5f), true);
      Tensor unused = gpu.empty(DType::f32, 1, 77);
      const Tensor next = gpu.empty(DType::f32, 1, 77);
      gpu.run([&](Backend& b) {
        b.run(Cast{unused, passing.tensor});
        CHECK(passing.file->wait_until_read());
        while (unused.storage.use_count() > 1) std::this_thread::yield();
        unused = {};
        b.run(Fill{next, static_cast<double>(round)});
        // Work that lies in the stream, and memory that is taken again while it does.
        b.run(Cast{sum, old});
        for (int i = 0; i < 3; ++i) b.run(Add{sum, old});
        old = {};
        turned ? b.run(Transpose{loaded, file.tensor}) : b.run(Cast{loaded, file.tensor});
        // By the loader, not by the one who uses it.
        CHECK(file.file->wait_until_read());
        if (round % 2 == 0) b.run(Add{loaded, other});
        b.run(Add{sum, loaded});
      });
      auto expected = values;
      if (turned)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j)
            expected[static_cast<size_t>(i * columns + j)] = values[static_cast<size_t>(j * rows + i)];
      if (round % 2 == 0) expected = plus(expected, others);
      CHECK(gpu.read(loaded) == expected);
      auto total = others;
      for (int i = 0; i < 3; ++i) total = plus(total, others);
      CHECK(gpu.read(sum) == plus(total, expected));
      CHECK(gpu.read(next) == std::vector<float>(77, static_cast<float>(round)));
    }
  });
}

TEST("cuda memory: pinned buffers are filled again only when they have been copied") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    describe_case(name);
    OnDevice gpu(make_cuda_backend(path));
    Random random(3);
    constexpr int64_t rows = 1500, columns = 9000;  // 54 MB, more than all buffers hold
    const auto values = random.uniforms(rows * columns);
    const File file = slow_file(DType::f32, rows, columns, values, true);
    const Tensor loaded = gpu.empty(DType::f32, rows, columns);
    gpu.run([&](Backend& b) { b.run(Cast{loaded, file.tensor}); });
    CHECK(file.file->wait_until_read());
    CHECK(gpu.read(loaded) == values);
    CHECK(gpu.read(gpu.floats(DType::f32, rows, columns, values)) == values);
  });
}

TEST("cuda memory: a copy that fails is reported when it is used, or else at the next synchronisation") {
  if (!have_emulated_cuda()) return;
  OnDevice gpu(make_cuda_backend(emulated_cuda_library()));
  auto* fail_copy = emulation_function<void(int)>("emulation_fail_copy");
  const std::vector<float> values = {1, 2, 3};
  const File used = slow_file(DType::f32, 1, 3, values, true), unused = slow_file(DType::bf16, 1, 3, values, true);
  const Tensor out = gpu.empty(DType::f32, 1, 3), sum = gpu.floats(DType::f32, 1, 3, values);
  fail_copy(0);
  CHECK_THROWS_CODE(gpu.run([&](Backend& b) {
    b.run(Cast{out, used.tensor});
    b.run(Add{sum, out});
  }),
                    "INTERNAL", "CUDA: copying to the device: an error of the emulation (in cast)");
  // What went wrong stays with the tensor, not with the device.
  CHECK(gpu.read(sum) == values);
  CHECK_THROWS_CODE(gpu.read(out), "INTERNAL", "(in cast)");

  Tensor other = gpu.empty(DType::f32, 1, 3);
  fail_copy(0);
  std::string message;
  try {
    gpu.run([&](Backend& b) { b.run(Cast{other, unused.tensor}); });
    CHECK(unused.file->wait_until_touched());
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < std::chrono::seconds(20)) gpu.run([](Backend&) {});
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK_EQUAL(message, std::string("CUDA: copying to the device: an error of the emulation (in cast)"));
  other = gpu.empty(DType::f32, 1, 3);
  gpu.run([&](Backend& b) { b.run(Cast{other, unused.tensor}); });
  CHECK(gpu.read(other) == values);
}

TEST("cuda memory: when it runs out, the error says what needs less") {
  if (!have_emulated_cuda()) return;
  OnDevice gpu(make_cuda_backend(emulated_cuda_library()));
  auto* limit_memory = emulation_function<void(size_t, size_t)>("emulation_limit_memory");
  limit_memory(3 << 20, 0);
  const std::vector<float> values(1 << 19, 1.0f);
  const Tensor first = gpu.floats(DType::f32, 1, 1 << 19, values), second = gpu.empty(DType::f32, 1, 1 << 19);
  for (const char* option :
       {"2 MiB were wanted", "--samples", "--seqlen", "--dtype bfloat16", "--sequential block", "--offload"})
    CHECK_THROWS_CODE(gpu.run([&](Backend& b) { b.run(Fill{second, 0.0}); }), "OUT_OF_MEMORY", option);
  // What has been given back in the meantime is enough, though in other sizes.
  {
    const Tensor third = gpu.empty(DType::f32, 1, 1 << 17), fourth = gpu.empty(DType::f32, 1, 1 << 17);
    gpu.run([&](Backend& b) {
      b.run(Fill{third, 0.0});
      b.run(Fill{fourth, 0.0});
    });
  }
  const Tensor fifth = gpu.empty(DType::f32, 1, 1 << 18);
  gpu.run([&](Backend& b) { b.run(Fill{fifth, 2.0}); });
  CHECK(gpu.read(fifth)[7] == 2);
  limit_memory(0, 0);
}

TEST("cuda memory: activations wait in the host's memory or in a file, and come back as they were") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice gpu(make_cuda_backend(path));
    Random random(4);
    const auto file = SpillFile::create("/tmp");
    for (int round = 0; round < 20; ++round) {
      const auto to = round % 2 == 0 ? nullptr : file;
      describe_case(name, to ? ", file" : ", host", ", round ", round);
      const int64_t rows = round < 10 ? 30 : random.integer(1, 60), columns = 20;
      const auto values = random.uniforms(rows * columns), others = random.uniforms(rows * columns);
      const Tensor other = gpu.floats(DType::f32, rows, columns, others), x = gpu.floats(DType::f32, rows, columns, values);
      Tensor dropped = gpu.floats(DType::f32, rows, columns, values);
      const Tensor untouched = gpu.empty(DType::f32, rows, columns);
      gpu.run([&](Backend& b) {
        // What lies in the stream before belongs to what is moved, and memory is taken again at once.
        b.run(Add{x, other});
        x.storage->offload(to);
        x.storage->offload(to);
        dropped.storage->offload(to);
        untouched.storage->offload(to);
        const Tensor passing = {b.allocate(static_cast<size_t>(rows * columns * 4)), DType::f32, rows, columns, columns, 0};
        b.run(Fill{passing, 7.0});
        dropped = {};
        // A view brings all of it back.
        b.run(Add{other.row_range(rows - 1, 1), x.row_range(rows - 1, 1)});
        b.run(Add{x, passing});
      });
      auto expected = plus(values, others);
      const auto last = gpu.read(other);
      const auto at = static_cast<size_t>((rows - 1) * columns);
      CHECK_EQUAL(last[at], others[at] + expected[at]);
      for (float& value : expected) value += 7;
      CHECK(gpu.read(x) == expected);
      gpu.run([&](Backend&) { x.storage->offload(to); });
      CHECK(gpu.read(x) == expected);
    }
  });
}

TEST("cuda memory: what is offloaded leaves room; the error when the host has none") {
  if (!have_emulated_cuda()) return;
  OnDevice gpu(make_cuda_backend(emulated_cuda_library()));
  auto* limit_memory = emulation_function<void(size_t, size_t)>("emulation_limit_memory");
  limit_memory(3 << 20, 4 << 20);
  std::vector<Tensor> tensors;
  const auto offload = [&](double value) {
    tensors.push_back(gpu.empty(DType::f32, 1, 1 << 18));
    gpu.run([&](Backend& b) {
      b.run(Fill{tensors.back(), value});
      tensors.back().storage->offload(nullptr);
    });
  };
  for (int i = 0; i < 4; ++i) offload(i);
  CHECK_THROWS_CODE(offload(4), "OUT_OF_MEMORY", "--offload DIR");
  CHECK_EQUAL(gpu.read(tensors[4])[1], 4.0f);
  tensors.pop_back();
  for (int i = 0; i < 4; ++i) {
    CHECK_EQUAL(gpu.read(tensors[static_cast<size_t>(i)])[0], static_cast<float>(i));
    tensors[static_cast<size_t>(i)] = {};
  }
  // Buffers of other sizes are given up for a new one.
  tensors.push_back(gpu.empty(DType::f32, 1, 3 << 17));
  gpu.run([&](Backend& b) {
    b.run(Fill{tensors.back(), 5.0});
    tensors.back().storage->offload(nullptr);
  });
  CHECK_EQUAL(gpu.read(tensors.back())[99], 5.0f);
  limit_memory(0, 0);
}

TEST("cuda memory: an operation takes what its model says") {
  if (!have_emulated_cuda()) return;
  OnDevice gpu(make_cuda_backend(emulated_cuda_library()));
  auto* memory_since = emulation_function<size_t()>("emulation_memory_since");
  Random random(5);
  const auto device = [&](DType dtype, int64_t rows, int64_t columns) {
    return gpu.floats(dtype, rows, columns, random.uniforms(rows * columns));
  };
  const auto file = [&](DType dtype, int64_t rows, int64_t columns) {
    return slow_file(dtype, rows, columns, random.uniforms(rows * columns), true).tensor;
  };
  const auto bytes = [&](DType dtype, int64_t rows, int64_t columns) {
    return gpu.upload(dtype, rows, columns,
                      std::vector<char>(static_cast<size_t>(rows * columns) * dtype_size(dtype)).data());
  };
  const auto check = [&](const char* name, const auto& operation, size_t estimated = 0) {
    gpu.run([](Backend&) {});
    memory_since();
    gpu.run([&](Backend& b) {
      b.run(operation);
      // Until a load has happened.
      std::apply([](const auto&... written) { (written.storage->data(), ...); }, operation.writes());
    });
    const size_t taken = memory_since(), model = cuda_kind().scratch().bytes(operation);
    describe_case(name, ": takes ", taken, ", the model says ", model);
    CHECK(model >= taken);
    CHECK(static_cast<double>(model) <= 1.3 * static_cast<double>(taken) + 64 * 1024 + static_cast<double>(estimated));
  };

  const DType f32 = DType::f32, bf16 = DType::bf16;
  check("cast", Cast{device(bf16, 300, 400), device(f32, 300, 400)});
  check("cast, mapped", Cast{device(f32, 300, 400), file(bf16, 300, 400)});
  check("cast, mapped, of one type", Cast{device(f32, 300, 400), file(f32, 300, 400)});
  check("transpose, mapped", Transpose{device(f32, 400, 300), file(bf16, 300, 400)});
  check("embedding, mapped", Embedding{device(f32, 50, 3000), file(bf16, 200, 3000), bytes(DType::i32, 1, 50)});
  check("add, mapped", Add{device(f32, 300, 400), file(f32, 300, 400)});
  for (DType x : {f32, bf16}) {
    for (DType w : {f32, bf16}) {
      if (few_cases() && x == w) continue;
      for (DType out : {f32, bf16}) {
        check("linear", Linear{device(out, 60, 900), device(x, 60, 300), device(w, 900, 300), {}});
        check("linear, mapped", Linear{device(out, 60, 900), file(x, 60, 300), file(w, 900, 300), file(w, 1, 900)});
        check("multiply", Multiply{device(out, 30, 900), device(x, 30, 100), device(w, 100, 900)});
        check("multiply, mapped", Multiply{device(out, 30, 900), file(x, 30, 100), file(w, 100, 900)});
        check("divergence", KlDivergence{device(f32, 1, 20),
                                         device(out, 20, 30),
                                         device(x, 20, 30),
                                         device(w, 900, 30),
                                         file(w, 1, 900),
                                         device(w, 20, 90),
                                         device(x, 900, 90),
                                         {},
                                         0,
                                         1});
      }
      check("product", AccumulateProduct{device(f32, 100, 100), device(x, 300, 100), file(w, 300, 100), 1});
      check("divergence, mapped", KlDivergence{device(f32, 1, 20),
                                               {},
                                               device(x, 20, 30),
                                               file(w, 900, 30),
                                               {},
                                               device(w, 20, 90),
                                               file(x, 900, 90),
                                               {},
                                               0,
                                               1});
      check("cross entropy", CrossEntropy{device(f32, 1, 40), device(x, 40, 30), device(w, 9000, 30), file(w, 1, 9000),
                                          bytes(DType::i32, 1, 40), 0});
      check("cross entropy, mapped",
            CrossEntropy{device(f32, 1, 40), device(x, 40, 30), file(w, 9000, 30), {}, bytes(DType::i32, 1, 40), 0});
    }
  }
  check("gram", AccumulateGram{device(f32, 200, 200), device(bf16, 60, 200), 1});
  check("product", AccumulateProduct{device(f32, 200, 300), device(bf16, 60, 200), device(f32, 60, 300), 1});
  check("rows", AccumulateRows{device(f32, 1, 400), file(bf16, 600, 400)});
  check("norm gradient", NormGradient{device(bf16, 600, 400),
                                      device(f32, 1, 400),
                                      {},
                                      device(bf16, 600, 400),
                                      file(f32, 600, 400),
                                      device(f32, 1, 400),
                                      1e-5f});
  check("attention gradient", AttentionGradient{device(f32, 300, 8),
                                                device(f32, 300, 4),
                                                device(f32, 300, 4),
                                                {},
                                                device(f32, 300, 8),
                                                file(f32, 300, 4),
                                                device(f32, 300, 4),
                                                device(f32, 300, 8),
                                                {},
                                                {},
                                                3,
                                                0,
                                                2,
                                                1,
                                                4,
                                                1,
                                                0,
                                                0});
  check("scores", Scores{device(f32, 300, 400), device(f32, 300, 400), device(f32, 1, 400)});
  for (bool by_row : {false, true})
    check("select", SelectMask{bytes(DType::u8, 4000, 40), device(f32, 4000, 40), 0.4, 0, 0, by_row, false});
  Tensor mapped_mask = file(f32, 300, 100);
  mapped_mask.dtype = DType::u8;
  mapped_mask.columns = mapped_mask.stride = 400;
  check("apply, mapped", ApplyMask{device(f32, 300, 400), mapped_mask});
  check("zeros, mapped", CountZeros{bytes(DType::f64, 1, 1), file(f32, 300, 400), {}});

  const int64_t n = few_cases() ? 140 : 260;
  const auto p = random_problem(random, 1, n, 2 * n);
  const Tensor h = gpu.floats(f32, n, n, p.hessian), dead = bytes(DType::u8, 1, n);
  check("factor", FactorHessian{h, dead, bytes(DType::f64, 1, factor_report::count), 0.01}, 1 << 20);
  check("triangle", TriangularProduct{device(f32, 300, n), device(f32, 300, n), h, true, false});
  check("conjugate gradients", ConjugateGradients{device(f32, 300, n), device(f32, 300, n), bytes(DType::u8, 300, n), h,
                                                  bytes(DType::f64, 1, descent_report::count), 0, 2});
  struct Case {
    int n, m, block, bits;
    bool given;
  };
  for (const auto& c : {Case{0, 0, 128, 0, false}, Case{0, 0, 200, 4, false}, Case{2, 4, 128, 0, false},
                        Case{10, 20, 128, 0, false}, Case{0, 0, 64, 0, true}}) {
    check("solver", PruneSparsegpt{device(f32, 150, n), bytes(DType::u8, 150, n), bytes(DType::f64, 1, 1), h, dead,
                                   c.given ? bytes(DType::u8, 150, n) : Tensor{}, 0.5, c.n, c.m, c.block, c.bits});
  }
}

TEST("cuda: of several GPUs each backend uses its own, whichever thread calls") {
  if (!have_emulated_cuda()) return;
  setenv("SPARSEGPT_EMULATED_GPUS", "2", 1);
  CHECK_EQUAL(cuda_library(emulated_cuda_library()).probe().devices.size(), size_t{2});
  CHECK_THROWS_CODE(make_cuda_backend(emulated_cuda_library(), 2), "DEVICE_UNAVAILABLE", "there are 2");
  // The emulation dies when a call is for another device than the one that the thread has selected.
  Random random(6);
  const auto p = random_problem(random, 20, 60, 120);
  std::vector<std::vector<float>> results;
  std::vector<Tensor> left;
  std::vector<std::shared_ptr<Backend>> backends;
  for (int index : {0, 1}) backends.push_back(make_cuda_backend(emulated_cuda_library(), index));
  CHECK(backends[1]->description().find("(GPU 1)") != std::string::npos);
  for (const auto& backend : backends) {
    OnDevice gpu(backend);
    const Tensor h = gpu.floats(DType::f32, 60, 60, p.hessian), dead = gpu.empty(DType::u8, 1, 60);
    const Tensor mask = gpu.empty(DType::u8, 20, 60), report = gpu.empty(DType::f64, 1, factor_report::count);
    const Tensor loss = gpu.empty(DType::f64, 1, 1);
    const File weight = slow_file(DType::f32, 20, 60, p.weight, true);
    const Tensor w = gpu.empty(DType::f32, 20, 60);
    gpu.run([&](Backend& b) {
      b.run(Cast{w, weight.tensor});
      b.run(FactorHessian{h, dead, report, 0.01});
      b.run(PruneSparsegpt{w, mask, loss, h, dead, {}, 0.5, 0, 0, 128, 0});
      w.storage->offload(nullptr);
    });
    results.push_back(gpu.read(w));
    gpu.run([&](Backend&) { mask.storage->offload(nullptr); });
    left.insert(left.begin(), {w, mask});
    left.push_back(gpu.empty(DType::f32, 1, 9));
  }
  CHECK(results[0] == results[1]);
  // This thread frees the memory of both in turn; with the last tensor of each, which has none, its device is closed.
  backends.clear();
  left.clear();
  unsetenv("SPARSEGPT_EMULATED_GPUS");
}
