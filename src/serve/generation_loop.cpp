// SPDX-License-Identifier: Apache-2.0
#include "serve/generation_loop.h"

#include <algorithm>

#include "serve/api_error.h"

namespace farskip {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

namespace {
constexpr auto kLook = 50ms;   // how often an idle loop looks whether it should stop
constexpr auto kMeeting = 1s;  // how often it meets the ranks that follow
}  // namespace

struct OpenTexts::Mailbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<TextNews> news;
  std::atomic<bool> is_wanted = true;

  void post(TextNews more) {
    {
      const std::lock_guard lock(mutex);
      news.push_back(std::move(more));
    }
    arrived.notify_one();
  }
};

OpenTexts::~OpenTexts() {
  mailbox_->is_wanted = false;
}

std::vector<TextNews> OpenTexts::wait(std::chrono::milliseconds most) {
  std::unique_lock lock(mailbox_->mutex);
  mailbox_->arrived.wait_for(lock, most, [&] { return !mailbox_->news.empty(); });
  return std::exchange(mailbox_->news, {});
}

struct GenerationLoop::Text {
  std::shared_ptr<OpenTexts::Mailbox> mailbox;
  std::size_t index;
  GenerationRequest request;
  Clock::time_point last;  // news, or when it was asked for
  bool has_begun = false;
};

GenerationLoop::GenerationLoop(CachedEngine& engine, const ContinuousBatchOptions& options,
                               std::int64_t max_open, ServeMetrics& metrics, Logger logger)
    : engine_(engine), options_(options), max_open_(max_open), metrics_(metrics), logger_(std::move(logger)) {
  batch_.emplace(engine_, options_);
  update_gauges();
}

void GenerationLoop::refuse_new() {
  const std::lock_guard lock(mutex_);
  refuses_new_ = true;
}

std::unique_ptr<OpenTexts> GenerationLoop::submit(std::vector<GenerationRequest> requests) {
  for (const GenerationRequest& request : requests) check_request(request, engine_.config(), engine_.size());
  const auto count = static_cast<std::int64_t>(requests.size());
  if (count > max_open_)
    throw ApiError(400, fmt::format("{} texts are asked for, and the server takes {} at once; ask for fewer",
                                    count, max_open_));
  auto mailbox = std::make_shared<OpenTexts::Mailbox>();
  {
    const std::lock_guard lock(mutex_);
    if (refuses_new_) throw ApiError(503, "the server is about to end and takes no new requests");
    if (num_open_ + count > max_open_)
      throw ApiError(503, fmt::format("{} texts are asked for, {} are open, and the server takes {} at once; "
                                      "try again later",
                                      count, num_open_.load(), max_open_));
    num_open_ += count;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      metrics_.count_prompt_tokens(static_cast<std::int64_t>(requests[i].prompt.size()));
      incoming_.push_back(std::make_shared<Text>(Text{mailbox, i, std::move(requests[i]), Clock::now()}));
    }
  }
  changed_.notify_one();
  return std::unique_ptr<OpenTexts>(new OpenTexts(std::move(mailbox)));
}

void GenerationLoop::run(const std::function<bool()>& stop_requested) {
  for (;;) {
    try {
      if (!take_in(stop_requested)) return;
      drop_unwanted();
      step();
    } catch (const std::exception& error) {
      if (engine_.leads()) refuse_new();
      fail_all(error.what());
      if (engine_.leads()) throw;
      logger_.error("texts cannot be continued: {}", error.what());
    }
    update_gauges();
  }
}

/// Waits while there is nothing to do. False when there will be nothing any more.
bool GenerationLoop::wait_for_texts(std::vector<TextPointer>& incoming,
                                    const std::function<bool()>& stop_requested) {
  for (auto met = Clock::now();;) {
    if (stop_requested()) refuse_new();
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kLook,
                        [&] { return refuses_new_ || !incoming_.empty() || batch_->num_open() > 0; });
      incoming.swap(incoming_);
    }
    if (!incoming.empty() || batch_->num_open() > 0) return true;
    if (refuses_new_) return false;
    if (Clock::now() - met < kMeeting) continue;
    engine_.meet_followers();
    met = Clock::now();
  }
}

bool GenerationLoop::take_in(const std::function<bool()>& stop_requested) {
  std::vector<TextPointer> incoming;
  if (!wait_for_texts(incoming, stop_requested)) return false;
  for (const TextPointer& text : incoming) {
    GenerationRequest request = std::move(text->request);
    request.on_part = [this, text = text.get()](const GeneratedPart& part) {
      const auto now = Clock::now();
      const double seconds = std::chrono::duration<double>(now - std::exchange(text->last, now)).count();
      metrics_.count_tokens(static_cast<std::int64_t>(part.ids.size()), !std::exchange(text->has_begun, true),
                            seconds);
      text->mailbox->post({text->index, part});
    };
    open_.emplace(batch_->submit(std::move(request)), text);
  }
  return true;
}

void GenerationLoop::drop_unwanted() {
  for (auto it = open_.begin(); it != open_.end();) {
    const auto next = std::next(it);
    if (!it->second->mailbox->is_wanted) {
      batch_->cancel(it->first);
      open_.erase(it);
      --num_open_;
    }
    it = next;
  }
}

void GenerationLoop::step() {
  for (ContinuousBatch::Ended& ended : batch_->step())
    end(open_.extract(ended.request).mapped(), {.ended = std::move(ended.text)});
}

void GenerationLoop::end(const TextPointer& text, TextNews news) {
  news.text = text->index;
  text->mailbox->post(std::move(news));
  --num_open_;
}

/// A run that failed has left the batch between two states: it begins anew, without texts. Where it was the
/// last run, those that come in have to be told, too.
void GenerationLoop::fail_all(const std::string& why) {
  for (const auto& [number, text] : std::exchange(open_, {})) end(text, {.failure = why});
  if (refuses_new_) {
    const std::lock_guard lock(mutex_);
    for (const TextPointer& text : std::exchange(incoming_, {})) end(text, {.failure = why});
  }
  batch_.emplace(engine_, options_);
}

void GenerationLoop::update_gauges() {
  metrics_.set({batch_->num_active(), num_open_ - batch_->num_active(), batch_->num_used_blocks(),
                engine_.size().num_blocks});
}

}  // namespace farskip
