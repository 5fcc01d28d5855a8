// Streams, events and memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "cuda_runtime.h"

struct cudaStream_st {
  int device = 0;
  std::deque<std::function<void()>> waiting;
  uint64_t finished = 0, running = 0;
  uint64_t end() const { return finished + running + waiting.size(); }
  std::multimap<size_t, void*> freed;  // given back in the order of the stream
};
struct cudaEvent_st {
  int device = 0;
  cudaStream_t stream = nullptr;
  uint64_t position = 0;
  std::shared_ptr<double> seconds = {};  // when the stream came to it; null without timing
};

namespace {

// Held by whoever calls the runtime: the device is one, whichever thread runs what is in its streams.
std::recursive_mutex device;
std::vector<cudaStream_t> streams;
std::minstd_rand randomness(1);

// What tests ask for.
int copies_before_failure = -1;
constexpr size_t plenty = size_t{1} << 36;
struct Memory {
  size_t limit = plenty, taken = 0;
  struct Block {
    size_t bytes;
    int device;
  };
  std::map<void*, Block> blocks;
} device_memory, host_memory;
// Of the device's memory, what has been taken and not been given back, in the order of the calls.
size_t in_use = 0, most_in_use = 0;
thread_local int selected = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

void run_until(cudaStream_t stream, uint64_t position) {
  while (stream->finished < position) {
    if (stream->waiting.empty() || stream->running > 0) {
      std::fprintf(stderr, "CUDA emulation: streams wait for each other\n");
      std::abort();
    }
    const auto work = std::move(stream->waiting.front());
    stream->waiting.pop_front();
    stream->running = 1;
    work();
    stream->running = 0;
    ++stream->finished;
  }
}

// Some other stream gets on with its work, or none.
void pass_time() {
  const auto chance = randomness();
  const cudaStream_t stream = streams[chance / 8 % streams.size()];
  if (chance % 8 == 0 && stream->running == 0)
    run_until(stream, stream->finished + stream->waiting.size() * (chance % 3) / 2);
}

void poison(void* memory, size_t bytes) { std::memset(memory, 0xff, bytes); }

}  // namespace

namespace emulation {

void require_device(int device) {
  if (device == selected) return;
  std::fprintf(stderr, "CUDA emulation: a call for device %d while device %d is selected\n", device, selected);
  std::abort();
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  require_device(stream->device);
  Lock lock(device);
  stream->waiting.push_back(std::move(work));
  pass_time();
}

}  // namespace emulation

cudaError_t cudaSetDevice(int device) {
  selected = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = selected;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  Lock lock(device);
  *stream = new cudaStream_st;
  (*stream)->device = selected;
  streams.push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emulation::require_device(stream->device);
  Lock lock(device);
  run_until(stream, stream->end());
  for (const auto& [bytes, memory] : stream->freed) cudaFree(memory);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  emulation::require_device(stream->device);
  Lock lock(device);
  run_until(stream, stream->end());
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  Lock lock(device);
  for (const cudaStream_t stream : streams)
    if (stream->device == selected) run_until(stream, stream->end());
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  emulation::require_device(event->device);
  Lock lock(device);
  if (event->stream != nullptr) emulation::enqueue(stream, [event = *event] { run_until(event.stream, event.position); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new cudaEvent_st;
  (*event)->device = selected;
  if ((flags & cudaEventDisableTiming) == 0) (*event)->seconds = std::make_shared<double>();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  emulation::require_device(event->device);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emulation::require_device(event->device);
  emulation::require_device(stream->device);
  Lock lock(device);
  if (event->seconds) {
    emulation::enqueue(stream, [seconds = event->seconds] {
      *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
  }
  event->stream = stream;
  event->position = stream->end();
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  emulation::require_device(event->device);
  Lock lock(device);
  if (event->stream != nullptr) run_until(event->stream, event->position);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  Lock lock(device);
  for (const cudaEvent_t event : {start, end})
    if (!event->seconds || event->stream == nullptr || event->stream->finished < event->position) return cudaErrorUnknown;
  *milliseconds = static_cast<float>((*end->seconds - *start->seconds) * 1e3);
  return cudaSuccess;
}

// Memory that was given back is taken again at once, though what used it may not have run yet: on one stream that is in order.
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream) {
  emulation::require_device(stream->device);
  Lock lock(device);
  const auto place = stream->freed.find(bytes);
  if (place != stream->freed.end()) {
    *memory = place->second;
    stream->freed.erase(place);
  } else if (const cudaError_t status = cudaMalloc(memory, bytes); status != cudaSuccess) {
    return status;
  }
  in_use += bytes;
  most_in_use = std::max(most_in_use, in_use);
  emulation::enqueue(stream, [=, taken = *memory] { poison(taken, bytes); });
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  Lock lock(device);
  const size_t bytes = device_memory.blocks.at(memory).bytes;
  in_use -= bytes;
  emulation::enqueue(stream, [=] { poison(memory, bytes); });
  stream->freed.emplace(bytes, memory);
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  Lock lock(device);
  for (const cudaStream_t stream : streams) {
    if (stream->device != selected) continue;
    for (const auto& [bytes, memory] : stream->freed) cudaFree(memory);
    stream->freed.clear();
  }
  return cudaSuccess;
}

namespace {

cudaError_t take(Memory& from, void** memory, size_t bytes) {
  Lock lock(device);
  if (bytes > from.limit - std::min(from.limit, from.taken)) return cudaErrorMemoryAllocation;
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  poison(*memory, bytes);
  from.blocks[*memory] = {bytes, selected};
  from.taken += bytes;
  return cudaSuccess;
}

cudaError_t give(Memory& to, void* memory) {
  Lock lock(device);
  const auto block = to.blocks.find(memory);
  if (&to == &device_memory) emulation::require_device(block->second.device);
  to.taken -= block->second.bytes;
  to.blocks.erase(block);
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) { return take(device_memory, memory, bytes); }
cudaError_t cudaFree(void* memory) { return give(device_memory, memory); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return take(host_memory, memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return give(host_memory, memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  Lock lock(device);
  if (kind == cudaMemcpyHostToDevice && copies_before_failure >= 0 && copies_before_failure-- == 0) return cudaErrorUnknown;
  emulation::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  emulation::enqueue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}

// For tests, which load the library: the copy to the device after `copies` more fails.
extern "C" __attribute__((visibility("default"))) void emulation_fail_copy(int copies) {
  Lock lock(device);
  copies_before_failure = copies;
}

// So many bytes more can be taken of the device's memory and of pinned memory, or as many as anyone likes (0).
extern "C" __attribute__((visibility("default"))) void emulation_limit_memory(size_t device_bytes, size_t host_bytes) {
  Lock lock(device);
  device_memory.limit = device_bytes > 0 ? device_memory.taken + device_bytes : plenty;
  host_memory.limit = host_bytes > 0 ? host_memory.taken + host_bytes : plenty;
}

// What has been in use of the device's memory at once since the last call, beyond what was then.
extern "C" __attribute__((visibility("default"))) size_t emulation_memory_since() {
  static size_t before = 0;
  Lock lock(device);
  const size_t more = most_in_use - before;
  before = most_in_use = in_use;
  return more;
}
