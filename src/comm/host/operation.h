// SPDX-License-Identifier: Apache-2.0
#pragma once
// A collective as exchanges of messages and sums in between.

#include <cstddef>
#include <memory>
#include <vector>

#include "comm/communicator_impl.h"
#include "endpoint.h"

namespace farskip {

/// Kept by its communicator and used again; its buffers grow to the largest collective and stay.
class HostOperation final : public CollectiveOperation {
 public:
  explicit HostOperation(Endpoint& endpoint);

  /// Posts the first messages. `number` counts the collectives of the group.
  void start(const Collective& collective, std::uint64_t number);
  /// Does what has become possible; true once finished, whatever follows.
  bool advance();
  void abandon() noexcept;
  /// It is finished with all that follow.
  bool finished() const { return stage_ == Stage::finished && (next_ == nullptr || next_->finished()); }
  /// The next part of the same collective, which is not finished without it.
  HostOperation* next() const { return next_; }
  void set_next(HostOperation* next) { next_ = next; }
  /// Of the collective, "all_reduce".
  const char* name() const;

 private:
  enum class Stage { exchange, gather, finished };
  struct Messages {
    std::unique_ptr<Exchange> exchange;
    std::vector<Outgoing> out;  // [size]
    std::vector<Incoming> in;   // [size]
    bool open = false;
  };

  void describe();
  void describe_all_reduce();
  void describe_pieces_to_reduce(const std::byte* send);
  void describe_all_gather();
  void describe_broadcast();
  void describe_exchange_rows();
  void describe_return_rows();
  void post(Messages& messages, int part);
  bool is_done(Messages& messages);
  void reduce_own_piece();
  void post_gather();
  void accept_rows();
  void check_lengths(const Messages& messages) const;

  Endpoint& endpoint_;
  const int rank_, size_;
  Collective collective_;
  std::uint64_t number_ = 0;
  Stage stage_ = Stage::finished;
  HostOperation* next_ = nullptr;
  Messages first_, second_;                           // two tags of one operation
  std::vector<std::int64_t> pieces_;                  // [size + 1] bytes
  std::vector<std::byte> scratch_;                    // pieces of the peers, before they are reduced
  std::vector<const void*> inputs_;                   // [size] what is reduced
  std::vector<std::int32_t> counts_out_, counts_in_;  // [size * groups]
};

}  // namespace farskip
