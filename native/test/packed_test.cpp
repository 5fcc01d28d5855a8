// Packed matrices on every level of the CPU and on CUDA or its emulation, against loops over their bits.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "cpu/dispatch.h"
#include "test/twins.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// Bytes that end where memory may not be touched, as a mapped file's do.
class GuardedStorage : public Storage {
 public:
  explicit GuardedStorage(const std::vector<uint8_t>& bytes) : size_(bytes.size()) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    whole_ = (size_ + page - 1) / page * page + page;
    memory_ = static_cast<std::byte*>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(memory_ != MAP_FAILED);
    CHECK_EQUAL(mprotect(memory_ + whole_ - page, page, PROT_NONE), 0);
    data_ = memory_ + whole_ - page - size_;
    if (size_ > 0) std::memcpy(data_, bytes.data(), size_);
  }
  ~GuardedStorage() override { munmap(memory_, whole_); }
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }
  bool read_only() const override { return true; }

 private:
  size_t size_, whole_ = 0;
  std::byte *memory_ = nullptr, *data_ = nullptr;
};

Tensor guarded(DType dtype, int64_t rows, int64_t columns, const std::vector<uint8_t>& bytes) {
  return {std::make_shared<GuardedStorage>(bytes), dtype, rows, columns, columns, 0};
}

struct Packed {
  std::vector<uint8_t> dense, values, bitmask, offsets;
  std::vector<int32_t> counts;
  DType dtype;
  int64_t rows, columns;

  int64_t size() const { return static_cast<int64_t>(dtype_size(dtype)); }
  int64_t count() const { return static_cast<int64_t>(values.size()) / size(); }
  int64_t width() const { return (columns + 7) / 8; }
};

// Random bits, so that there are NaN, infinities and denormals, with a share of zeros, and some of them negative.
Packed packed(Random& random, DType dtype, int64_t rows, int64_t columns, double zeros) {
  Packed p{{}, {}, {}, {}, {}, dtype, rows, columns};
  p.bitmask.resize(static_cast<size_t>(rows * p.width()));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t begin = p.count();
    for (int b = 0; b < 8; ++b) p.offsets.push_back(static_cast<uint8_t>(begin >> (8 * b)));
    for (int64_t j = 0; j < columns; ++j) {
      std::vector<uint8_t> element(static_cast<size_t>(p.size()));
      const bool zero = random.uniform() < zeros;
      if (!zero)
        for (uint8_t& byte : element) byte = static_cast<uint8_t>(random.bits());
      else if (random.uniform() < 0.1)
        element.back() = 0x80;
      p.dense.insert(p.dense.end(), element.begin(), element.end());
      if (element == std::vector<uint8_t>(element.size())) continue;
      p.values.insert(p.values.end(), element.begin(), element.end());
      p.bitmask[static_cast<size_t>(i * p.width() + j / 8)] |= static_cast<uint8_t>(1 << (j % 8));
    }
    p.counts.push_back(static_cast<int32_t>(p.count() - begin));
  }
  return p;
}

void check_device(OnDevice& device, Random& random, const std::string& name) {
  for (DType dtype : float_types) {
    for (int64_t columns : {1, 8, 13, 16, 33, 64, 301}) {
      for (double zeros : {0.0, 0.5, 0.9, 1.0}) {
        const int64_t rows = random.integer(1, 40);
        describe_case(name, ", ", dtype_name(dtype), ", ", rows, " x ", columns, ", ", zeros);
        const Packed p = packed(random, dtype, rows, columns, zeros);
        const Tensor x = guarded(dtype, rows, columns, p.dense), values = guarded(dtype, 1, p.count(), p.values);
        const Tensor offsets = guarded(DType::u8, rows, 8, p.offsets);
        const Tensor bitmask = device.empty(DType::u8, rows, p.width()), counts = device.empty(DType::i32, 1, rows);
        const Tensor kept = device.empty(dtype, 1, p.count()), out = device.empty(dtype, rows, columns);
        device.run(MarkValues{bitmask, counts, x});
        CHECK(device.read_as<uint8_t>(bitmask) == p.bitmask);
        CHECK(device.read_as<int32_t>(counts) == p.counts);
        const auto bytes = [&](const Tensor& t) {
          std::vector<uint8_t> read(byte_size(t));
          device.run([&](Backend& b) { b.download(read.data(), t); });
          return read;
        };
        device.run(PackValues{kept, x, bitmask, offsets});
        CHECK(bytes(kept) == p.values);
        device.run(UnpackValues{out, values, guarded(DType::u8, rows, p.width(), p.bitmask), offsets, "the matrix"});
        CHECK(bytes(out) == p.dense);
      }
    }
  }
}

void check_damage(OnDevice& device, const std::string& name) {
  Random random(2);
  const Packed sound = packed(random, DType::bf16, 9, 13, 0.5);
  const auto unpacking = [&](const Packed& p, int64_t count) {
    const Tensor out = device.empty(p.dtype, p.rows, p.columns);
    device.run(UnpackValues{out, guarded(p.dtype, 1, count, p.values), guarded(DType::u8, p.rows, p.width(), p.bitmask),
                            guarded(DType::u8, p.rows, 8, p.offsets), "w of f"});
  };
  unpacking(sound, sound.count());
  const auto refused = [&](const char* damage, int64_t row, const auto& change) {
    describe_case(name, ", ", damage);
    Packed p = sound;
    change(p);
    CHECK_THROWS_CODE(unpacking(p, p.count()), "INVALID_CHECKPOINT",
                      "w of f is damaged in row " + std::to_string(row) + ": its bitmask");
  };
  const auto at = [](Packed& p, int64_t row) { return p.offsets.data() + row * 8; };
  refused("a bit too many", 4, [](Packed& p) { p.bitmask[8] ^= 1; });
  refused("a bit behind the last column", 8, [](Packed& p) { p.bitmask[17] |= 0x20; });
  refused("a first offset that is not 0", 0, [&](Packed& p) { ++*at(p, 0); });
  refused("an offset below 0", 2, [&](Packed& p) { at(p, 3)[7] = 0x80; });
  refused("an offset far behind the values", 6, [&](Packed& p) { at(p, 7)[7] = 0x7f; });
  refused("offsets that run backwards", 4, [&](Packed& p) { std::swap_ranges(at(p, 5), at(p, 6), at(p, 6)); });
  refused("a value too few", 8, [](Packed& p) { p.values.resize(p.values.size() - 2); });
  refused("a value too many", 8, [](Packed& p) { p.values.resize(p.values.size() + 2); });
  refused("no values", 0, [](Packed& p) { p.values.clear(); });
}

}  // namespace

TEST("packed: every level marks, packs and unpacks the same bits, and refuses parts that contradict each other") {
  const char* wanted = std::getenv("SPARSEGPT_CPU");
  const std::string before = wanted != nullptr ? wanted : "";
  for (cpu::Level level : cpu::available_levels()) {
    setenv("SPARSEGPT_CPU", cpu::level_name(level), 1);
    OnDevice device(cpu_kind().open(0, 2));
    Random random(1);
    check_device(device, random, cpu::level_name(level));
    check_damage(device, cpu::level_name(level));
  }
  before.empty() ? unsetenv("SPARSEGPT_CPU") : setenv("SPARSEGPT_CPU", before.c_str(), 1);
}

TEST("packed: so does CUDA, from host memory") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice device(make_cuda_backend(path));
    Random random(1);
    check_device(device, random, name);
    check_damage(device, name);
  });
}
