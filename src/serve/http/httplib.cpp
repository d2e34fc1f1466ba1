// SPDX-License-Identifier: Apache-2.0
// The only file that includes cpp-httplib. Written to what its releases from 0.11 (Debian 12) on have in
// common.
#include <httplib.h>
#include <netinet/tcp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "farskip/base/error.h"
#include "serve/api_error.h"
#include "serve/http_server.h"

namespace farskip {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kSpareThreads = 32;  // for health, metrics, and clients that say nothing
constexpr auto kMostBodyTime = 60s;
constexpr int kBacklog = 1024;  // connections that wait to be accepted

/// Reads the body; ApiError 413 for one that is too long, which is read to its end all the same, since the
/// connection lives on, unless it does not end.
std::string read_body(const httplib::ContentReader& read, std::size_t most,
                      const httplib::Response& response) {
  std::string body;
  std::size_t size = 0;
  const auto end = std::chrono::steady_clock::now() + kMostBodyTime;
  const bool is_whole = read([&](const char* data, std::size_t length) {
    size += length;
    if (size <= most) body.append(data, length);
    return size <= 16 * most && std::chrono::steady_clock::now() < end;
  });
  if (size > most || response.status == 413)  // as its length says, or as it turned out
    throw ApiError(413, fmt::format("the body is longer than {} bytes", most));
  if (!is_whole) throw ApiError(400, "the body is cut off, or is encoded in a way that is not served");
  return body;
}

/// `kept`: held until the answer has been sent.
void send(HttpReply reply, httplib::Response& response, std::shared_ptr<void> kept = nullptr) {
  response.status = reply.status;
  if (reply.status == 503) response.set_header("Retry-After", "1");
  if (!reply.rest) return response.set_content(reply.body, reply.content_type);
  response.set_chunked_content_provider(
      reply.content_type,
      [rest = std::move(reply.rest), kept = std::move(kept)](std::size_t, httplib::DataSink& sink) {
        std::string piece;
        bool more = true;
        try {
          more = rest->next(piece);
        } catch (const ApiError&) {
          return false;
        }
        // Also where there is nothing to send: that is how a client that has gone is noticed.
        if (!sink.is_writable() || (!piece.empty() && !sink.write(piece.data(), piece.size()))) return false;
        if (!more) sink.done();
        return true;
      });
}

HttpRequest request_of(const httplib::Request& request, std::string body = {}) {
  // HEAD is GET without its body, which the library leaves out.
  return {request.method == "HEAD" ? "GET" : request.method, request.path, std::move(body),
          request.get_header_value("Authorization")};
}

/// Without SO_REUSEPORT, which the library would set: a port in use is then an error, not shared.
void set_socket_options(socket_t socket) {
  const int yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpOptions& options, Api& api) {
    server_.set_socket_options([this](socket_t socket) {
      socket_ = socket;
      set_socket_options(socket);
    });
    server_.set_tcp_nodelay(true);
    server_.set_keep_alive_max_count(1 << 20);
    server_.set_keep_alive_timeout(2);
    server_.set_payload_max_length(options.max_body_bytes);
    server_.new_task_queue = [n = static_cast<std::size_t>(options.max_open) + kSpareThreads] {
      return new httplib::ThreadPool(n);
    };
    const auto answer = [&api](const httplib::Request& request, httplib::Response& response) {
      send(api.answer(request_of(request)), response);
    };
    const auto answer_body = [this, &api, options](const httplib::Request& request,
                                                   httplib::Response& response,
                                                   const httplib::ContentReader& read) {
      try {
        const HttpRequest whole = request_of(request, read_body(read, options.max_body_bytes, response));
        const std::shared_ptr<void> answering = count_answer();
        send(api.answer(whole), response, answering);
      } catch (const ApiError& error) {
        send({.status = error.status(), .body = error.body()}, response);
      }
    };
    server_.Get(".*", answer);
    server_.Delete(".*", answer);
    server_.Post(".*", answer_body);
    server_.Put(".*", answer_body);
    server_.Patch(".*", answer_body);
    // What the library refuses itself: a body that is too long, a request that is none.
    server_.set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (!response.body.empty()) return;
      const ApiError error(response.status, response.status == 413 ? "the body is too long"
                                                                   : "the request is no HTTP that is served");
      response.set_content(error.body(), "application/json");
    });
  }

  /// Returns the port. Who connects from now on waits to be accepted.
  int bind(const HttpOptions& options) {
    const int port = options.port == 0 ? server_.bind_to_any_port(options.host)
                     : server_.bind_to_port(options.host, options.port) ? options.port
                                                                        : -1;
    if (port < 0)
      throw IoError(
          fmt::format("cannot listen on {} port {}; it is in use, not allowed, or no address of this "
                      "machine",
                      options.host, options.port));
    ::listen(socket_, kBacklog);
    return port;
  }
  void start() {
    thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  ~Impl() {
    if (!thread_.joinable()) return;
    while (!server_.is_running()) std::this_thread::sleep_for(1ms);  // stop() would pass it over
    while (num_answering_ > 0) std::this_thread::sleep_for(1ms);     // stop() would cut streams off
    server_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

 private:
  /// Counts an answer until it lets go.
  std::shared_ptr<void> count_answer() {
    ++num_answering_;
    return {nullptr, [this](void*) { --num_answering_; }};
  }

  std::atomic<int> num_answering_ = 0;
  httplib::Server server_;
  socket_t socket_ = INVALID_SOCKET;
  std::thread thread_;
};

std::string http_library() {
  return std::string("cpp-httplib ") + CPPHTTPLIB_VERSION;
}

HttpServer::HttpServer(const HttpOptions& options, Api& api)
    : impl_(std::make_unique<Impl>(options, api)), port_(impl_->bind(options)) {
  impl_->start();
}

HttpServer::~HttpServer() = default;

}  // namespace farskip
