// The binding, by theme: each function adds what it has to the addon's exports. Its TypeScript mirror is src/native/addon.ts.
#pragma once

#include <napi.h>

#include <exception>
#include <new>

#include "core/error.h"

namespace sparsegpt::addon {

using Info = Napi::CallbackInfo;

// A JavaScript Error with the code of `error`; src/native/failure.ts turns it into a SparseGptError.
inline Napi::Error to_js(Napi::Env env, const Error& error) {
  Napi::Error result = Napi::Error::New(env, error.what());
  result.Set("code", Napi::String::New(env, error.code()));
  return result;
}

// Runs `body`; what it throws becomes a JavaScript error, since any other exception would end the process.
template <typename Body>
auto guarded(const Info& info, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& error) {
    throw to_js(info.Env(), error);
  } catch (const std::bad_alloc&) {
    throw to_js(info.Env(), Error("OUT_OF_MEMORY", "not enough memory"));
  } catch (const std::exception& error) {
    throw to_js(info.Env(), Error("INTERNAL", error.what()));
  }
}

void export_devices(Napi::Object exports);
void export_tensors(Napi::Object exports);
void export_files(Napi::Object exports);
void export_operations(Napi::Object exports);
void export_mpi(Napi::Object exports);

template <typename Function>
void export_function(Napi::Object exports, const char* name, const Function& function) {
  const auto call = [function](const Info& info) { return guarded(info, [&] { return function(info); }); };
  exports.Set(name, Napi::Function::New(exports.Env(), call, name));
}

}  // namespace sparsegpt::addon
