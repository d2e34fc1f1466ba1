// SPDX-License-Identifier: Apache-2.0
#include "infer/growing_text.h"

#include <algorithm>

#include "data/unicode.h"

namespace farskip {
namespace {

/// Bytes at the end of `text` that `stop` begins with; all of `stop` does not stand there.
std::size_t begun(std::string_view text, std::string_view stop) {
  for (std::size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n)
    if (text.ends_with(stop.substr(0, n))) return n;
  return 0;
}

}  // namespace

GrowingText::GrowingText(std::optional<Tokenizer> tokenizer, std::vector<std::string> stop)
    : tokenizer_(std::move(tokenizer)), stop_(std::move(stop)) {
  for (const std::string& s : stop_) longest_stop_ = std::max(longest_stop_, s.size());
}

bool GrowingText::add(std::int32_t id) {
  const std::size_t searched = bytes_.size();
  if (tokenizer_) bytes_ += tokenizer_->token_bytes(id, true);
  ends_.push_back(taken_ + bytes_.size());
  const bool stopped = cut_at_stop(searched);
  settle(stopped ? bytes_.size() : num_sure_bytes());
  return stopped;
}

void GrowingText::finish() {
  settle(bytes_.size());
}

std::string GrowingText::take_text() {
  const std::size_t count = settled_ - taken_;
  std::string text = replace_invalid_utf8(std::string_view(bytes_).substr(0, count));
  bytes_.erase(0, count);
  taken_ = settled_;
  return text;
}

/// `searched`: bytes of earlier tokens, in which no stop string ends.
bool GrowingText::cut_at_stop(std::size_t searched) {
  const std::size_t from = searched - std::min(searched, longest_stop_);
  std::size_t first = std::string::npos;
  for (const std::string& s : stop_) first = std::min(first, bytes_.find(s, from));
  if (first == std::string::npos) return false;
  bytes_.resize(first);
  return true;
}

std::size_t GrowingText::num_sure_bytes() const {
  std::size_t waiting = 0;
  for (const std::string& s : stop_) waiting = std::max(waiting, begun(bytes_, s));
  const std::string_view rest = std::string_view(bytes_).substr(0, bytes_.size() - waiting);
  return rest.size() - num_bytes_of_cut_character(rest);
}

void GrowingText::settle(std::size_t bytes) {
  settled_ = std::max(settled_, taken_ + bytes);
  while (num_settled_ < static_cast<std::int64_t>(ends_.size()) &&
         ends_[static_cast<std::size_t>(num_settled_)] <= settled_)
    ++num_settled_;
}

}  // namespace farskip
