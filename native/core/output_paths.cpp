#include "core/output_paths.h"

#include <fcntl.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <stdio.h>
#endif

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace sparsegpt {

namespace {

// As rename(): 0, or -1 and errno.
int exchange(const char* a, const char* b) {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned exchange_flag = 2;  // RENAME_EXCHANGE, which older libraries do not name
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, exchange_flag));
#elif defined(__APPLE__)
  return renamex_np(a, b, RENAME_SWAP);
#else
  (void)a, (void)b;
  errno = ENOSYS;
  return -1;
#endif
}

}  // namespace

bool exchange_paths(const std::string& a, const std::string& b) {
  if (exchange(a.c_str(), b.c_str()) == 0) return true;
  if (errno == ENOSYS || errno == EINVAL || errno == ENOTSUP) return false;
  throw Error("WRITE_FAILED", a + " and " + b + " cannot change places: " + std::strerror(errno));
}

}  // namespace sparsegpt
