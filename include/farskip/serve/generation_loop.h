// SPDX-License-Identifier: Apache-2.0
#pragma once
// The thread on which a model continues texts, and how other threads hand it texts and hear of them.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "farskip/base/log.h"
#include "farskip/infer/continuous_batch.h"
#include "farskip/serve/metrics.h"

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
  /// Gives up what has not ended.
  ~GenerationLoop();
  GenerationLoop(const GenerationLoop&) = delete;
  GenerationLoop& operator=(const GenerationLoop&) = delete;

  /// Any thread may call these. UsageError where one of the texts may not be continued
  /// (ContinuousBatch::check), ApiError 503 where there are too many already, and after refuse_new().
  std::unique_ptr<OpenTexts> submit(std::vector<GenerationRequest> requests);
  void refuse_new();
  bool refuses_new() const { return refuses_new_; }
  std::int64_t num_open() const { return num_open_; }

 private:
  struct Text;  // that is open
  using TextPointer = std::shared_ptr<Text>;

  void run();
  bool take_in();
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
  bool is_ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace farskip
