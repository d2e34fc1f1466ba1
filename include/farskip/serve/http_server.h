// SPDX-License-Identifier: Apache-2.0
#pragma once
// The server as HTTP, by cpp-httplib where the build has it (src/serve/http/).

#include <functional>
#include <string>

#include "farskip/base/log.h"
#include "farskip/serve/api.h"

namespace farskip {

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::int32_t port = 8000;        // 0: any that is free
  std::int64_t max_open = 0;       // requests at once
  std::size_t max_body_bytes = 0;  // of a request
};

/// "cpp-httplib VERSION"; empty where this build has no HTTP.
std::string http_library();

/// Of a build with HTTP. Serves until `stop_requested` says so, then finishes what runs, with
/// loop.refuse_new(). `on_listening` is told the port. IoError where the address cannot be had.
void serve_http(const HttpOptions& options, Api& api, GenerationLoop& loop,
                const std::function<bool()>& stop_requested, const std::function<void(int)>& on_listening);

}  // namespace farskip
