// SPDX-License-Identifier: Apache-2.0
// Stands in for HTTP in builds without cpp-httplib.
#include "farskip/base/error.h"
#include "farskip/serve/http_server.h"

namespace farskip {

void require_http() {
  throw UsageError(
      "this build has no HTTP; install cpp-httplib (scripts/install_dependencies.sh does), configure and "
      "build "
      "again");
}

void serve_http(const HttpOptions&, Api&, GenerationLoop&, const std::function<bool()>&,
                const std::function<void(int)>&) {
  require_http();
}

}  // namespace farskip
