// A device: a backend and a queue that feeds it. Operations are enqueued from any thread and run in order on one native
// thread, as on a CUDA stream. Several devices may share a backend; their operations then take turns, and each has its own
// errors, so that callers who know nothing of each other do not see each other's failures.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/backend.h"
#include "core/error.h"

namespace sparsegpt {

// Operations that can be carried out more than once. What advances is `pass` steps further on than it was recorded.
struct RecordedStep {
  const char* operation;
  std::function<void(Backend&, int64_t pass)> run;
};
using Recording = std::deque<RecordedStep>;

class Device {
 public:
  explicit Device(std::shared_ptr<Backend> backend);
  // Drops what is still queued and waits for the running operation.
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Backend& backend() { return *backend_; }

  // `operation` is named in the error message. After a failure the operations that follow are skipped up to the next
  // synchronisation, which reports it.
  void enqueue(const char* operation, std::function<void(Backend&)> run);

  // Enqueues all of a recording's steps.
  void enqueue(const std::shared_ptr<const Recording>& recording, int64_t pass);

  // Calls `done` on the queue thread once everything enqueued before has run, with the first failure since the last
  // synchronisation, if any. When the device is destroyed first, `done` is dropped.
  void synchronize(std::function<void(const std::optional<Error>&)> done);

  // Calls `done` on the queue thread once everything enqueued before has run or been skipped; leaves failures alone.
  void finally(std::function<void()> done);

  // Synchronises, blocking; throws the failure.
  void synchronize();

  // Seconds that the operations took since the last call, by name. The first call returns nothing and starts the measuring:
  // from then on the backend is waited for after each operation. Call it when the queue is empty, after a synchronisation.
  std::map<std::string, double> profile();

  // Drops what is queued and stops; called before the process's JavaScript environment goes away.
  void stop();

 private:
  struct Task {
    const char* operation;
    std::function<void(Backend&)> run;
    std::function<void(const std::optional<Error>&)> done;
    bool clears_failure = false;
  };
  void push(Task task);
  void work();
  void wait_for_backend();
  void run(const Task& task);

  std::shared_ptr<Backend> backend_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  bool stopping_ = false;
  std::optional<Error> failure_;
  std::atomic<bool> profiling_{false};
  std::map<std::string, double> profile_;
  std::thread thread_;
};

}  // namespace sparsegpt
