#include "addon/addon.h"

static Napi::Object init(Napi::Env, Napi::Object exports) {
  sparsegpt::addon::export_devices(exports);
  sparsegpt::addon::export_tensors(exports);
  sparsegpt::addon::export_files(exports);
  sparsegpt::addon::export_operations(exports);
  sparsegpt::addon::export_mpi(exports);
  return exports;
}
NODE_API_MODULE(sparsegpt, init)
