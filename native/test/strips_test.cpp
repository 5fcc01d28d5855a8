// Strips on every level of the CPU and on CUDA or its emulation, against sums in double precision.
#include <cmath>

#include "test/twins.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// A matrix as elements or codes, and what its elements are worth.
struct Matrix {
  StripForm form;
  int64_t rows;
  std::vector<double> values;
  Tensor x, zeros, scales;
};

Matrix random_matrix(OnDevice& device, Random& random, int64_t rows, const StripForm& form, double sparsity) {
  Matrix m{form, rows, {}, {}, {}, {}};
  const int64_t columns = form.columns, groups = form.groups();
  if (form.bits == 16) {
    std::vector<float> elements = random.uniforms(rows * columns, -1, 1);
    for (float& w : elements)
      if (random.uniform() < sparsity) w = 0;
    m.x = device.floats(DType::bf16, rows, columns, elements);
    for (float w : device.read(m.x)) m.values.push_back(w);
    return m;
  }
  const int most = (1 << form.bits) - 1;
  std::vector<uint8_t> codes, zeros;
  for (int64_t i = 0; i < rows * groups; ++i) zeros.push_back(static_cast<uint8_t>(random.integer(0, most)));
  m.zeros = device.upload(DType::u8, rows, groups, zeros.data());
  m.scales =
      device.floats(form.half_scales ? DType::bf16 : DType::f32, rows, groups, random.uniforms(rows * groups, 0.1, 1));
  const auto scales = device.read(m.scales);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const auto at = static_cast<size_t>(i * groups + j / form.group);
      codes.push_back(random.uniform() < sparsity ? zeros[at] : static_cast<uint8_t>(random.integer(0, most)));
      m.values.push_back((codes.back() - zeros[at]) * static_cast<double>(scales[at]));
    }
  }
  m.x = device.upload(DType::u8, rows, columns, codes.data());
  return m;
}

void check_product(OnDevice& device, Random& random, const Matrix& m, int64_t tokens, DType dtype) {
  const StripForm& f = m.form;
  const int64_t strips = strip_count(m.rows);
  const Tensor sizes = device.empty(DType::i32, 1, strips);
  device.run(MeasureStrips{sizes, m.x, m.zeros, f.group, f.bits, f.masked, f.half_scales});
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
  for (int32_t size : device.read_as<int32_t>(sizes)) {
    offsets.push_back(bytes);
    bytes += size;
  }
  const Tensor places = device.upload(DType::u8, strips, 8, offsets.data()), stream = device.empty(DType::u8, 1, bytes + 64);
  device.run(PackStrips{stream, m.x, m.zeros, m.scales, places, f.group, f.bits, f.masked, f.half_scales});

  // Whole numbers of which every 32 have 127 among them are codes as they are.
  std::vector<float> rows;
  for (int64_t i = 0; i < tokens * f.columns; ++i)
    rows.push_back(i % f.columns % 32 == 0 ? 127.0f : static_cast<float>(random.integer(-127, 127)));
  const Tensor x = device.floats(dtype, tokens, f.columns, rows),
               bias = device.floats(dtype, 1, m.rows, random.uniforms(m.rows, -9, 9));
  const Tensor out =
      device.floats(DType::f32, tokens, m.rows, std::vector<float>(static_cast<size_t>(tokens * m.rows), NAN));
  device.run(MultiplyStrips{out, x, stream, places, bias, f.group, f.bits, f.masked, f.half_scales});
  const auto biases = device.read(bias), results = device.read(out);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < m.rows; ++i) {
      double sum = biases[static_cast<size_t>(i)], size = std::abs(sum);
      for (int64_t j = 0; j < f.columns; ++j) {
        const double part = m.values[static_cast<size_t>(i * f.columns + j)] * rows[static_cast<size_t>(t * f.columns + j)];
        sum += part;
        size += std::abs(part);
      }
      CHECK(std::abs(results[static_cast<size_t>(t * m.rows + i)] - sum) <= 2e-6 * size);
    }
  }
}

void check_device(OnDevice& device, const std::string& name) {
  Random random(3);
  for (int bits : {16, 8, 4}) {
    for (int64_t columns : {1, 15, 32, 96, 130, 256}) {
      for (int64_t group : {columns, int64_t{32}, int64_t{128}}) {
        if (columns % group != 0 || (bits == 16 && group != columns)) continue;
        for (bool masked : {true, false}) {
          const int64_t rows = random.integer(1, 50), tokens = random.integer(1, 8);
          const double sparsity = random.uniform() < 0.1 ? 1 : random.uniform();
          const DType dtype = float_types[random.integer(0, 2)];
          const StripForm form{columns, group, bits, masked, random.uniform() < 0.5};
          describe_case(name, ", ", bits, " bits, ", rows, " x ", columns, ", groups of ", group,
                        masked ? ", masked, " : ", ", tokens, " rows of ", dtype_name(dtype));
          check_product(device, random, random_matrix(device, random, rows, form, sparsity), tokens, dtype);
        }
      }
    }
  }
}

}  // namespace

TEST("strips: products on every level are those of the matrix, of elements and of codes") {
  for_every_level([](OnDevice& device, const std::string& name) { check_device(device, name); });
}

TEST("strips: so are they on CUDA") {
  for_every_gpu([](const std::string& name, const std::string& path) {
    OnDevice device(make_cuda_backend(path));
    check_device(device, name);
  });
}
