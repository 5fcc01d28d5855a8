#include "core/thread_pool.h"

#include <algorithm>

namespace sparsegpt {

int thread_count(int wanted) {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

namespace {

// Operations follow each other within microseconds, so a short spin saves most sleeps; it is bounded so that an idle
// device costs nothing.
constexpr int spin_rounds = 4000;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    ++generation_;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, Call call, const void* context) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    count_ = count;
    call_ = call;
    context_ = context;
    next_ = 0;
    failure_ = nullptr;
    running_ = static_cast<int>(workers_.size());
    ++generation_;
  }
  wake_.notify_all();
  drain(0);
  for (int i = 0; i < spin_rounds && running_ > 0; ++i) pause_cpu();
  if (running_ > 0) {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return running_ == 0; });
  }
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::drain(int thread) {
  for (;;) {
    const int64_t index = next_.fetch_add(1);
    if (index >= count_) return;
    try {
      call_(context_, index, thread);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = count_;
    }
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < spin_rounds && generation_ == seen; ++i) pause_cpu();
    if (generation_ == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_ != seen; });
    }
    {
      // The lock orders this read after the writes of run().
      std::lock_guard<std::mutex> lock(mutex_);
      seen = generation_;
    }
    if (stopping_) return;
    drain(thread);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--running_ == 0) idle_.notify_all();
  }
}

}  // namespace sparsegpt
