// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the server answers to each request, whatever carries these.

#include <memory>
#include <string>

#include "serve/api_request.h"
#include "serve/generation_loop.h"

namespace farskip {

struct HttpRequest {
  std::string method, path, body, authorization;
};

/// A body that is made piece by piece. Destroying it gives up what it is made of.
class ReplyBody {
 public:
  virtual ~ReplyBody() = default;
  /// Adds what has come, after waiting for it for a moment; false with the last piece. May throw: the body is
  /// then cut off.
  virtual bool next(std::string& to) = 0;
};
struct HttpReply {
  int status = 200;
  std::string content_type = "application/json", body{};
  std::shared_ptr<ReplyBody> rest{};  // the body, instead
};

struct ApiOptions {
  std::string api_key{};  // empty: none is asked for
  std::chrono::seconds timeout{600};
};

class Api {
 public:
  Api(ServedModel model, GenerationLoop& loop, ServeMetrics& metrics, ApiOptions options);
  /// Any number of threads may call it. Every error is an answer.
  HttpReply answer(const HttpRequest& request);

 private:
  HttpReply route(const HttpRequest& request);
  HttpReply complete(ApiRequest request);
  HttpReply list_models() const;
  HttpReply health() const;
  void authorize(const HttpRequest& request) const;

  const ServedModel model_;
  GenerationLoop& loop_;
  ServeMetrics& metrics_;
  const ApiOptions options_;
  std::int64_t started_;  // seconds since 1970
};

}  // namespace farskip
