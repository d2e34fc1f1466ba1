// SPDX-License-Identifier: Apache-2.0
#include "comm/mirror.h"

#include <algorithm>
#include <cstring>

#include "comm/communicator_impl.h"

namespace farskip {
namespace {

template <class T>
void scale(const void* from, void* to, std::int64_t count, T factor) {
  const T* in = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  for (std::int64_t i = 0; i < count; ++i) out[i] = in[i] * factor;
}

class MirrorCommunicator final : public CommunicatorImpl {
 public:
  MirrorCommunicator(int size, int rank, std::string name)
      : size_(size), rank_(rank), name_(std::move(name)) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return name_ + " (mirror)"; }

  /// nullptr: finished.
  CollectiveOperation* start(const Collective& c) override {
    switch (c.kind) {
      case Collective::Kind::all_reduce:
        reduce(c, c.send, c.receive, c.count);
        break;
      case Collective::Kind::reduce_scatter: {
        const std::int64_t first = c.offsets[rank_];
        const auto* send = static_cast<const std::byte*>(c.send) + first * c.element_bytes;
        reduce(c, send, c.receive, c.offsets[rank_ + 1] - first);
        break;
      }
      case Collective::Kind::all_gather:
        gather(c);
        break;
      case Collective::Kind::broadcast:
      case Collective::Kind::barrier:
        break;
      case Collective::Kind::exchange_rows:
        exchange(c.exchange);
        break;
      case Collective::Kind::return_rows:
        give_back(c.row_return);
        break;
    }
    return nullptr;
  }
  bool test(CollectiveOperation*) override { return true; }
  void wait(CollectiveOperation*) override {}
  void drop(CollectiveOperation*) noexcept override {}
  void poll() noexcept override {}
  std::shared_ptr<CommunicatorImpl> split(int, int, const std::string& name) override {
    throw InternalError(
        fmt::format("{}: the members of '{}' are not known here; use make_mirror_mesh", this->name(), name));
  }

 private:
  void reduce(const Collective& c, const void* from, void* to, std::int64_t count) const {
    if (c.reduction != Reduction::sum) {
      if (from != to && count > 0) std::memmove(to, from, static_cast<std::size_t>(count * bytes_of(c)));
      return;
    }
    switch (c.element) {
      case ElementType::f32:
        return scale(from, to, count, static_cast<float>(size_));
      case ElementType::f64:
        return scale(from, to, count, static_cast<double>(size_));
      case ElementType::i32:  // sums wrap around
        return scale(from, to, count, static_cast<std::uint32_t>(size_));
      case ElementType::byte:
        throw InternalError(name() + ": bytes have no sum");
    }
  }

  static std::int64_t bytes_of(const Collective& c) { return c.element == ElementType::f64 ? 8 : 4; }

  void gather(const Collective& c) const {
    auto* const receive = static_cast<std::byte*>(c.receive);
    const auto place = [&](int p) { return receive + c.offsets[p] * c.element_bytes; };
    const auto bytes = [&](int p) { return (c.offsets[p + 1] - c.offsets[p]) * c.element_bytes; };
    if (bytes(rank_) > 0) std::memmove(place(rank_), c.send, static_cast<std::size_t>(bytes(rank_)));
    for (int p = 0; p < size_; ++p) {
      if (p == rank_) continue;
      const std::int64_t same = std::min(bytes(p), bytes(rank_));
      if (same > 0) std::memcpy(place(p), place(rank_), static_cast<std::size_t>(same));
      std::fill(place(p) + same, place(p) + bytes(p), std::byte{});
    }
  }

  /// Rows for peer p: how many there are, and how many of them fit its slab.
  struct PeerRows {
    std::int64_t first, count, fit;
  };
  static PeerRows rows_of(const std::int32_t* offsets, int groups, std::int64_t most, int p) {
    const std::int64_t first = offsets[p * groups], count = offsets[(p + 1) * groups] - first;
    return {first, count, std::min(count, most)};
  }

  void exchange(const RowExchange& r) const {
    const auto* const send = static_cast<const std::byte*>(r.send);
    auto* const receive = static_cast<std::byte*>(r.receive);
    for (int p = 0; p < size_; ++p) {
      const PeerRows rows = rows_of(r.send_offsets, r.groups, r.max_rows_per_peer, p);
      copy(receive + p * r.max_rows_per_peer * r.row_bytes, send + rows.first * r.row_bytes,
           rows.fit * r.row_bytes);
      std::int64_t left = rows.fit;
      for (int g = p * r.groups; g < (p + 1) * r.groups; ++g) {
        const std::int64_t count =
            std::min<std::int64_t>(left, r.send_offsets[g + 1] - std::int64_t{r.send_offsets[g]});
        r.receive_counts[g] = static_cast<std::int32_t>(count);
        left -= count;
      }
    }
  }

  void give_back(const RowReturn& r) const {
    const auto* const send = static_cast<const std::byte*>(r.send);
    auto* const receive = static_cast<std::byte*>(r.receive);
    for (int p = 0; p < size_; ++p) {
      const PeerRows rows = rows_of(r.receive_offsets, r.groups, r.max_rows_per_peer, p);
      std::byte* const to = receive + rows.first * r.row_bytes;
      copy(to, send + p * r.max_rows_per_peer * r.row_bytes, rows.fit * r.row_bytes);
      std::fill(to + rows.fit * r.row_bytes, to + rows.count * r.row_bytes, std::byte{});
    }
  }

  static void copy(std::byte* to, const std::byte* from, std::int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  int size_, rank_;
  std::string name_;
};

Communicator make_group(int size, int rank, std::string name) {
  FARSKIP_CHECK(size >= 1 && rank >= 0 && rank < size, "rank {} of {}", rank, size);
  return Communicator(std::make_shared<MirrorCommunicator>(size, rank, std::move(name)));
}

}  // namespace

Communicator make_mirror_communicator(int size, int rank) {
  return make_group(size, rank, "world");
}

Mesh make_mirror_mesh(const MeshPosition& position) {
  const auto group = [&](MeshAxis axis) {
    return make_group(position.size(axis), position.rank(axis), std::string(axis_name(axis)));
  };
  return Mesh({group(MeshAxis::world), group(MeshAxis::expert), group(MeshAxis::data),
               group(MeshAxis::tensor), group(MeshAxis::batch)});
}

}  // namespace farskip
