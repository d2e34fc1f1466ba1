// SPDX-License-Identifier: Apache-2.0
#include "serve/api.h"

#include <ctime>
#include <random>

#include "completion_body.h"
#include "json_text.h"
#include "serve/api_error.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::string_view kBearer = "Bearer ", kModels = "/v1/models";

/// In a time that depends on the length of `given` alone.
bool is_equal(std::string_view given, std::string_view key) {
  unsigned difference = given.size() == key.size() ? 0U : 1U;
  for (std::size_t i = 0; i < given.size(); ++i)
    difference |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(key[i % key.size()]);
  return difference == 0;
}

std::int64_t random_seed() {
  std::random_device random;
  return static_cast<std::int64_t>(random());
}

/// As metrics name it: what clients make up is one name.
std::string known_path(const std::string& path, const HttpReply& reply) {
  return reply.status == 404 ? "other" : path.starts_with(kModels) ? std::string(kModels) : path;
}

HttpReply reply_of(const ApiError& error) {
  return {.status = error.status(), .body = error.body()};
}

}  // namespace

Api::Api(ServedModel model, GenerationLoop& loop, ServeMetrics& metrics, ApiOptions options)
    : model_(std::move(model)),
      loop_(loop),
      metrics_(metrics),
      options_(std::move(options)),
      started_(std::time(nullptr)) {}

HttpReply Api::answer(const HttpRequest& request) {
  HttpReply reply;
  try {
    reply = route(request);
  } catch (const ApiError& error) {
    reply = reply_of(error);
  } catch (const UserError& error) {
    reply = reply_of({400, error.what()});
  } catch (const std::exception& error) {
    reply = reply_of({500, error.what()});
  }
  metrics_.count_request(known_path(request.path, reply), reply.status);
  return reply;
}

HttpReply Api::route(const HttpRequest& request) {
  const auto is = [&](std::string_view method, std::string_view path) {
    if (request.path != path) return false;
    if (request.method != method)
      throw ApiError(405, fmt::format("{} is asked for with {}; allowed: {}", path, request.method, method));
    return true;
  };
  if (is("GET", "/health")) return health();
  if (is("GET", "/metrics")) return {.content_type = "text/plain; version=0.0.4", .body = metrics_.text()};
  authorize(request);
  if (is("POST", "/v1/completions"))
    return complete(parse_completion_request(request.body, model_, random_seed()));
  if (is("POST", "/v1/chat/completions"))
    return complete(parse_chat_request(request.body, model_, random_seed()));
  if (is("GET", kModels)) return list_models();
  throw ApiError(404, fmt::format("{} {} is not served; served are /v1/completions, "
                                  "/v1/chat/completions, /v1/models, /health and /metrics",
                                  request.method, printable(request.path)));
}

void Api::authorize(const HttpRequest& request) const {
  if (options_.api_key.empty()) return;
  const std::string_view given = request.authorization;
  if (!given.starts_with(kBearer) || !is_equal(given.substr(kBearer.size()), options_.api_key))
    throw ApiError(401, "the header \"Authorization: Bearer KEY\" is missing or has another key",
                   "invalid_api_key");
}

HttpReply Api::complete(ApiRequest request) {
  const auto deadline = Clock::now() + options_.timeout;
  auto rest = std::make_shared<CompletionBody>(std::move(request), model_, loop_, deadline);
  rest->begin();
  HttpReply reply;
  if (rest->is_stream()) reply.content_type = "text/event-stream";
  if (rest->is_whole())
    rest->next(reply.body);
  else
    reply.rest = std::move(rest);
  return reply;
}

HttpReply Api::list_models() const {
  const ordered_json model = {{"id", model_.name},
                              {"object", "model"},
                              {"created", started_},
                              {"owned_by", "farskip"},
                              {"max_model_len", model_.max_positions}};
  return {.body = json_text({{"object", "list"}, {"data", ordered_json::array({model})}})};
}

HttpReply Api::health() const {
  const bool ends = loop_.refuses_new();
  return {.status = ends ? 503 : 200, .body = json_text({{"status", ends ? "ending" : "ok"}})};
}

}  // namespace farskip
