// What happens when a page of a mapped file cannot be read, because the file has become shorter or its disk fails: the system
// raises SIGBUS, which would end the process.
#pragma once

#include <cstddef>

namespace sparsegpt {

struct GuardedRange;

// While it lives, a page in [begin, begin + bytes) that cannot be read, and what lies behind it, reads as zeros, and failed()
// tells. Elsewhere SIGBUS does what it did before.
class PageFaultGuard {
 public:
  PageFaultGuard(const std::byte* begin, size_t bytes);
  ~PageFaultGuard();
  PageFaultGuard(const PageFaultGuard&) = delete;
  PageFaultGuard& operator=(const PageFaultGuard&) = delete;

  bool failed() const;

 private:
  GuardedRange* range_;
};

}  // namespace sparsegpt
