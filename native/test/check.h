// The test harness: registration, checks that say what they saw, and random data that is the same on every machine.
//
//   TEST("thread pool runs every index once") {
//     for (uint64_t seed = 1; seed <= 5; ++seed) {
//       Random random(seed);
//       const int64_t count = random.integer(1, 70);
//       describe_case("seed ", seed, ", count ", count);    // printed with the failures that follow
//       CHECK_CLOSE(actual, expected, 1e-6);
//     }
//   }
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"

namespace sparsegpt::test {

struct Test {
  const char* name;
  void (*run)();
};

// All tests, in the order of registration (by file, then from top to bottom).
std::vector<Test>& tests();

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// Records a failure of the running test, which goes on. From one thread at a time.
void fail(const char* file, int line, const std::string& message);
// What is being tried, for the failures that follow in this test.
void set_case(const std::string& text);

template <typename... Parts>
void describe_case(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  set_case(text.str());
}

// Within `tolerance`, absolute below 1 and relative above; NaN is never close, equal infinities are.
inline bool close(double actual, double expected, double tolerance) {
  return actual == expected || std::fabs(actual - expected) <= tolerance * std::fmax(1.0, std::fabs(expected));
}

// SplitMix64 (Steele, Lea, Flood 2014). std's distributions differ between standard libraries; these do not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  // In [low, high], both included.
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  // Nearly normal: mean 0, variance 1.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  bool flip() { return (bits() & 1) != 0; }

  std::vector<float> uniforms(int64_t count, double low = -1, double high = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(uniform(low, high));
    return values;
  }
  std::vector<float> normals(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(normal());
    return values;
  }

 private:
  uint64_t state_;
};

}  // namespace sparsegpt::test

#define SPARSEGPT_JOIN_(a, b) a##b
#define SPARSEGPT_JOIN(a, b) SPARSEGPT_JOIN_(a, b)

#define TEST(name)                                                                                                       \
  static void SPARSEGPT_JOIN(test_, __LINE__)();                                                                         \
  static const ::sparsegpt::test::Registration SPARSEGPT_JOIN(registration_, __LINE__)(name,                             \
                                                                                       SPARSEGPT_JOIN(test_, __LINE__)); \
  static void SPARSEGPT_JOIN(test_, __LINE__)()

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) ::sparsegpt::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_EQUAL(actual, expected)                                                \
  do {                                                                               \
    const auto actual_value = (actual);                                              \
    const auto expected_value = (expected);                                          \
    if (!(actual_value == expected_value)) {                                         \
      std::ostringstream text_;                                                      \
      text_ << #actual << " is " << actual_value << ", expected " << expected_value; \
      ::sparsegpt::test::fail(__FILE__, __LINE__, text_.str());                      \
    }                                                                                \
  } while (false)

#define CHECK_CLOSE(actual, expected, tolerance)                                     \
  do {                                                                               \
    const double actual_value = (actual), expected_value = (expected);               \
    if (!::sparsegpt::test::close(actual_value, expected_value, tolerance)) {        \
      std::ostringstream text_;                                                      \
      text_.precision(9);                                                            \
      text_ << #actual << " is " << actual_value << ", expected " << expected_value; \
      ::sparsegpt::test::fail(__FILE__, __LINE__, text_.str());                      \
    }                                                                                \
  } while (false)

// The expression throws Error with this code, and the message contains `text`.
#define CHECK_THROWS_CODE(expression, expected_code, text)                                                     \
  do {                                                                                                         \
    std::string seen_ = "nothing";                                                                             \
    bool right_ = false;                                                                                       \
    try {                                                                                                      \
      expression;                                                                                              \
    } catch (const ::sparsegpt::Error& error_) {                                                               \
      seen_ = error_.code() + ": " + error_.what();                                                            \
      right_ = error_.code() == (expected_code) && std::string(error_.what()).find(text) != std::string::npos; \
    }                                                                                                          \
    if (!right_)                                                                                               \
      ::sparsegpt::test::fail(__FILE__, __LINE__,                                                              \
                              std::string(#expression) + " threw " + seen_ + ", expected " + (expected_code)); \
  } while (false)
