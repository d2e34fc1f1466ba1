// SPDX-License-Identifier: Apache-2.0
#include "operation.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "reduce.h"

namespace farskip {
namespace {

using Kind = Collective::Kind;

const std::byte* bytes_of(const void* data) {
  return static_cast<const std::byte*>(data);
}
std::byte* bytes_of(void* data) {
  return static_cast<std::byte*>(data);
}

/// Empty buffers may be null, and a piece may already be where it belongs.
void copy_bytes(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace

const char* HostOperation::name() const {
  switch (collective_.kind) {
    case Kind::all_reduce:
      return "all_reduce";
    case Kind::reduce_scatter:
      return "reduce_scatter";
    case Kind::all_gather:
      return "all_gather";
    case Kind::broadcast:
      return "broadcast";
    case Kind::barrier:
      return "barrier";
    case Kind::exchange_rows:
      return "exchange_rows";
    case Kind::return_rows:
      return "return_rows";
  }
  return "";
}

HostOperation::HostOperation(Endpoint& endpoint)
    : endpoint_(endpoint), rank_(endpoint.rank()), size_(endpoint.size()) {
  for (Messages* messages : {&first_, &second_}) {
    messages->exchange = endpoint.make_exchange();
    messages->out.resize(static_cast<std::size_t>(size_));
    messages->in.resize(static_cast<std::size_t>(size_));
  }
  pieces_.resize(static_cast<std::size_t>(size_) + 1);
  inputs_.resize(static_cast<std::size_t>(size_));
}

void HostOperation::start(const Collective& collective, std::uint64_t number) {
  collective_ = collective;
  number_ = number;
  next_ = nullptr;
  for (Messages* messages : {&first_, &second_}) {
    std::fill(messages->out.begin(), messages->out.end(), Outgoing{});
    std::fill(messages->in.begin(), messages->in.end(), Incoming{});
  }
  describe();
  stage_ = Stage::exchange;
  post(first_, 0);
  if (collective_.kind == Kind::exchange_rows) post(second_, 1);
}

void HostOperation::describe() {
  switch (collective_.kind) {
    case Kind::all_reduce:
      return describe_all_reduce();
    case Kind::reduce_scatter:
    case Kind::all_gather:
      for (int p = 0; p <= size_; ++p) pieces_[p] = collective_.offsets[p] * collective_.element_bytes;
      if (collective_.kind == Kind::all_gather) return describe_all_gather();
      return describe_pieces_to_reduce(bytes_of(collective_.send));
    case Kind::broadcast:
      return describe_broadcast();
    case Kind::barrier:
      for (int p = 0; p < size_; ++p) {
        first_.out[p] = {nullptr, 0};
        first_.in[p] = {nullptr, 0, 0};
      }
      return;
    case Kind::exchange_rows:
      return describe_exchange_rows();
    case Kind::return_rows:
      return describe_return_rows();
  }
}

void HostOperation::describe_all_reduce() {
  const std::int64_t bytes = element_bytes(collective_.element);
  for (int p = 0; p <= size_; ++p) pieces_[p] = collective_.count * p / size_ * bytes;
  describe_pieces_to_reduce(bytes_of(collective_.send));
}

/// Piece p goes to rank p, which receives that piece of everyone into scratch.
void HostOperation::describe_pieces_to_reduce(const std::byte* send) {
  const std::int64_t own = pieces_[rank_ + 1] - pieces_[rank_];
  if (size_ > 1 && scratch_.size() < static_cast<std::size_t>(own * size_))
    scratch_.resize(static_cast<std::size_t>(own * size_));
  for (int p = 0; p < size_; ++p) {
    first_.out[p] = {send + pieces_[p], pieces_[p + 1] - pieces_[p]};
    first_.in[p] = {scratch_.data() + own * p, own, 0};
    inputs_[p] = first_.in[p].data;
  }
  inputs_[rank_] = send + pieces_[rank_];
}

void HostOperation::describe_all_gather() {
  const std::int64_t own = pieces_[rank_ + 1] - pieces_[rank_];
  std::byte* const receive = bytes_of(collective_.receive);
  for (int p = 0; p < size_; ++p) {
    first_.out[p] = {collective_.send, own};
    first_.in[p] = {receive + pieces_[p], pieces_[p + 1] - pieces_[p], 0};
  }
  copy_bytes(receive + pieces_[rank_], collective_.send, own);
}

void HostOperation::describe_broadcast() {
  if (rank_ == collective_.root) {
    for (Outgoing& out : first_.out) out = {collective_.send, collective_.count};
  } else {
    first_.in[collective_.root] = {collective_.receive, collective_.count, 0};
  }
}

void HostOperation::describe_exchange_rows() {
  const RowExchange& rows = collective_.exchange;
  const std::size_t num_counts = static_cast<std::size_t>(size_) * static_cast<std::size_t>(rows.groups);
  if (counts_out_.size() < num_counts) {
    counts_out_.resize(num_counts);
    counts_in_.resize(num_counts);
  }
  const std::int64_t header = std::int64_t{rows.groups} * 4;
  const std::int64_t slab = rows.max_rows_per_peer * rows.row_bytes;
  for (std::int64_t p = 0; p < size_; ++p) {
    const std::int64_t begin = rows.send_offsets[p * rows.groups];
    std::int64_t sent = 0;
    for (std::int64_t i = p * rows.groups; i < (p + 1) * rows.groups; ++i) {
      const std::int64_t count = std::int64_t{rows.send_offsets[i + 1]} - rows.send_offsets[i];
      const std::int64_t fits = std::min(count, rows.max_rows_per_peer - sent);
      counts_out_[i] = static_cast<std::int32_t>(fits);
      sent += fits;
    }
    first_.out[p] = {counts_out_.data() + p * rows.groups, header};
    first_.in[p] = {counts_in_.data() + p * rows.groups, header, 0};
    second_.out[p] = {bytes_of(rows.send) + begin * rows.row_bytes, sent * rows.row_bytes, slab};
    second_.in[p] = {bytes_of(rows.receive) + p * slab, slab, 0};
  }
  copy_bytes(first_.in[rank_].data, first_.out[rank_].data, header);
  copy_bytes(second_.in[rank_].data, second_.out[rank_].data, second_.out[rank_].bytes);
  second_.in[rank_].bytes = second_.out[rank_].bytes;
}

void HostOperation::describe_return_rows() {
  const RowReturn& rows = collective_.row_return;
  for (std::int64_t p = 0; p < size_; ++p) {
    const std::int32_t* const counts = rows.send_counts + p * rows.groups;
    const std::int64_t sent = std::accumulate(counts, counts + rows.groups, std::int64_t{0});
    const std::int64_t begin = rows.receive_offsets[p * rows.groups];
    const std::int64_t end = rows.receive_offsets[(p + 1) * rows.groups];
    const std::int64_t went = std::min(end - begin, rows.max_rows_per_peer);
    std::byte* const place = bytes_of(rows.receive) + begin * rows.row_bytes;
    const std::int64_t lost = end - begin - went;
    if (lost > 0)
      std::memset(place + went * rows.row_bytes, 0, static_cast<std::size_t>(lost * rows.row_bytes));
    first_.out[p] = {bytes_of(rows.send) + p * rows.max_rows_per_peer * rows.row_bytes,
                     sent * rows.row_bytes};
    first_.in[p] = {place, went * rows.row_bytes, 0};
  }
  FARSKIP_CHECK(first_.out[rank_].bytes == first_.in[rank_].capacity,
                "{}: rank {} returns {} bytes to itself and expects {}", endpoint_.name(), rank_,
                first_.out[rank_].bytes, first_.in[rank_].capacity);
  copy_bytes(first_.in[rank_].data, first_.out[rank_].data, first_.out[rank_].bytes);
}

void HostOperation::post(Messages& messages, int part) {
  const int tag = static_cast<int>((number_ * 2 + static_cast<std::uint64_t>(part)) % kNumTags);
  messages.open = true;
  messages.exchange->post(tag, messages.out, messages.in);
}

bool HostOperation::is_done(Messages& messages) {
  if (messages.open && messages.exchange->test()) messages.open = false;
  return !messages.open;
}

bool HostOperation::advance() {
  const bool first_done = is_done(first_);
  const bool second_done = is_done(second_);
  if (stage_ == Stage::finished || !first_done || !second_done) return stage_ == Stage::finished;
  if (stage_ == Stage::exchange) {
    check_lengths(first_);
    switch (collective_.kind) {
      case Kind::all_reduce:
        reduce_own_piece();
        post_gather();
        stage_ = Stage::gather;
        return advance();
      case Kind::reduce_scatter:
        reduce_own_piece();
        break;
      case Kind::exchange_rows:
        accept_rows();
        break;
      default:
        break;
    }
  } else {
    check_lengths(second_);
  }
  stage_ = Stage::finished;
  return true;
}

void HostOperation::abandon() noexcept {
  for (Messages* messages : {&first_, &second_}) {
    if (messages->open) messages->exchange->abandon();
    messages->open = false;
  }
  stage_ = Stage::finished;
}

void HostOperation::reduce_own_piece() {
  const std::int64_t bytes = pieces_[rank_ + 1] - pieces_[rank_];
  std::byte* const out = collective_.kind == Kind::all_reduce ? bytes_of(collective_.receive) + pieces_[rank_]
                                                              : bytes_of(collective_.receive);
  reduce_in_order(collective_.element, collective_.reduction, inputs_, out,
                  bytes / element_bytes(collective_.element));
}

/// Second half of an all-reduce. The first half has been received by everyone whom this rank sent a piece, so
/// the reduced pieces may take their place.
void HostOperation::post_gather() {
  std::byte* const data = bytes_of(collective_.receive);
  for (int p = 0; p < size_; ++p) {
    second_.out[p] = {data + pieces_[rank_], pieces_[rank_ + 1] - pieces_[rank_]};
    second_.in[p] = {data + pieces_[p], pieces_[p + 1] - pieces_[p], 0};
  }
  post(second_, 1);
}

void HostOperation::accept_rows() {
  const RowExchange& rows = collective_.exchange;
  for (std::int64_t p = 0; p < size_; ++p) {
    const std::int32_t* const counts = counts_in_.data() + p * rows.groups;
    const std::int64_t count = std::accumulate(counts, counts + rows.groups, std::int64_t{0});
    FARSKIP_CHECK(std::all_of(counts, counts + rows.groups, [](std::int32_t n) { return n >= 0; }) &&
                      count * rows.row_bytes == second_.in[p].bytes,
                  "{}: rank {} announced {} rows of {} bytes to rank {} and sent {} bytes", endpoint_.name(),
                  p, count, rows.row_bytes, rank_, second_.in[p].bytes);
  }
  std::copy_n(counts_in_.begin(), size_ * rows.groups, rows.receive_counts);
}

void HostOperation::check_lengths(const Messages& messages) const {
  for (int p = 0; p < size_; ++p) {
    const Incoming& in = messages.in[p];
    FARSKIP_CHECK(
        p == rank_ || in.capacity == kNoMessage || in.bytes == in.capacity,
        "{}: rank {} sent {} bytes to rank {}, which expects {}: the ranks call different collectives, or "
        "with different lengths",
        endpoint_.name(), p, in.bytes, rank_, in.capacity);
  }
}

}  // namespace farskip
