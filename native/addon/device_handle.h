// A device as JavaScript holds it: the queue, and the way back from its thread to the JavaScript thread.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

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

  // Stops the queue; what is still in it is dropped.
  void close();

 private:
  using Completion = std::function<void(Napi::Env)>;
  // Runs `completion` on the JavaScript thread. Counted by expect(), so that Node stays alive while something is awaited.
  void complete(Completion completion);
  void expect(Napi::Env env);

  napi_env env_;
  napi_threadsafe_function to_js_ = nullptr;
  int expected_ = 0;  // JavaScript thread only
  std::unique_ptr<Device> device_;
};

}  // namespace sparsegpt::addon
