// The one exception of the native code: a stable code for programs, a message for people.
#pragma once

#include <stdexcept>
#include <string>

namespace sparsegpt {

class Error : public std::runtime_error {
 public:
  // `code` is one of the ErrorCode names of src/errors.ts.
  Error(std::string code, const std::string& message) : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

}  // namespace sparsegpt
