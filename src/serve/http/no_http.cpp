// SPDX-License-Identifier: Apache-2.0
// Stands in for HTTP in builds without cpp-httplib.
#include "farskip/base/error.h"
#include "farskip/serve/http_server.h"

namespace farskip {

std::string http_library() {
  return {};
}

void serve_http(const HttpOptions&, Api&, GenerationLoop&, const std::function<bool()>&,
                const std::function<void(int)>&) {
  throw InternalError("this build has no HTTP");
}

}  // namespace farskip
