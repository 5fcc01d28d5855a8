// What a device can do. A backend computes the operations of the table (operations.h); it knows nothing of models, files' formats
// or Node. Every operation runs on the device's queue thread, in the order of enqueuing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>

#include "core/operations.h"
#include "core/tensor.h"

namespace sparsegpt {

class Backend {
 public:
  virtual ~Backend() = default;
  // For people: instruction set and threads, or the GPU.
  virtual std::string description() const = 0;

  // Waits until every operation so far has finished, for backends whose operations return earlier, and throws what only
  // showed meanwhile (naming the operation).
  virtual void synchronize() {}
  // Seconds that the device spends on what `enqueue` hands it.
  virtual double time(const std::function<void()>& enqueue) = 0;

  // Held while an operation runs: devices that share a backend take turns.
  std::mutex turn;

  // Memory. Storage allocates when first touched; see Storage::data.
  virtual std::shared_ptr<Storage> allocate(size_t bytes) = 0;
  // Whether its memory is the host's: then operands may lie in mapped files, and what is written anywhere but in them.
  virtual bool in_host_memory() const = 0;

  // The elements of a contiguous tensor from and to the host's memory, in the tensor's type.
  void upload(const Tensor& out, const void* host) {
    require_writable(out);
    require(out.contiguous(), "upload needs a contiguous tensor");
    copy_in(out, host);
  }
  void download(void* host, const Tensor& tensor) {
    require(tensor && tensor.contiguous(), "download needs a contiguous tensor");
    copy_out(host, tensor);
  }

  // Checks the operands, computes, and checks that operands in mapped files were read whole.
  template <typename Operation>
  void run(const Operation& operation) {
    operation.check();
    std::apply([&](const auto&... written) { (require_writable(written), ...); }, operation.writes());
    compute(operation);
    std::apply([&](const auto&... field) { (require_intact(field), ...); }, operation.fields());
  }

 protected:
  virtual void copy_in(const Tensor& out, const void* host) = 0;
  virtual void copy_out(void* host, const Tensor& tensor) = 0;
#define SPARSEGPT_COMPUTE(Operation) virtual void compute(const Operation& operation) = 0;
  SPARSEGPT_OPERATIONS(SPARSEGPT_COMPUTE)
#undef SPARSEGPT_COMPUTE

 private:
  template <typename Field>
  static void require_intact(const Field& field) {
    if constexpr (std::is_same_v<Field, Tensor>)
      if (field) field.storage->require_intact();
  }
  void require_writable(const Tensor& tensor) const {
    require(tensor && !tensor.storage->read_only() && tensor.storage->on_host() == in_host_memory(),
            "a tensor to be written must be in the device's memory");
  }
};

// What a backend's operations take beyond their operands, in bytes, while they run. It needs no device, so that a job can be
// planned on any machine; its tensors have shapes and no elements.
class ScratchModel {
 public:
  virtual ~ScratchModel() = default;
#define SPARSEGPT_SCRATCH(Operation) \
  virtual size_t bytes(const Operation&) const { return 0; }
  SPARSEGPT_OPERATIONS(SPARSEGPT_SCRATCH)
#undef SPARSEGPT_SCRATCH
};

}  // namespace sparsegpt
