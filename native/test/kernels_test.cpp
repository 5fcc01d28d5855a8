// Elementwise and row kernels of every level against the same formula in double, and the choice of a level.
#include <cfloat>

#include "core/registry.h"
#include "cpu/dispatch.h"
#include "cpu/spans.h"
#include "test/activations.h"
#include "test/check.h"

// As the files of their operations declare them.
namespace sparsegpt::cpu {
SPARSEGPT_KERNEL(activate, void, float* x, int64_t count, Activation kind);
SPARSEGPT_KERNEL(gate, void, float* x, const float* up, int64_t count, Activation kind);
SPARSEGPT_KERNEL(layer_norm, void, float* out, const float* x, const float* weight, const float* bias, int64_t count,
                 float epsilon);
SPARSEGPT_KERNEL(rms_norm, void, float* out, const float* x, const float* weight, int64_t count, float epsilon);
SPARSEGPT_KERNEL(rotary, void, float* x, const float* cosine, const float* sine, int64_t pairs, bool interleaved);
SPARSEGPT_KERNEL(log_sum_exp, void, const float* x, int64_t count, float* largest, double* sum);
SPARSEGPT_KERNEL(add_squares, void, float* sums, const float* x, float factor, int64_t count);
}  // namespace sparsegpt::cpu

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// What lies behind the end of every output, to see that it is left alone.
constexpr float guard = 1234.5f;
constexpr int64_t guards = 20;

std::vector<float> guarded(int64_t count, float value) {
  std::vector<float> out(static_cast<size_t>(count + guards), guard);
  std::fill_n(out.begin(), count, value);
  return out;
}

bool guard_intact(const std::vector<float>& out) {
  for (size_t i = out.size() - guards; i < out.size(); ++i)
    if (out[i] != guard) return false;
  return true;
}

// Saves and restores SPARSEGPT_CPU.
class LevelVariable {
 public:
  LevelVariable() {
    if (const char* value = std::getenv("SPARSEGPT_CPU")) saved_ = value;
  }
  ~LevelVariable() { saved_.empty() ? unsetenv("SPARSEGPT_CPU") : setenv("SPARSEGPT_CPU", saved_.c_str(), 1); }

 private:
  std::string saved_;
};

}  // namespace

TEST("levels: SPARSEGPT_CPU picks one, an unknown name lists what there is") {
  const LevelVariable restore;
  const auto levels = cpu::available_levels();
  CHECK(levels.front() == cpu::Level::baseline);
  std::string names;
  for (cpu::Level level : levels) {
    setenv("SPARSEGPT_CPU", cpu::level_name(level), 1);
    CHECK(cpu::selected_level() == level);
    names += (names.empty() ? "" : ", ") + std::string(cpu::level_name(level));
  }
  setenv("SPARSEGPT_CPU", "mmx", 1);
  CHECK_THROWS_CODE(cpu::selected_level(), "DEVICE_UNAVAILABLE", names);
  CHECK_THROWS_CODE(cpu::selected_level(), "DEVICE_UNAVAILABLE", "SPARSEGPT_CPU=mmx");
  CHECK_EQUAL(backend_kind("cpu").probe().reason, std::string("SPARSEGPT_CPU=mmx: this processor has " + names));
  setenv("SPARSEGPT_CPU", "", 1);
  CHECK(cpu::selected_level() == levels.back());
  unsetenv("SPARSEGPT_CPU");
  CHECK(cpu::selected_level() == levels.back());
}

TEST("activations, alone and as gates") {
  Random random(1);
  auto x = random.uniforms(3001, -12, 12);
  for (double special : {0.0,  -0.0,  1e-30, -1e-30, 1e-4,  -1e-4,  0.299, 0.301, 20.0, -20.0,
                         60.0, -60.0, 88.0,  -88.0,  100.0, -100.0, 1e4,   -1e4,  1e10, -1e10})
    x.push_back(static_cast<float>(special));
  const auto up = random.uniforms(static_cast<int64_t>(x.size()));
  for (cpu::Level level : cpu::available_levels()) {
    for (Activation kind : all_activations) {
      describe_case(cpu::level_name(level), ", activation ", static_cast<int>(kind));
      auto y = x, gated = x;
      cpu::activate[level](y.data(), static_cast<int64_t>(y.size()), kind);
      cpu::gate[level](gated.data(), up.data(), static_cast<int64_t>(y.size()), kind);
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK_CLOSE(y[i], activate(x[i], kind), 2e-6);
        CHECK_CLOSE(gated[i], activate(x[i], kind) * up[i], 2e-6);
      }
      for (int64_t count = 0; count <= 40; ++count) {
        auto part = guarded(count, -0.5f), gate = guarded(count, -0.5f);
        cpu::activate[level](part.data(), count, kind);
        cpu::gate[level](gate.data(), up.data(), count, kind);
        for (int64_t i = 0; i < count; ++i) {
          CHECK_CLOSE(part[static_cast<size_t>(i)], activate(-0.5, kind), 2e-6);
          CHECK_CLOSE(gate[static_cast<size_t>(i)], activate(-0.5, kind) * up[static_cast<size_t>(i)], 2e-6);
        }
        CHECK(guard_intact(part) && guard_intact(gate));
      }
    }
  }
}

TEST("GELU by erf keeps its relative accuracy on both sides, up to where float32 ends") {
  // Every exponent of x down to 2^-30, and its whole range densely.
  std::vector<float> x;
  for (int i = -13107; i <= 13107; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
  for (int exponent = -30; exponent < 100; ++exponent)
    for (double sign : {-1.0, 1.0}) x.push_back(static_cast<float>(sign * std::ldexp(1.37, exponent)));
  for (cpu::Level level : cpu::available_levels()) {
    auto y = x;
    cpu::activate[level](y.data(), static_cast<int64_t>(y.size()), Activation::gelu);
    for (size_t i = 0; i < x.size(); ++i) {
      describe_case(cpu::level_name(level), ", GELU(", x[i], ")");
      const double expected = 0.5 * x[i] * std::erfc(-x[i] / std::sqrt(2.0));
      // Denormal results are taken as zero.
      if (std::fabs(expected) < 1e-37) {
        CHECK(std::fabs(y[i] - expected) < 1e-37);
      } else {
        CHECK_CLOSE(y[i] / expected, 1.0, 5e-7);
      }
    }
  }
}

// Otherwise a broken model would be pruned without a word: the solvers find NaN in the Gram matrix.
TEST("activations and sums of exponentials keep NaN") {
  for (cpu::Level level : cpu::available_levels()) {
    for (int64_t at : {0, 5, 37}) {
      for (Activation kind : all_activations) {
        describe_case(cpu::level_name(level), ", activation ", static_cast<int>(kind), ", at ", at);
        std::vector<float> x(38, 1.0f), up(38, 1.0f);
        x[static_cast<size_t>(at)] = NAN;
        auto gated = x;
        cpu::activate[level](x.data(), 38, kind);
        cpu::gate[level](gated.data(), up.data(), 38, kind);
        CHECK(std::isnan(x[static_cast<size_t>(at)]) && std::isnan(gated[static_cast<size_t>(at)]));
      }
      std::vector<float> x(38, 1.0f);
      x[static_cast<size_t>(at)] = NAN;
      float largest;
      double sum;
      cpu::log_sum_exp[level](x.data(), 38, &largest, &sum);
      CHECK(std::isnan(largest + sum));
    }
  }
}

TEST("layer norm and RMS norm") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      Random random(seed);
      const int64_t count = seed <= 20 ? random.integer(1, 70) : random.integer(71, 5000);
      describe_case(cpu::level_name(level), ", seed ", seed, ", count ", count);
      const auto weight = random.uniforms(count), bias = random.uniforms(count);
      auto x = random.normals(count);
      const auto shift = static_cast<float>(random.uniform(-3, 3));
      for (float& value : x) value += shift;
      double mean = 0, squares = 0, variance = 0;
      for (float value : x) {
        mean += value;
        squares += static_cast<double>(value) * value;
      }
      mean /= static_cast<double>(count);
      for (float value : x) variance += (value - mean) * (value - mean);
      variance /= static_cast<double>(count);
      auto normal = guarded(count, NAN), rms = guarded(count, NAN);
      cpu::layer_norm[level](normal.data(), x.data(), weight.data(), bias.data(), count, 1e-5f);
      cpu::rms_norm[level](rms.data(), x.data(), weight.data(), count, 1e-6f);
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK_CLOSE(normal[i], (x[i] - mean) / std::sqrt(variance + 1e-5f) * weight[i] + bias[i], 1e-5);
        CHECK_CLOSE(rms[i], x[i] / std::sqrt(squares / static_cast<double>(count) + 1e-6f) * weight[i], 5e-6);
      }
      CHECK(guard_intact(normal) && guard_intact(rms));
    }
  }
}

TEST("rotary, add and sums of squares") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      Random random(seed);
      const int64_t half = random.integer(1, 70);
      describe_case(cpu::level_name(level), ", seed ", seed, ", half ", half);
      const auto angles = random.uniforms(half, -4, 4);
      std::vector<float> cosine, sine;
      for (float angle : angles) {
        cosine.push_back(std::cos(angle));
        sine.push_back(std::sin(angle));
      }
      const auto before = random.uniforms(2 * half), y = random.uniforms(2 * half);
      auto x = before, sum = before, squares = before;
      auto interleaved = before;
      cpu::rotary[level](x.data(), cosine.data(), sine.data(), half, false);
      cpu::rotary[level](interleaved.data(), cosine.data(), sine.data(), half, true);
      cpu::add[level](sum.data(), y.data(), 2 * half);
      cpu::add_squares[level](squares.data(), y.data(), 0.25f, 2 * half);
      const auto split = static_cast<size_t>(half);
      for (size_t i = 0; i < split; ++i) {
        const double a = before[i], b = before[i + split];
        CHECK_CLOSE(x[i], a * cosine[i] - b * sine[i], 1e-6);
        CHECK_CLOSE(x[i + split], b * cosine[i] + a * sine[i], 1e-6);
        const double c = before[2 * i], d = before[2 * i + 1];
        CHECK_CLOSE(interleaved[2 * i], c * cosine[i] - d * sine[i], 1e-6);
        CHECK_CLOSE(interleaved[2 * i + 1], d * cosine[i] + c * sine[i], 1e-6);
      }
      for (size_t i = 0; i < 2 * split; ++i) {
        CHECK_EQUAL(sum[i], before[i] + y[i]);
        CHECK_CLOSE(squares[i], before[i] + 0.25 * y[i] * y[i], 1e-6);
      }
    }
  }
}

TEST("scale and soft cap, small and large values and NaN") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      Random random(seed);
      const int64_t count = random.integer(0, 70);
      const double spread = std::pow(10, random.uniform(-4, 3));
      const auto cap = static_cast<float>(random.uniform(1, 60)), factor = static_cast<float>(random.uniform(-9, 9));
      describe_case(cpu::level_name(level), ", seed ", seed, ", count ", count, ", spread ", spread, ", cap ", cap);
      const auto before = random.uniforms(count, -spread, spread);
      auto capped = guarded(count, 0), scaled = guarded(count, 0);
      std::copy(before.begin(), before.end(), capped.begin());
      std::copy(before.begin(), before.end(), scaled.begin());
      cpu::softcap[level](capped.data(), cap, count);
      cpu::scale[level](scaled.data(), factor, count);
      for (size_t i = 0; i < before.size(); ++i) {
        // Relative even near 0.
        const double expected = cap * std::tanh(static_cast<double>(before[i]) / cap);
        CHECK_CLOSE(capped[i] / expected, 1.0, 2e-6);
        CHECK_EQUAL(scaled[i], before[i] * factor);
      }
      CHECK(guard_intact(capped) && guard_intact(scaled));
    }
    std::vector<float> bad(37, 1.0f);
    bad[3] = bad[36] = NAN;
    cpu::softcap[level](bad.data(), 30, 37);
    CHECK(std::isnan(bad[3]) && std::isnan(bad[36]) && !std::isnan(bad[4]));
  }
}

TEST("log of a sum of exponentials") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      Random random(seed);
      const int64_t count = seed <= 25 ? random.integer(1, 70) : random.integer(71, 9000);
      const double spread = random.uniform(0, 60), shift = random.uniform(-300, 300);
      describe_case(cpu::level_name(level), ", seed ", seed, ", count ", count);
      const auto x = random.uniforms(count, shift - spread, shift + spread);
      float largest = NAN, expected_largest = x[0];
      double sum = NAN, expected = 0;
      cpu::log_sum_exp[level](x.data(), count, &largest, &sum);
      for (float value : x) expected_largest = std::max(expected_largest, value);
      for (float value : x) expected += std::exp(static_cast<double>(value) - expected_largest);
      CHECK_EQUAL(largest, expected_largest);
      CHECK_CLOSE(sum / expected, 1.0, 1e-6);
    }
  }
}

TEST("all_finite sees one bad value anywhere, and no others") {
  for (cpu::Level level : cpu::available_levels()) {
    for (int64_t count = 0; count <= 70; ++count) {
      describe_case(cpu::level_name(level), ", count ", count);
      std::vector<float> x(static_cast<size_t>(count) + 1, FLT_MAX);
      for (size_t i = 0; i < x.size(); i += 2) x[i] = i % 4 == 0 ? -FLT_MAX : 1e-45f;
      x.back() = NAN;  // not part of the span
      CHECK(cpu::all_finite[level](x.data(), count));
      for (size_t at = 0; at < static_cast<size_t>(count); ++at) {
        const float good = x[at];
        for (float bad : {INFINITY, -INFINITY, NAN}) {
          x[at] = bad;
          CHECK(!cpu::all_finite[level](x.data(), count));
        }
        x[at] = good;
      }
    }
  }
}
