// bfloat16 and float16 conversions, for every value and every level, against arithmetic in double.
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/spans.h"
#include "test/check.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

struct Format {
  DType dtype;
  int fraction;      // bits of the fraction
  int min_exponent;  // of the normal numbers
  int infinity;      // its bits

  bool is_nan(uint16_t h) const { return (h & 0x7fff) > infinity; }

  double decode(uint16_t h) const {
    const int magnitude = h & 0x7fff, exponent = magnitude >> fraction;
    const int steps = magnitude & ((1 << fraction) - 1);
    double value;
    if (magnitude >= infinity) {
      value = magnitude == infinity ? INFINITY : NAN;
    } else if (exponent == 0) {
      value = std::ldexp(steps, min_exponent - fraction);
    } else {
      value = std::ldexp(steps + (1 << fraction), min_exponent + exponent - 1 - fraction);
    }
    return (h & 0x8000) != 0 ? -value : value;
  }

  // Nearest, ties to even; not for NaN.
  uint16_t encode(double x) const {
    const int sign = std::signbit(x) ? 0x8000 : 0;
    x = std::fabs(x);
    if (x == 0) return static_cast<uint16_t>(sign);
    if (std::isinf(x)) return static_cast<uint16_t>(sign | infinity);
    int exponent;
    std::frexp(x, &exponent);
    exponent = std::max(exponent - 1, min_exponent);
    const double steps = std::nearbyint(std::ldexp(x, fraction - exponent));
    // A normal number's leading one carries into the exponent, so one sum serves subnormal and normal ones.
    const double bits = std::ldexp(exponent - min_exponent, fraction) + steps;
    return static_cast<uint16_t>(sign | static_cast<int>(std::fmin(bits, infinity)));
  }
};

const Format formats[] = {{DType::bf16, 7, -126, 0x7f80}, {DType::f16, 10, -14, 0x7c00}};

std::vector<uint16_t> all_halves() {
  std::vector<uint16_t> values(65536);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  return values;
}

}  // namespace

TEST("conversion: all 65536 bfloat16 and float16 values become the right float and come back") {
  const auto halves = all_halves();
  for (cpu::Level level : cpu::available_levels()) {
    for (const Format& format : formats) {
      describe_case(cpu::level_name(level), ", ", dtype_name(format.dtype));
      std::vector<float> floats(65536, -1.0f);
      cpu::to_float[level](floats.data(), halves.data(), format.dtype, 65536);
      std::vector<uint16_t> back(65536, 0x1234);
      cpu::from_float[level](back.data(), format.dtype, floats.data(), 65536);
      for (size_t i = 0; i < halves.size(); ++i) {
        if (format.is_nan(halves[i])) {
          CHECK(std::isnan(floats[i]) && format.is_nan(back[i]));
        } else {
          const double expected = format.decode(halves[i]);
          CHECK_EQUAL(static_cast<double>(floats[i]), expected);
          CHECK_EQUAL(back[i], halves[i]);
        }
      }
    }
  }
}

TEST("conversion: floats round to the nearest half, ties to even") {
  for (const Format& format : formats) {
    // Around every value: itself, the midpoint to the next one, and the midpoint's two neighbours.
    std::vector<float> floats;
    for (int i = 0; i < format.infinity; ++i) {
      const auto half = static_cast<uint16_t>(i);
      const double value = format.decode(half);
      const int exponent = std::max((i >> format.fraction) - 1, 0) + format.min_exponent;
      const auto middle = static_cast<float>(value + std::ldexp(0.5, exponent - format.fraction));
      for (float x : {static_cast<float>(value), middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
        floats.push_back(x);
        floats.push_back(-x);
      }
    }
    Random random(3);
    for (int i = 0; i < 200000; ++i) {
      const auto bits = static_cast<uint32_t>(random.bits());
      float x;
      std::memcpy(&x, &bits, 4);
      floats.push_back(x);
    }
    for (float x : {INFINITY, -INFINITY, NAN, 3.4e38f, -3.4e38f, 1e-45f, -1e-45f, 65504.0f, 65519.0f, 65520.0f})
      floats.push_back(x);
    for (cpu::Level level : cpu::available_levels()) {
      describe_case(cpu::level_name(level), ", ", dtype_name(format.dtype));
      std::vector<uint16_t> halves(floats.size(), 0x1234);
      cpu::from_float[level](halves.data(), format.dtype, floats.data(), static_cast<int64_t>(floats.size()));
      for (size_t i = 0; i < floats.size(); ++i) {
        if (std::isnan(floats[i])) {
          CHECK(format.is_nan(halves[i]));
        } else if (halves[i] != format.encode(floats[i])) {
          describe_case(cpu::level_name(level), ", ", dtype_name(format.dtype), ", ", floats[i]);
          CHECK_EQUAL(halves[i], format.encode(floats[i]));
        }
      }
    }
  }
}

TEST("conversion: short spans of any length, and nothing behind them is written") {
  Random random(4);
  for (cpu::Level level : cpu::available_levels()) {
    for (const Format& format : formats) {
      for (int64_t count = 0; count <= 40; ++count) {
        describe_case(cpu::level_name(level), ", ", dtype_name(format.dtype), ", count ", count);
        const auto x = random.uniforms(count);
        std::vector<uint16_t> halves(static_cast<size_t>(count) + 20, 0x1234);
        cpu::from_float[level](halves.data(), format.dtype, x.data(), count);
        std::vector<float> back(static_cast<size_t>(count) + 20, 99.0f);
        cpu::to_float[level](back.data(), halves.data(), format.dtype, count);
        for (size_t i = 0; i < back.size(); ++i) {
          if (i < static_cast<size_t>(count)) {
            CHECK_EQUAL(halves[i], format.encode(x[i]));
            CHECK_EQUAL(static_cast<double>(back[i]), format.decode(halves[i]));
          } else {
            CHECK_EQUAL(halves[i], uint16_t{0x1234});
            CHECK_EQUAL(back[i], 99.0f);
          }
        }
      }
    }
  }
}
