// Brings tensors from mapped files to the device while kernels run: on a thread of its own, since touching mapped pages waits
// for the disk, and on a stream of its own.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "cuda/lane.h"

namespace sparsegpt::cuda {

class Context;

// Puts rows that have reached the device into their place, from row `first` on.
using PlaceRows = std::function<void(cudaStream_t, const Tensor& rows, int64_t first)>;

// A tensor on its way.
struct Load {
  Load(const char* operation, Tensor in, std::shared_ptr<Storage> out, std::byte* device, PlaceRows place);
  ~Load();
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  const char* operation;
  Tensor in;  // in host memory that does not change
  std::shared_ptr<Storage> out;  // kept until everything that writes it is in a stream
  std::byte* device;  // where the rows go, one after another,
  PlaceRows place;  // unless this is given
  cudaEvent_t event = nullptr;  // before the load: when the memory may be written; after it: when it has been
  enum { waiting, running, finished } state = waiting;
  std::exception_ptr failure;
};

class Loader {
 public:
  explicit Loader(Context& context);
  ~Loader() { stop(); }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // What is in the user's stream so far may still use the memory.
  void start(std::shared_ptr<Load> load, cudaStream_t user);
  // Makes the user's stream wait for the load. One whose turn has not come is done on the user's lane: what is needed now does
  // not wait for what is loaded ahead. Throws what has gone wrong.
  void finish(Load& load, Lane& user);
  // Throws the first failure since the last call, also of what nobody has used.
  void check_failure();
  // Drops what waits.
  void stop();

 private:
  void work();
  void run(Load& load, Lane& lane);

  Context& context_;
  Lane lane_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Load>> waiting_;
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sparsegpt::cuda
