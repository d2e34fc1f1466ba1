// SPDX-License-Identifier: Apache-2.0
#pragma once
// Answers of the server that are no success.

#include <stdexcept>
#include <string>

namespace farskip {

/// A request that is not served: the HTTP status, and what the client is told.
class ApiError : public std::runtime_error {
 public:
  /// `code`: as OpenAI names some errors ("model_not_found"); may be empty.
  ApiError(int status, const std::string& message, std::string code = {})
      : std::runtime_error(message), status_(status), code_(std::move(code)) {}
  int status() const { return status_; }
  /// OpenAI's error object: {"error": {"message", "type", "param", "code"}}.
  std::string body() const;

 private:
  int status_;
  std::string code_;
};

}  // namespace farskip
