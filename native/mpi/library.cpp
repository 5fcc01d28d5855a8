// MPI itself: the only file that includes its header.
#include <mpi.h>

#include <string>

#include "core/error.h"
#include "mpi/mpi_library.h"

namespace {

using sparsegpt::MpiWorld;

MpiWorld start() {
  int started = 0, provided = 0;
  MPI_Initialized(&started);
  // The queue's thread calls while it works, the main thread at the beginning and the end; an abort may come at any time.
  if (!started)
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  else
    MPI_Query_thread(&provided);
  if (provided < MPI_THREAD_SERIALIZED)
    throw sparsegpt::Error("DEVICE_UNAVAILABLE",
                           "this MPI allows no calls from several threads (MPI_THREAD_SERIALIZED is needed)");
  MpiWorld world{};
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.size);
  MPI_Comm machine;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world.rank, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &world.local_rank);
  MPI_Comm_size(machine, &world.local_size);
  MPI_Comm_free(&machine);
  return world;
}

void all_to_all(const std::byte* send, std::byte* receive, int bytes) {
  MPI_Alltoall(send, bytes, MPI_BYTE, receive, bytes, MPI_BYTE, MPI_COMM_WORLD);
}

void all_gather(std::byte* all, int bytes) {
  MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, bytes, MPI_BYTE, MPI_COMM_WORLD);
}

void broadcast(std::byte* data, int bytes, int root) { MPI_Bcast(data, bytes, MPI_BYTE, root, MPI_COMM_WORLD); }

void finish() { MPI_Finalize(); }

void abort(int code) { MPI_Abort(MPI_COMM_WORLD, code); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const sparsegpt::MpiLibrary* sparsegpt_mpi_library() {
  static const sparsegpt::MpiLibrary library{
      SPARSEGPT_MPI_INTERFACE, start, all_to_all, all_gather, broadcast, finish, abort};
  return &library;
}
