// SPDX-License-Identifier: Apache-2.0
#pragma once
// The body of an answer to /v1/completions, which grows as its texts do.

#include "completion_writer.h"
#include "serve/api.h"

namespace farskip {

class CompletionBody : public ReplyBody {
 public:
  /// After `deadline` texts end as they are.
  CompletionBody(ApiRequest request, const ServedModel& model, GenerationLoop& loop,
                 std::chrono::steady_clock::time_point deadline);

  /// Waits until there is something to send: all of the answer, or, where that takes long, the first token.
  /// ApiError 500 where a text cannot be continued, 503 after the deadline.
  void begin();
  bool next(std::string& to) override;

  bool is_stream() const { return request_.stream; }
  bool is_whole() const { return num_open_ == 0; }

 private:
  void receive();
  void end_all();

  const ApiRequest request_;
  CompletionWriter writer_;
  std::unique_ptr<OpenTexts> texts_;
  const std::chrono::steady_clock::time_point deadline_;
  std::vector<bool> has_ended_;
  std::size_t num_open_;
  bool has_begun_ = false;
  std::string events_;  // of a stream, not sent yet
};

}  // namespace farskip
