// Backends and devices.
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "addon/addon.h"
#include "addon/convert.h"
#include "addon/device_handle.h"
#include "core/library_loader.h"
#include "core/pages.h"
#include "core/registry.h"
#include "core/thread_pool.h"
#include "cpu/peak.h"

namespace sparsegpt::addon {

namespace {

// () => [{ kind, inHostMemory, loadsAhead }] in the order in which they are tried
Napi::Value backends(const Info& info) {
  auto all = Napi::Array::New(info.Env());
  for (const BackendKind* kind : backend_kinds()) {
    auto one = Napi::Object::New(info.Env());
    one.Set("kind", kind->name());
    one.Set("inHostMemory", kind->in_host_memory());
    one.Set("loadsAhead", kind->loads_ahead());
    all[all.Length()] = one;
  }
  return all;
}

// (kind) => { devices: [{ name, memory }], reason }; reason is empty when there is a device
Napi::Value probe(const Info& info) {
  const Availability there = backend_kind(read<std::string>(info[0])).probe();
  auto devices = Napi::Array::New(info.Env());
  for (const DeviceInfo& device : there.devices) {
    auto one = Napi::Object::New(info.Env());
    one.Set("name", device.name);
    one.Set("memory", static_cast<double>(device.memory));
    devices[devices.Length()] = one;
  }
  auto result = Napi::Object::New(info.Env());
  result.Set("devices", devices);
  result.Set("reason", there.reason);
  return result;
}

// (folder): where backends that are libraries are looked for, too
void add_folder(const Info& info) { add_library_folder(read<std::string>(info[0])); }

// (prefix): how the command begins that builds such a library
void set_command(const Info& info) { set_build_command(read<std::string>(info[0])); }

// (kind, index, threads) => device
Napi::Value open_device(const Info& info) {
  auto backend = backend_kind(read<std::string>(info[0])).open(read<int>(info[1]), read<int>(info[2]));
  auto handle = std::make_unique<DeviceHandle>(info.Env(), std::move(backend));
  return Napi::External<DeviceHandle>::New(info.Env(), handle.release(), [](Napi::Env, DeviceHandle* dead) { delete dead; });
}

void close_device(const Info& info) { DeviceHandle::from(info[0]).close(); }

Napi::Value describe_device(const Info& info) {
  return Napi::String::New(info.Env(), DeviceHandle::from(info[0]).device().backend().description());
}

// (device) => { operation: seconds }; see Device::profile
Napi::Value profile(const Info& info) {
  auto seconds = Napi::Object::New(info.Env());
  for (const auto& [operation, spent] : DeviceHandle::from(info[0]).device().profile()) seconds.Set(operation, spent);
  return seconds;
}

// (device) => promise for the completion of everything so far
Napi::Value synchronize(const Info& info) { return DeviceHandle::from(info[0]).synchronize(info.Env()); }

// (dtype, threads) => FLOP/s of multiply-adds in registers; takes some ten milliseconds
Napi::Value cpu_peak(const Info& info) {
  ThreadPool pool(thread_count(read<int>(info[1])));
  cpu::multiply_adds(pool, read_dtype(info[0]));  // wakes the threads
  const auto start = std::chrono::steady_clock::now();
  const double flop = cpu::multiply_adds(pool, read_dtype(info[0]));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return Napi::Number::New(info.Env(), flop / seconds.count());
}

// (threads) => bytes/s at which memory is read that is in no cache; takes a second, and two gigabytes
Napi::Value cpu_read_rate(const Info& info) {
  ThreadPool pool(thread_count(read<int>(info[0])));
  const size_t bytes = size_t{1} << 31;
  std::byte* memory = map_pages(bytes);  // huge pages, as tensors have
  std::memset(memory, 1, bytes);
  const auto start = std::chrono::steady_clock::now();
  cpu::read_memory(pool, reinterpret_cast<const uint32_t*>(memory), bytes / sizeof(uint32_t));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  unmap_pages(memory, bytes);
  return Napi::Number::New(info.Env(), static_cast<double>(bytes) / seconds.count());
}

}  // namespace

void export_devices(Napi::Object exports) {
  export_function(exports, "backends", backends);
  export_function(exports, "probe", probe);
  export_function(exports, "addLibraryFolder", add_folder);
  export_function(exports, "setBuildCommand", set_command);
  export_function(exports, "openDevice", open_device);
  export_function(exports, "closeDevice", close_device);
  export_function(exports, "describeDevice", describe_device);
  export_function(exports, "profile", profile);
  export_function(exports, "synchronize", synchronize);
  export_function(exports, "cpuPeak", cpu_peak);
  export_function(exports, "cpuReadRate", cpu_read_rate);
}

}  // namespace sparsegpt::addon
