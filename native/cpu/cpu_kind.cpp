#include "cpu/cpu_kind.h"

#include <map>
#include <mutex>

#include "core/error.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cpu/scratch_model.h"

namespace sparsegpt {

namespace {

class CpuKind : public BackendKind {
 public:
  const char* name() const override { return "cpu"; }
  bool in_host_memory() const override { return true; }
  bool loads_ahead() const override { return false; }

  Availability probe() const override {
    try {
      return {{{cpu::CpuBackend::description(cpu::selected_level(), thread_count(0)), 0}}, ""};
    } catch (const Error& error) {
      return {{}, error.what()};
    }
  }

  // Devices with the same number of threads share a backend: its threads and its memory.
  std::shared_ptr<Backend> open(int index, int threads) const override {
    if (index != 0) throw Error("DEVICE_UNAVAILABLE", "there is one CPU, no device " + std::to_string(index));
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<Backend>> backends;
    std::lock_guard<std::mutex> lock(mutex);
    auto& known = backends[thread_count(threads)];
    auto backend = known.lock();
    if (!backend) known = backend = make_cpu_backend(threads);
    return backend;
  }

  const ScratchModel& scratch() const override { return cpu::scratch_model(); }
};

}  // namespace

const BackendKind& cpu_kind() {
  static const CpuKind kind;
  return kind;
}

}  // namespace sparsegpt
