// A device as JavaScript holds it: the queue, and the way back from its thread to the JavaScript thread.
#pragma once

#include <napi.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "core/device.h"

namespace sparsegpt::addon {

class DeviceHandle {
 public:
  DeviceHandle(Napi::Env env, std::shared_ptr<Backend> backend);
  ~DeviceHandle();
  DeviceHandle(const DeviceHandle&) = delete;
  DeviceHandle& operator=(const DeviceHandle&) = delete;

  static DeviceHandle& from(const Napi::Value& value);

  Device& device() { return *device_; }

  // A promise for the completion of everything enqueued so far; it rejects with the first failure.
  Napi::Promise synchronize(Napi::Env env);

  // Enqueues `run`, which reads or writes the memory behind `value`, and keeps `value` alive until it has run.
  void enqueue_with(const Napi::Value& value, const char* operation, std::function<void(Backend&)> run);

  // Stops the queue; what is still in it is dropped, and promises that are pending reject with ABORTED.
  void close();

 private:
  // What waits for the queue: a promise, or a value that must stay alive.
  struct Wait {
    napi_deferred deferred = nullptr;
    Napi::ObjectReference value;
  };
  // The news from the queue that a wait has ended.
  struct Ended {
    uint64_t wait;
    std::optional<Error> failure;
  };

  // Adds a wait and keeps Node alive until it has ended. Throws DEVICE_UNAVAILABLE when the device is closed.
  uint64_t expect(Napi::Env env, Wait wait);
  // Tells the JavaScript thread; called on the queue's.
  void tell(uint64_t wait, const std::optional<Error>& failure);
  // Settles the promise or drops the value. Throws nothing: the environment may be terminating, and Node has no handler.
  void end(const Ended& ended) noexcept;
  void stop();
  static void stop_at_exit(void* handle);

  napi_env env_;
  napi_threadsafe_function to_js_ = nullptr;
  // By number, in the order of enqueuing; JavaScript thread only.
  std::map<uint64_t, Wait> waits_;
  uint64_t next_wait_ = 0;
  std::unique_ptr<Device> device_;
};

}  // namespace sparsegpt::addon
