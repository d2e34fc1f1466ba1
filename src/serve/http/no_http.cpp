// SPDX-License-Identifier: Apache-2.0
// Stands in for HTTP in builds without cpp-httplib.
#include "farskip/base/error.h"
#include "serve/http_server.h"

namespace farskip {

std::string http_library() {
  return {};
}

class HttpServer::Impl {};

HttpServer::HttpServer(const HttpOptions&, Api&) {
  throw InternalError("this build has no HTTP");
}

HttpServer::~HttpServer() = default;

}  // namespace farskip
