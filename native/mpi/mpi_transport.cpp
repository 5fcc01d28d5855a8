#include "mpi/mpi_transport.h"

#include <unistd.h>

namespace sparsegpt {

const LibraryNeeds mpi_library_needs{"MPI", "mpi", "where an MPI is installed (Debian: openmpi-bin libopenmpi-dev)",
                                     "it needs the MPI that it was built with (docs/many-machines.md)"};

namespace {

const MpiLibrary& library() {
  return *static_cast<const MpiLibrary*>(
      load_library(find_library(mpi_library_file), mpi_library_needs, mpi_library_entry, SPARSEGPT_MPI_INTERFACE));
}

}  // namespace

MpiTransport::MpiTransport() : library_(library()), world_(library_.start()) {}

MpiTransport& MpiTransport::start() {
  static MpiTransport one;
  return one;
}

void MpiTransport::all_to_all(const std::byte* send, std::byte* receive, int bytes) {
  library_.all_to_all(send, receive, bytes);
  received_ += int64_t{bytes} * (size() - 1);
}

void MpiTransport::all_gather(std::byte* all, int bytes) {
  library_.all_gather(all, bytes);
  received_ += int64_t{bytes} * (size() - 1);
}

void MpiTransport::broadcast(std::byte* data, int bytes, int root) {
  library_.broadcast(data, bytes, root);
  if (rank() != root) received_ += bytes;
}

void MpiTransport::abort(int code) {
  library_.abort(code);
  _exit(code);
}

}  // namespace sparsegpt
