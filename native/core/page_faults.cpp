#include "core/page_faults.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace sparsegpt {

// The signal handler reads these without a lock. They are used again and never freed; `end` is 0 while one is not in use.
struct GuardedRange {
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<bool> failed{false};
  GuardedRange* next = nullptr;
};

namespace {

std::mutex mutex;
std::atomic<GuardedRange*> ranges{nullptr};
struct sigaction previous;
uintptr_t page_size;

// Only what is allowed in a signal handler: atomics without locks, and system calls.
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<GuardedRange*>::is_always_lock_free);

bool replace_page(uintptr_t address) {
  for (GuardedRange* range = ranges.load(std::memory_order_acquire); range != nullptr; range = range->next) {
    const uintptr_t end = range->end.load(std::memory_order_acquire);
    if (address >= end || address < range->begin.load(std::memory_order_acquire) || range->end != end) continue;
    range->failed = true;
    const uintptr_t page = address / page_size * page_size;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    return mmap(reinterpret_cast<void*>(page), end - page, PROT_READ, flags, -1, 0) != MAP_FAILED;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int reason = errno;
  // One that was sent by a process has no address.
  const bool replaced = info->si_code > 0 && replace_page(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = reason;
  if (replaced) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  // The access, or the process that has sent the signal, is to get what is usual.
  sigaction(SIGBUS, &previous, nullptr);
  if (info->si_code <= 0) raise(SIGBUS);
}

void install() {
  page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action{};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous);
}

}  // namespace

PageFaultGuard::PageFaultGuard(const std::byte* begin, size_t bytes) : range_(nullptr) {
  std::lock_guard<std::mutex> lock(mutex);
  static const bool installed = (install(), true);
  (void)installed;
  for (GuardedRange* range = ranges; range != nullptr && range_ == nullptr; range = range->next)
    if (range->end == 0) range_ = range;
  const bool added = range_ == nullptr;
  if (added) range_ = new GuardedRange;
  range_->failed = false;
  range_->begin = reinterpret_cast<uintptr_t>(begin);
  range_->end.store(reinterpret_cast<uintptr_t>(begin) + bytes, std::memory_order_release);
  if (!added) return;
  range_->next = ranges;
  ranges.store(range_, std::memory_order_release);
}

PageFaultGuard::~PageFaultGuard() {
  std::lock_guard<std::mutex> lock(mutex);
  range_->end = 0;
}

bool PageFaultGuard::failed() const { return range_->failed.load(std::memory_order_acquire); }

}  // namespace sparsegpt
