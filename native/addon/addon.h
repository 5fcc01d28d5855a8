// The binding, by theme: each function adds what it has to the addon's exports. Its TypeScript mirror is src/native/addon.ts.
#pragma once

#include <napi.h>

namespace sparsegpt::addon {

void export_devices(Napi::Object exports);
void export_tensors(Napi::Object exports);
void export_files(Napi::Object exports);
void export_operations(Napi::Object exports);

template <typename Function>
void export_function(Napi::Object exports, const char* name, const Function& function) {
  exports.Set(name, Napi::Function::New(exports.Env(), function, name));
}

}  // namespace sparsegpt::addon
