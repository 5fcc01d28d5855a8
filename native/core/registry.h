// The kinds of backends there are. Nobody above knows one by name: what differs between them is said here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace sparsegpt {

struct DeviceInfo {
  std::string name;
  uint64_t memory = 0;  // bytes of its own; 0: the process's
};

// What there is of a kind; `reason` says why there is no device and what to do, and is empty when there is one.
struct Availability {
  std::vector<DeviceInfo> devices;
  std::string reason;
};

class BackendKind {
 public:
  virtual ~BackendKind() = default;
  // As users name it: "cpu", "cuda".
  virtual const char* name() const = 0;
  // See Backend::in_host_memory.
  virtual bool in_host_memory() const = 0;
  // Whether what is read from files arrives while other operations run, so that it pays to ask early.
  virtual bool loads_ahead() const = 0;
  virtual Availability probe() const = 0;
  // A backend on device `index` of those that probe() lists. threads: of the CPU, 0 for one per core. Throws DEVICE_UNAVAILABLE
  // with the reason, OUT_OF_MEMORY.
  virtual std::shared_ptr<Backend> open(int index, int threads) const = 0;
  virtual const ScratchModel& scratch() const = 0;
};

// In the order in which 'auto' tries them; native/backends.cpp lists them.
const std::vector<const BackendKind*>& backend_kinds();
// Throws DEVICE_UNAVAILABLE.
const BackendKind& backend_kind(const std::string& name);

}  // namespace sparsegpt
