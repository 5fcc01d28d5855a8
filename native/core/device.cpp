#include "core/device.h"

#include <chrono>
#include <future>
#include <new>

namespace sparsegpt {

Device::Device(std::shared_ptr<Backend> backend) : backend_(std::move(backend)), thread_([this] { work(); }) {}

Device::~Device() { stop(); }

void Device::stop() {
  std::deque<Task> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Device::push(Task task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void Device::enqueue(const char* operation, std::function<void(Backend&)> run) {
  push({operation, std::move(run), nullptr, false});
}

void Device::enqueue(const std::shared_ptr<const Recording>& recording, int64_t pass) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    for (const RecordedStep& step : *recording)
      tasks_.push_back(
          {step.operation, [recording, &step, pass](Backend& backend) { step.run(backend, pass); }, nullptr, false});
  }
  wake_.notify_one();
}

void Device::synchronize(std::function<void(const std::optional<Error>&)> done) {
  push({"synchronize", nullptr, std::move(done), true});
}

void Device::finally(std::function<void()> done) {
  push({"finally", nullptr, [done = std::move(done)](const std::optional<Error>&) { done(); }, false});
}

void Device::synchronize() {
  // The queue alone owns the promise, so that dropping the task breaks it and ends the wait.
  auto promise = std::make_shared<std::promise<std::optional<Error>>>();
  auto result = promise->get_future();
  synchronize([promise](const std::optional<Error>& failure) { promise->set_value(failure); });
  promise.reset();
  std::optional<Error> failure;
  try {
    failure = result.get();
  } catch (const std::future_error&) {
    throw Error("DEVICE_UNAVAILABLE", "the device was stopped");
  }
  if (failure) throw *failure;
}

void Device::work() {
  for (;;) {
    Task task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    if (task.done) {
      if (task.clears_failure) wait_for_backend();
      task.done(failure_);
      if (task.clears_failure) failure_.reset();
    } else if (!failure_) {
      const std::string where = std::string(" (in ") + task.operation + ")";
      try {
        std::lock_guard<std::mutex> turn(backend_->turn);
        run(task);
      } catch (const Error& error) {
        failure_.emplace(error.code(), error.what() + where);
      } catch (const std::bad_alloc&) {
        failure_.emplace("OUT_OF_MEMORY", "not enough memory" + where);
      } catch (const std::exception& error) {
        failure_.emplace("INTERNAL", error.what() + where);
      }
    }
  }
}

void Device::run(const Task& task) {
  if (!profiling_) return task.run(*backend_);
  const auto start = std::chrono::steady_clock::now();
  task.run(*backend_);
  backend_->synchronize();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::lock_guard<std::mutex> lock(mutex_);
  profile_[task.operation] += seconds.count();
}

std::map<std::string, double> Device::profile() {
  std::lock_guard<std::mutex> lock(mutex_);
  profiling_ = true;
  std::map<std::string, double> taken;
  taken.swap(profile_);
  return taken;
}

void Device::wait_for_backend() {
  try {
    std::lock_guard<std::mutex> turn(backend_->turn);
    backend_->synchronize();
  } catch (const Error& error) {
    // What failed first is what is reported.
    if (!failure_) failure_ = error;
  }
}

}  // namespace sparsegpt
