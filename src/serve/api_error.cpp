// SPDX-License-Identifier: Apache-2.0
#include "serve/api_error.h"

#include "json_text.h"

namespace farskip {

std::string ApiError::body() const {
  using nlohmann::ordered_json;
  const char* const type = status_ >= 500   ? "server_error"
                           : status_ == 401 ? "authentication_error"
                                            : "invalid_request_error";
  return json_text({{"error",
                     {{"message", what()},
                      {"type", type},
                      {"param", nullptr},
                      {"code", code_.empty() ? ordered_json() : ordered_json(code_)}}}});
}

}  // namespace farskip
