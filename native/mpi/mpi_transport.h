// MPI as a transport, in a library that is loaded when a job asks for it.
#pragma once

#include <atomic>

#include "core/library_loader.h"
#include "mpi/collectives.h"
#include "mpi/mpi_library.h"

namespace sparsegpt {

// The library's file, and what is said where it cannot be used.
constexpr const char* mpi_library_file = "libsparsegpt_mpi.so";
extern const LibraryNeeds mpi_library_needs;

class MpiTransport : public Transport {
 public:
  // Starts MPI, once in a process. Throws DEVICE_UNAVAILABLE where the library is not built or cannot be loaded.
  static MpiTransport& start();

  int rank() const override { return world_.rank; }
  int size() const override { return world_.size; }
  const MpiWorld& world() const { return world_; }
  void all_to_all(const std::byte* send, std::byte* receive, int bytes) override;
  void all_gather(std::byte* all, int bytes) override;
  void broadcast(std::byte* data, int bytes, int root) override;

  // What has come from other ranks, in bytes. From any thread.
  double received() const { return static_cast<double>(received_.load()); }

  void finish() { library_.finish(); }
  // Ends all ranks, with this code; from any thread.
  [[noreturn]] void abort(int code);

 private:
  MpiTransport();

  const MpiLibrary& library_;
  const MpiWorld world_;
  std::atomic<int64_t> received_{0};
};

}  // namespace sparsegpt
