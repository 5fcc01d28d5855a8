// MPI: tensors that are summed over, and copied to, the processes that a launcher has started together.
#include "addon/addon.h"
#include "addon/convert.h"
#include "addon/device_handle.h"
#include "mpi/mpi_transport.h"

namespace sparsegpt::addon {

namespace {

// () => { rank, size, localRank, localSize }; the first call waits for all ranks
Napi::Value start(const Info& info) {
  const MpiWorld& world = MpiTransport::start().world();
  auto result = Napi::Object::New(info.Env());
  result.Set("rank", world.rank);
  result.Set("size", world.size);
  result.Set("localRank", world.local_rank);
  result.Set("localSize", world.local_size);
  return result;
}

// (device, tensor, upper), enqueued; see sparsegpt::all_reduce
void reduce(const Info& info) {
  DeviceHandle::from(info[0]).device().enqueue(
      "allReduce", [tensor = read_tensor(info[1]), upper = read<bool>(info[2])](Backend& backend) {
        all_reduce(backend, MpiTransport::start(), tensor, upper);
      });
}

// (device, tensor, root), enqueued
void copy_to_all(const Info& info) {
  DeviceHandle::from(info[0]).device().enqueue("broadcast",
                                               [tensor = read_tensor(info[1]), root = read<int>(info[2])](Backend& backend) {
                                                 broadcast(backend, MpiTransport::start(), tensor, root);
                                               });
}

// () => bytes that have come from other ranks
Napi::Value received(const Info& info) { return Napi::Number::New(info.Env(), MpiTransport::start().received()); }

// (): waits for all ranks; MPI cannot be used afterwards
void finish(const Info&) { MpiTransport::start().finish(); }

// (code): ends all ranks at once
void abort(const Info& info) { MpiTransport::start().abort(read<int>(info[0])); }

}  // namespace

void export_mpi(Napi::Object exports) {
  auto mpi = Napi::Object::New(exports.Env());
  export_function(mpi, "start", start);
  export_function(mpi, "allReduce", reduce);
  export_function(mpi, "broadcast", copy_to_all);
  export_function(mpi, "received", received);
  export_function(mpi, "finish", finish);
  export_function(mpi, "abort", abort);
  exports.Set("mpi", mpi);
}

}  // namespace sparsegpt::addon
