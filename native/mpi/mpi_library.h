// What the library that calls MPI and the program that loads it agree on. The program itself is not linked with MPI.
#pragma once

#include <cstddef>

namespace sparsegpt {

// The processes that a launcher has started together.
struct MpiWorld {
  int rank, size;
  int local_rank, local_size;  // among those of the same machine
};

// Returned by the library's only export; `interface` comes first and is compared before anything else is touched. All ranks make the
// same calls in the same order. A call that fails ends the process, and the launcher all others.
struct MpiLibrary {
  const char* interface;  // a digest of this header as the library was built
  MpiWorld (*start)();  // once in a process; throws DEVICE_UNAVAILABLE
  void (*all_to_all)(const std::byte* send, std::byte* receive,
                     int bytes);  // `bytes` to and from each rank, in the order of ranks
  void (*all_gather)(std::byte* all, int bytes);  // of each rank, whose own lie in their place
  void (*broadcast)(std::byte* data, int bytes, int root);
  void (*finish)();  // waits for all ranks
  void (*abort)(int code);  // ends all ranks; does not return
};

using MpiLibraryEntry = const MpiLibrary* (*)();
constexpr const char* mpi_library_entry = "sparsegpt_mpi_library";

}  // namespace sparsegpt
