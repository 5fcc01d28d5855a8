#include "core/library_loader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "core/error.h"

namespace sparsegpt {

namespace {

// Of this file's state.
std::mutex& mutex() {
  static std::mutex one;
  return one;
}

std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
  const std::string file = info.dli_fname;
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

std::vector<std::string>& folders() {
  static std::vector<std::string> all = {own_folder()};
  return all;
}

}  // namespace

void add_library_folder(const std::string& folder) {
  std::lock_guard<std::mutex> lock(mutex());
  folders().push_back(folder);
}

std::string find_library(const std::string& file) {
  std::lock_guard<std::mutex> lock(mutex());
  for (const std::string& folder : folders()) {
    std::string path = folder + "/" + file;
    if (access(path.c_str(), F_OK) == 0) return path;
  }
  return folders().front() + "/" + file;
}

const BackendLibrary& load_backend_library(const std::string& path, const LibraryNeeds& needs) {
  // Libraries stay loaded: unloading code that has threads and exit handlers is asking for trouble.
  static std::map<std::string, const BackendLibrary*> libraries;
  std::lock_guard<std::mutex> lock(mutex());
  const BackendLibrary*& library = libraries[path];
  if (library != nullptr) return *library;
  const std::string backend = needs.backend;
  if (access(path.c_str(), F_OK) != 0)
    throw Error("DEVICE_UNAVAILABLE",
                backend + " is not built (there is no " + path + "); " + needs.build_where + ": " + needs.build);
  if (needs.before_loading != nullptr) needs.before_loading();
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error("DEVICE_UNAVAILABLE",
                backend + " cannot be loaded: " + (reason != nullptr ? reason : path) + "; " + needs.libraries);
  }
  const auto entry = reinterpret_cast<BackendLibraryEntry>(dlsym(handle, backend_library_entry));
  const BackendLibrary* found = entry != nullptr ? entry() : nullptr;
  if (found == nullptr || std::strcmp(found->interface, SPARSEGPT_INTERFACE) != 0) {
    dlclose(handle);
    throw Error("DEVICE_UNAVAILABLE", path + " belongs to another version of sparsegpt; build it again: " + needs.build);
  }
  library = found;
  return *library;
}

}  // namespace sparsegpt
