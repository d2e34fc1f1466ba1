// SPDX-License-Identifier: Apache-2.0
#include "completion_body.h"

#include "serve/api_error.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

// How often the connection is looked at, and when an answer is long enough for that.
constexpr std::chrono::milliseconds kSlice = 100ms, kLong = 300ms;

std::vector<GenerationRequest> requests_of(const ApiRequest& request) {
  std::vector<GenerationRequest> requests;
  for (const AskedText& text : request.texts) requests.push_back(text.request);
  return requests;
}

std::string event(const std::string& data) {
  return "data: " + data + "\n\n";
}

}  // namespace

CompletionBody::CompletionBody(ApiRequest request, const ServedModel& model, GenerationLoop& loop,
                               Clock::time_point deadline)
    : request_(std::move(request)),
      writer_(request_, model),
      texts_(loop.submit(requests_of(request_))),
      deadline_(deadline),
      has_ended_(request_.texts.size()),
      num_open_(request_.texts.size()) {}

void CompletionBody::receive() {
  for (const TextNews& news : texts_->wait(kSlice)) {
    if (!news.failure.empty()) throw ApiError(500, "the text cannot be continued: " + news.failure);
    if (news.ended && news.ended->end == GenerationEnd::not_finite)
      throw ApiError(500, "a logit of the model is not a finite number");
    has_begun_ = true;
    const std::string chunk = writer_.add(news.text, news.part, news.ended);
    if (request_.stream) events_ += event(chunk);
    if (!news.ended) continue;
    has_ended_[news.text] = true;
    --num_open_;
  }
}

/// Time is up: what there is is the answer.
void CompletionBody::end_all() {
  for (std::size_t i = 0; i < has_ended_.size(); ++i) {
    if (has_ended_[i]) continue;
    const std::string chunk = writer_.add(i, {}, Generated{});
    if (request_.stream) events_ += event(chunk);
  }
  num_open_ = 0;
}

void CompletionBody::begin() {
  const auto start = Clock::now();
  while (!is_whole() && !(has_begun_ && (request_.stream || Clock::now() - start > kLong))) {
    if (!has_begun_ && Clock::now() > deadline_)
      throw ApiError(503, "the time for a request is over and its turn has not come; try again later");
    receive();
  }
}

bool CompletionBody::next(std::string& to) {
  try {
    if (!is_whole() && events_.empty()) receive();
    if (!is_whole() && Clock::now() > deadline_) end_all();
  } catch (const ApiError& error) {
    if (!request_.stream) throw;
    to += event(error.body());
    return false;
  }
  to += std::exchange(events_, {});
  if (!is_whole()) return true;
  if (!request_.stream) {
    to += writer_.whole();
  } else {
    if (request_.include_usage) to += event(writer_.usage_chunk());
    to += event("[DONE]");
  }
  return false;
}

}  // namespace farskip
