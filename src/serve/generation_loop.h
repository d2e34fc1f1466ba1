// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model that continues texts on one thread, and how other threads hand it texts and hear of them.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "farskip/base/log.h"
#include "infer/continuous_batch.h"
#include "serve/metrics.h"

namespace farskip {

/// Something new of one of some texts.
struct TextNews {
  std::size_t text = 0;  // its index
  GeneratedPart part{};
  std::optional<Generated> ended{};  // all of it, with its last part
  std::string failure{};             // why it cannot be continued; nothing more comes of it
};

/// Texts that were asked for together. Whoever no longer wants them destroys this, and their room is free.
class OpenTexts {
 public:
  ~OpenTexts();
  OpenTexts(const OpenTexts&) = delete;
  OpenTexts& operator=(const OpenTexts&) = delete;
  /// What has come since the last call; where nothing has, waits for it, but no longer than `most`.
  std::vector<TextNews> wait(std::chrono::milliseconds most);

 private:
  friend class GenerationLoop;
  struct Mailbox;
  explicit OpenTexts(std::shared_ptr<Mailbox> mailbox) : mailbox_(std::move(mailbox)) {}
  std::shared_ptr<Mailbox> mailbox_;
};

class GenerationLoop {
 public:
  /// `max_open`: texts that are continued or wait for it. `engine`, `metrics` live longer.
  GenerationLoop(CachedEngine& engine, const ContinuousBatchOptions& options, std::int64_t max_open,
                 ServeMetrics& metrics, Logger logger);
  GenerationLoop(const GenerationLoop&) = delete;
  GenerationLoop& operator=(const GenerationLoop&) = delete;

  /// Continues texts, by the thread that made the engine, until `stop_requested` says so; then refuses new
  /// ones and finishes those that are open. A run that fails ends its texts with that failure; where ranks
  /// follow, which stand elsewhere now, it ends the loop too, and is thrown.
  void run(const std::function<bool()>& stop_requested);

  /// Any thread may call these. UsageError where one of the texts may not be continued
  /// (ContinuousBatch::check), ApiError 400 where these alone are too many, 503 where with
  /// those that are open they are, and after refuse_new().
  std::unique_ptr<OpenTexts> submit(std::vector<GenerationRequest> requests);
  bool refuses_new() const { return refuses_new_; }

 private:
  struct Text;  // that is open
  using TextPointer = std::shared_ptr<Text>;

  void refuse_new();
  bool take_in(const std::function<bool()>& stop_requested);
  bool wait_for_texts(std::vector<TextPointer>& incoming, const std::function<bool()>& stop_requested);
  void drop_unwanted();
  void step();
  void end(const TextPointer& text, TextNews news);
  void fail_all(const std::string& why);
  void update_gauges();

  CachedEngine& engine_;
  const ContinuousBatchOptions options_;
  const std::int64_t max_open_;
  ServeMetrics& metrics_;
  Logger logger_;
  std::optional<ContinuousBatch> batch_;
  std::map<std::int64_t, TextPointer> open_;  // by the number in the batch
  std::atomic<std::int64_t> num_open_ = 0;    // of them, and of those that come in
  std::atomic<bool> refuses_new_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TextPointer> incoming_;
};

}  // namespace farskip
