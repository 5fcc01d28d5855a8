// The kinds of backends.
#include "core/registry.h"

#include "test/check.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

TEST("registry: the kinds by name, in the order in which they are tried; others are refused") {
  std::string names;
  for (const BackendKind* kind : backend_kinds()) {
    names += std::string(kind->name()) + " ";
    CHECK(&backend_kind(kind->name()) == kind);
  }
  CHECK_EQUAL(names, std::string("cuda cpu "));
  CHECK_THROWS_CODE(backend_kind("tpu"), "DEVICE_UNAVAILABLE", "there is no backend 'tpu'; there are cuda, cpu");
}

TEST("registry: the CPU is one device, whose backend is shared by those who want as many threads") {
  const BackendKind& cpu = backend_kind("cpu");
  CHECK(cpu.in_host_memory() && !cpu.loads_ahead());
  const Availability there = cpu.probe();
  CHECK_EQUAL(there.reason, std::string());
  CHECK_EQUAL(there.devices.size(), size_t{1});
  const auto two = cpu.open(0, 2), again = cpu.open(0, 2), three = cpu.open(0, 3);
  CHECK(two == again && two != three);
  CHECK(three->description().find("3 threads") != std::string::npos);
  CHECK_THROWS_CODE(cpu.open(1, 2), "DEVICE_UNAVAILABLE", "one CPU");
}
