// The one exception of the native code: a stable code for programs, a message for people.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace sparsegpt {

// Copies share nothing, unlike those of std::runtime_error: they go from thread to thread.
class Error : public std::exception {
 public:
  // `code` is one of the ErrorCode names of src/errors.ts.
  Error(std::string code, std::string message) : code_(std::move(code)), message_(std::move(message)) {}
  const std::string& code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string code_, message_;
};

}  // namespace sparsegpt
