// Fork-join over a fixed set of threads. The caller works too, so a pool of one thread has no workers.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/scratch.h"

namespace sparsegpt {

// 0 stands for one thread per core.
int thread_count(int wanted);

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) once for every index in [0, count); `thread` is in [0, threads()). Indices are handed out
  // dynamically, so results must not depend on which thread gets which. The first exception is rethrown here.
  // Not reentrant: a body must not call parallel_for.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) {
    if (count <= 0) return;
    if (count == 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    run(
        count, [](const void* context, int64_t index, int thread) { (*static_cast<const Body*>(context))(index, thread); },
        &body);
  }

  // An uninitialised array for the operation that runs now, given back when the returned object dies:
  //
  //   const auto rows = pool.scratch<float>(pool.threads() * columns);   // of thread t: rows.data() + t * columns
  //
  // Only on the thread that calls parallel_for, outside of it. Every temporary that grows with a matrix belongs here.
  template <typename T>
  Scratch<T> scratch(int64_t count) {
    return Scratch<T>(scratch_, count);
  }
  const ScratchPool& scratch_pool() const { return scratch_; }

 private:
  using Call = void (*)(const void*, int64_t, int);
  void run(int64_t count, Call call, const void* context);
  void work(int thread);
  void drain(int thread);

  ScratchPool scratch_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  bool open_ = false;  // to workers that come now
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<int> running_{0};  // workers
  std::exception_ptr failure_;
};

}  // namespace sparsegpt
