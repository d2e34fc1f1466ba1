// SPDX-License-Identifier: Apache-2.0
#pragma once
// The server as HTTP, by cpp-httplib where the build has it (src/serve/http/).

#include <memory>
#include <string>

#include "farskip/base/log.h"
#include "serve/api.h"

namespace farskip {

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::int32_t port = 8000;        // 0: any that is free
  std::int64_t max_open = 0;       // requests at once
  std::size_t max_body_bytes = 0;  // of a request
};

/// "cpp-httplib VERSION"; empty where this build has no HTTP.
std::string http_library();

/// The server (of a build with HTTP) answers on threads of its own while it lives.
class HttpServer {
 public:
  /// Listens. IoError where the address cannot be had. `api` lives longer.
  HttpServer(const HttpOptions& options, Api& api);
  /// Once all answers that are being sent have been sent.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  int port() const { return port_; }

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
  int port_ = 0;
};

}  // namespace farskip
