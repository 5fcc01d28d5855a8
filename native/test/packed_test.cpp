// Packed matrices on every level of the CPU and on CUDA or its emulation, against loops over their bits.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

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

// Codes, a share of them at the zero point, and what is packed of them, bit by bit.
struct Coded {
  int bits;
  int64_t rows, columns, groups;
  bool symmetric;
  std::vector<uint8_t> codes, zero_points, bitmask, offsets, kept, all;
  std::vector<int32_t> counts;
  std::vector<float> zeros, steps;

  int64_t width() const { return (columns + 7) / 8; }
  int64_t stride() const { return (columns * bits + 7) / 8 + 3; }  // some zeros more
  size_t group(int64_t i, int64_t j) const { return static_cast<size_t>(i * groups + j / (columns / groups)); }
};

void append_bits(std::vector<uint8_t>& bytes, size_t first_byte, int64_t at, unsigned code, int bits) {
  for (int b = 0; b < bits; ++b, ++at) {
    const size_t byte = first_byte + static_cast<size_t>(at / 8);
    if (byte >= bytes.size()) bytes.resize(byte + 1);
    bytes[byte] |= static_cast<uint8_t>((code >> b & 1) << (at % 8));
  }
}

Coded coded(Random& random, int bits, int64_t rows, int64_t columns, int64_t groups, bool symmetric, double zeros) {
  Coded c{bits, rows, columns, groups, symmetric, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  const int64_t codes = int64_t{1} << bits;
  for (int64_t g = 0; g < rows * groups; ++g) {
    c.zero_points.push_back(static_cast<uint8_t>(symmetric ? codes / 2 : random.integer(0, codes - 1)));
    c.zeros.push_back(c.zero_points.back());
    c.steps.push_back(static_cast<float>(random.uniform(0.001, 0.1)));
  }
  c.bitmask.resize(static_cast<size_t>(rows * c.width()));
  c.all.resize(static_cast<size_t>(rows * c.stride()));
  for (int64_t i = 0; i < rows; ++i) {
    const size_t begin = c.kept.size();
    for (int b = 0; b < 8; ++b) c.offsets.push_back(static_cast<uint8_t>(begin >> (8 * b)));
    int32_t count = 0;
    for (int64_t j = 0; j < columns; ++j) {
      const uint8_t zero = c.zero_points[c.group(i, j)];
      const bool gone = random.uniform() < zeros;
      const auto code = gone ? zero : static_cast<uint8_t>(random.integer(0, codes - 1));
      c.codes.push_back(code);
      append_bits(c.all, static_cast<size_t>(i * c.stride()), j * bits, code, bits);
      if (code == zero) continue;
      append_bits(c.kept, begin, int64_t{count} * bits, code, bits);
      c.bitmask[static_cast<size_t>(i * c.width() + j / 8)] |= static_cast<uint8_t>(1 << (j % 8));
      ++count;
    }
    c.counts.push_back(count);
  }
  return c;
}

Tensor zero_points_of(const Coded& c) {
  return c.symmetric ? Tensor{} : guarded(DType::u8, c.rows, c.groups, c.zero_points);
}

void unpack(OnDevice& device, const Coded& c, bool masked, const Tensor& out) {
  const Tensor bitmask = masked ? guarded(DType::u8, c.rows, c.width(), c.bitmask) : Tensor{};
  const Tensor offsets = masked ? guarded(DType::u8, c.rows, 8, c.offsets) : Tensor{};
  const Tensor packed = masked ? guarded(DType::u8, 1, static_cast<int64_t>(c.kept.size()), c.kept)
                               : guarded(DType::u8, c.rows, c.stride(), c.all);
  device.run(UnpackCodes{out, packed, bitmask, offsets, zero_points_of(c), c.bits, "w of f"});
}

void check_packed_codes(OnDevice& device, const Coded& c) {
  const Tensor codes = guarded(DType::u8, c.rows, c.columns, c.codes);
  const Tensor bitmask = device.empty(DType::u8, c.rows, c.width()), counts = device.empty(DType::i32, 1, c.rows);
  device.run(MarkCodes{bitmask, counts, codes, zero_points_of(c), c.bits});
  CHECK(device.read_as<uint8_t>(bitmask) == c.bitmask);
  CHECK(device.read_as<int32_t>(counts) == c.counts);
  const Tensor kept = device.empty(DType::u8, 1, static_cast<int64_t>(c.kept.size()));
  device.run(PackCodes{kept, codes, bitmask, guarded(DType::u8, c.rows, 8, c.offsets), c.bits});
  CHECK(device.read_as<uint8_t>(kept) == c.kept);
  const Tensor all = device.empty(DType::u8, c.rows, c.stride());
  device.run(PackCodes{all, codes, {}, {}, c.bits});
  CHECK(device.read_as<uint8_t>(all) == c.all);
  for (const bool masked : {true, false}) {
    const Tensor out = device.empty(DType::u8, c.rows, c.columns);
    unpack(device, c, masked, out);
    CHECK(device.read_as<uint8_t>(out) == c.codes);
  }
}

void check_grids(OnDevice& device, const Coded& c) {
  const Tensor codes = guarded(DType::u8, c.rows, c.columns, c.codes);
  const Tensor zeros = device.floats(DType::f32, c.rows, c.groups, c.zeros);
  for (DType step_type : float_types) {
    const std::vector<float> steps = decode(encode(c.steps, step_type), step_type);
    const Tensor scale = device.floats(step_type, c.rows, c.groups, steps);
    std::vector<float> expected;
    for (size_t e = 0; e < c.codes.size(); ++e) {
      const size_t g = c.group(static_cast<int64_t>(e) / c.columns, static_cast<int64_t>(e) % c.columns);
      expected.push_back(static_cast<float>(c.codes[e] - c.zero_points[g]) * steps[g]);
    }
    for (DType dtype : float_types) {
      const Tensor out = device.empty(dtype, c.rows, c.columns);
      device.run(DequantizeCodes{out, codes, scale, zero_points_of(c), c.bits});
      CHECK(device.read(out) == decode(encode(expected, dtype), dtype));
    }
    const Tensor x = device.floats(DType::f32, c.rows, c.columns, expected);
    const Tensor back = device.empty(DType::u8, c.rows, c.columns), points = device.empty(DType::u8, c.rows, c.groups);
    device.run(QuantizeCodes{back, points, x, scale, zeros, c.bits});
    CHECK(device.read_as<uint8_t>(back) == c.codes);
    CHECK(device.read_as<uint8_t>(points) == c.zero_points);
  }
}

// Weights far outside a grid, or between its points, take the nearest code there is.
void check_nearest(OnDevice& device) {
  const std::vector<float> x{-9, -0.6f, -0.4f, 0, 0.4f, 1.4f, 1.6f, 99, INFINITY, -INFINITY};
  const Tensor codes = device.empty(DType::u8, 1, 10), points = device.empty(DType::u8, 1, 1);
  device.run(QuantizeCodes{codes, points, device.floats(DType::f32, 1, 10, x), device.floats(DType::f32, 1, 1, {1}),
                           device.floats(DType::f32, 1, 1, {2}), 3});
  CHECK(device.read_as<uint8_t>(codes) == (std::vector<uint8_t>{0, 1, 2, 2, 2, 3, 4, 7, 7, 0}));
}

void check_found(OnDevice& device, Random& random, const std::string& name) {
  for (DType dtype : float_types) {
    for (DType step_type : float_types) {
      for (const bool symmetric : {false, true}) {
        describe_case(name, ", grids of ", dtype_name(dtype), ", steps ", dtype_name(step_type), ", ", symmetric);
        const int64_t rows = 5, columns = 48, groups = 3;
        std::vector<float> x = random.uniforms(rows * columns, -1, 1);
        // A group below zero, whose zero is the last code even if the step was rounded down.
        for (int64_t j = 0; j < 16; ++j) x[static_cast<size_t>(j)] = -1 - x[static_cast<size_t>(j)] * 0.01f;
        x = decode(encode(x, dtype), dtype);
        const Tensor steps = device.empty(step_type, rows, groups), zeros = device.empty(DType::f32, rows, groups);
        device.run(FindGrids{steps, zeros, device.floats(dtype, rows, columns, x), 8, symmetric, false});
        std::vector<float> expected_steps, expected_zeros;
        for (int64_t g = 0; g < rows * groups; ++g) {
          float low = 0, high = 0;
          for (int64_t j = 0; j < 16; ++j) {
            low = std::min(low, x[static_cast<size_t>(g * 16 + j)]);
            high = std::max(high, x[static_cast<size_t>(g * 16 + j)]);
          }
          const float wide = symmetric ? std::max(-low, high) / 255 * 2 : (high - low) / 255;
          const float step = decode(encode({wide}, step_type), step_type)[0];
          expected_steps.push_back(step);
          expected_zeros.push_back(symmetric ? 128 : std::min(std::nearbyint(-low / step), 255.0f));
        }
        CHECK(device.read(steps) == expected_steps);
        CHECK(device.read(zeros) == expected_zeros);
      }
    }
  }
}

void check_damaged_codes(OnDevice& device, const std::string& name) {
  Random random(3);
  const Coded sound = coded(random, 3, 9, 13, 1, false, 0.5);
  const Tensor out = device.empty(DType::u8, sound.rows, sound.columns);
  const auto refused = [&](const char* damage, int64_t row, bool masked, const auto& change) {
    describe_case(name, ", codes, ", damage);
    Coded c = sound;
    change(c);
    CHECK_THROWS_CODE(unpack(device, c, masked, out), "INVALID_CHECKPOINT",
                      "w of f is damaged in row " + std::to_string(row) + ": its codes");
  };
  const auto at = [](Coded& c, int64_t row) { return c.offsets.data() + row * 8; };
  refused("three bits too many", 4, true, [](Coded& c) { c.bitmask[8] = static_cast<uint8_t>(~c.bitmask[8]); });
  refused("a bit behind the last column", 8, true, [](Coded& c) { c.bitmask[17] |= 0x20; });
  refused("a first offset that is not 0", 0, true, [&](Coded& c) { ++*at(c, 0); });
  refused("an offset below 0", 2, true, [&](Coded& c) { at(c, 3)[7] = 0x80; });
  refused("an offset far behind the codes", 6, true, [&](Coded& c) { at(c, 7)[7] = 0x7f; });
  refused("offsets that run backwards", 4, true, [&](Coded& c) { std::swap_ranges(at(c, 5), at(c, 6), at(c, 6)); });
  refused("a byte too few", 8, true, [](Coded& c) { c.kept.pop_back(); });
  refused("a byte too many", 8, true, [](Coded& c) { c.kept.push_back(0); });
  refused("no codes", 0, true, [](Coded& c) { c.kept.clear(); });
  refused("a zero point that is no code", 5, true, [](Coded& c) { c.zero_points[5] = 8; });
  refused("the same of dense codes", 5, false, [](Coded& c) { c.zero_points[5] = 255; });
  refused("a bit behind the last code", 2, false, [](Coded& c) { c.all[static_cast<size_t>(2 * c.stride() + 4)] |= 0x80; });
  refused("a byte behind the last code", 7, false, [](Coded& c) { c.all[static_cast<size_t>(8 * c.stride() - 1)] = 1; });
  describe_case(name, ", codes, a bit behind the last kept code");
  Coded c = sound;
  int64_t row = 0;
  while (c.counts[static_cast<size_t>(row)] * 3 % 8 == 0) ++row;
  const int64_t end = row + 1 < c.rows ? *at(c, row + 1) : static_cast<int64_t>(c.kept.size());
  c.kept[static_cast<size_t>(end - 1)] |= 0x80;
  CHECK_THROWS_CODE(unpack(device, c, true, out), "INVALID_CHECKPOINT", "row " + std::to_string(row) + ":");
}

void check_codes(OnDevice& device, const std::string& name) {
  Random random(4);
  for (int bits = 2; bits <= 8; ++bits) {
    for (int64_t columns : {1, 8, 13, 16, 33, 64, 300}) {
      for (double zeros : {0.0, 0.5, 1.0}) {
        const int64_t rows = random.integer(1, 20), groups = random.uniform() < 0.5 || columns % 4 != 0 ? 1 : columns / 4;
        const bool symmetric = random.uniform() < 0.5;
        describe_case(name, ", ", bits, " bits, ", rows, " x ", columns, ", ", groups, " groups, ", symmetric, ", ", zeros);
        const Coded c = coded(random, bits, rows, columns, groups, symmetric, zeros);
        check_packed_codes(device, c);
        check_grids(device, c);
      }
    }
  }
  check_nearest(device);
  check_found(device, random, name);
  check_damaged_codes(device, name);
}

}  // namespace

TEST("packed: every level marks, packs and unpacks the same bits, and refuses parts that contradict each other") {
  for_every_level([](OnDevice& device, const std::string& name) {
    Random random(1);
    check_device(device, random, name);
    check_damage(device, name);
  });
}

TEST("packed: so does CUDA, from host memory") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice device(make_cuda_backend(path));
    Random random(1);
    check_device(device, random, name);
    check_damage(device, name);
  });
}

TEST("packed codes: every level makes, packs and unpacks the same ones, and refuses what is damaged") {
  for_every_level([](OnDevice& device, const std::string& name) { check_codes(device, name); });
}

TEST("packed codes: so does CUDA, from host memory") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice device(make_cuda_backend(path));
    check_codes(device, name);
  });
}
