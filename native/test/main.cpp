// Runs the tests whose name contains the argument, or all. Exit code 1 when one fails.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>

#include "test/check.h"

namespace sparsegpt::test {

namespace {

constexpr int printed_at_most = 5;  // of one test: a wrong kernel fails for every element

int failures = 0;
std::string current_case;

}  // namespace

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

void set_case(const std::string& text) { current_case = text; }

void fail(const char* file, int line, const std::string& message) {
  if (++failures > printed_at_most) return;
  std::printf("  %s:%d: %s%s%s%s\n", file, line, message.c_str(), current_case.empty() ? "" : " [", current_case.c_str(),
              current_case.empty() ? "" : "]");
}

}  // namespace sparsegpt::test

int main(int argc, char** argv) {
  using namespace sparsegpt::test;
  int passed = 0, failed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    failures = 0;
    current_case.clear();
    const auto start = std::chrono::steady_clock::now();
    std::printf("%s\n", test.name);
    std::fflush(stdout);  // names the test that crashes
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("unexpected exception: ") + error.what());
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (failures > printed_at_most) std::printf("  ... and %d more\n", failures - printed_at_most);
    if (seconds > 1) std::printf("  %.1f s\n", seconds);
    ++(failures == 0 ? passed : failed);
    if (failures > 0) std::printf("  FAILED\n");
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
