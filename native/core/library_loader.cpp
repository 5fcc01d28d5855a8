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

std::string& build_command() {
  static std::string prefix = "npm run build:";
  return prefix;
}

}  // namespace

void set_build_command(const std::string& prefix) {
  std::lock_guard<std::mutex> lock(mutex());
  build_command() = prefix;
}

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

const void* load_library(const std::string& path, const LibraryNeeds& needs, const char* entry_name, const char* interface) {
  // Libraries stay loaded: unloading code that has threads and exit handlers is asking for trouble.
  static std::map<std::string, const void*> libraries;
  std::lock_guard<std::mutex> lock(mutex());
  const void*& library = libraries[path];
  if (library != nullptr) return library;
  const std::string subject = needs.subject, build = build_command() + needs.name;
  if (access(path.c_str(), F_OK) != 0)
    throw Error("DEVICE_UNAVAILABLE",
                subject + " is not built (there is no " + path + "); " + needs.build_where + ": " + build);
  if (needs.before_loading != nullptr) needs.before_loading();
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error("DEVICE_UNAVAILABLE",
                subject + " cannot be loaded: " + (reason != nullptr ? reason : path) + "; " + needs.libraries);
  }
  const auto entry = reinterpret_cast<const void* (*)()>(dlsym(handle, entry_name));
  const void* found = entry != nullptr ? entry() : nullptr;
  if (found == nullptr || std::strcmp(*static_cast<const char* const*>(found), interface) != 0) {
    dlclose(handle);
    throw Error("DEVICE_UNAVAILABLE", path + " belongs to another version of sparsegpt; build it again: " + build);
  }
  library = found;
  return library;
}

const BackendLibrary& load_backend_library(const std::string& path, const LibraryNeeds& needs) {
  return *static_cast<const BackendLibrary*>(load_library(path, needs, backend_library_entry, SPARSEGPT_INTERFACE));
}

}  // namespace sparsegpt
