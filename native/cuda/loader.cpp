#include "cuda/loader.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "cuda/context.h"
#include "cuda/sizes.h"
#include "cuda/status.h"

namespace sparsegpt::cuda {

Load::Load(const char* operation, Tensor in, std::shared_ptr<Storage> out, std::byte* device, PlaceRows place)
    : operation(operation), in(std::move(in)), out(std::move(out)), device(device), place(std::move(place)) {
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
}

Load::~Load() { cudaEventDestroy(event); }

Loader::Loader(Context& context) : context_(context), thread_([this] { work(); }) {}

void Loader::start(std::shared_ptr<Load> load, cudaStream_t user) {
  check(cudaEventRecord(load->event, user), "marking the stream");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(std::move(load));
  }
  changed_.notify_all();
}

void Loader::finish(Load& load, Lane& user) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto place = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& other) { return other.get() == &load; });
  if (place != waiting_.end()) {
    waiting_.erase(place);
    lock.unlock();
    load.state = Load::finished;  // only this thread knows it now
    const auto out = std::exchange(load.out, nullptr);
    try {
      run(load, user);
    } catch (...) {
      load.failure = std::current_exception();
      throw;
    }
    return;
  }
  changed_.wait(lock, [&] { return load.state == Load::finished; });
  if (load.failure) std::rethrow_exception(load.failure);
  check(cudaStreamWaitEvent(user.stream(), load.event, 0), "ordering the streams");
}

void Loader::check_failure() {
  std::exception_ptr failure;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::swap(failure, failure_);
  }
  if (failure) std::rethrow_exception(failure);
}

void Loader::stop() {
  std::deque<std::shared_ptr<Load>> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    dropped.swap(waiting_);
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const auto& load : dropped) load->out.reset();  // which knows the load
}

void Loader::work() {
  for (;;) {
    std::shared_ptr<Load> load;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      load = std::move(waiting_.front());
      waiting_.pop_front();
      load->state = Load::running;
    }
    std::exception_ptr failure;
    try {
      context_.select();
      check(cudaStreamWaitEvent(lane_.stream(), load->event, 0), "ordering the streams");
      const bool wanted = load->out.use_count() > 1;
      if (wanted) run(*load, lane_);
    } catch (...) {
      failure = std::current_exception();
    }
    // After a failure too, since some pieces may be on their way.
    const cudaError_t marked = cudaEventRecord(load->event, lane_.stream());
    try {
      if (!failure) check(marked, "marking the stream");
    } catch (...) {
      failure = std::current_exception();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      load->state = Load::finished;
      load->failure = failure;
      if (!failure_) failure_ = failure;
    }
    changed_.notify_all();
    load->in = {};
    load->out.reset();
  }
}

void Loader::run(Load& load, Lane& lane) {
  const Tensor& in = load.in;
  try {
    if (!load.place) {
      lane.to_device(load.device, in);
    } else {
      const int64_t step = rows_per_tile(in.columns);
      for (int64_t first = 0; first < in.rows; first += step) {
        const Tensor part = in.row_range(first, std::min(step, in.rows - first));
        const Tensor rows = context_.scratch(part.dtype, part.rows, part.columns, lane.stream());
        lane.to_device(rows.bytes(), part);
        load.place(lane.stream(), rows, first);
      }
    }
  } catch (const Error& error) {
    throw Error(error.code(), std::string(error.what()) + " (in " + load.operation + ")");
  }
  in.storage->release_pages(static_cast<size_t>(in.offset), static_cast<size_t>(in.rows * in.stride) * dtype_size(in.dtype));
}

}  // namespace sparsegpt::cuda
