// SPDX-License-Identifier: Apache-2.0
#include "farskip/comm/communicator.h"

#include <type_traits>
#include <utility>

#include "comm/communicator_impl.h"

namespace farskip {
namespace {

template <class T>
constexpr ElementType element_type() {
  if constexpr (std::is_same_v<T, float>) return ElementType::f32;
  if constexpr (std::is_same_v<T, double>) return ElementType::f64;
  return ElementType::i32;
}

/// Checks the offsets of all pieces (in elements) and of the own piece.
void check_pieces(const CommunicatorImpl& group, std::span<const std::int64_t> offsets, std::size_t total,
                  std::size_t own) {
  const auto size = static_cast<std::size_t>(group.size());
  FARSKIP_CHECK(offsets.size() == size + 1, "{}: {} offsets for {} ranks", group.name(), offsets.size(),
                size);
  FARSKIP_CHECK(offsets[0] == 0, "{}: the first piece starts at {}", group.name(), offsets[0]);
  for (std::size_t p = 0; p < size; ++p)
    FARSKIP_CHECK(offsets[p] <= offsets[p + 1], "{}: piece {} is [{}, {})", group.name(), p, offsets[p],
                  offsets[p + 1]);
  FARSKIP_CHECK(offsets[size] == static_cast<std::int64_t>(total), "{}: pieces end at {} of {} elements",
                group.name(), offsets[size], total);
  const std::int64_t piece = offsets[group.rank() + 1] - offsets[group.rank()];
  FARSKIP_CHECK(piece == static_cast<std::int64_t>(own), "{}: own piece has {} elements, its buffer {}",
                group.name(), piece, own);
}

template <class T>
Pending start_all_reduce_of(const std::shared_ptr<CommunicatorImpl>& impl, std::span<T> data,
                            Reduction reduction) {
  Collective collective;
  collective.kind = Collective::Kind::all_reduce;
  collective.element = element_type<T>();
  collective.reduction = reduction;
  collective.send = data.data();
  collective.receive = data.data();
  collective.count = static_cast<std::int64_t>(data.size());
  return {impl, impl->start(collective)};
}

template <class T>
Pending start_reduce_scatter_of(const std::shared_ptr<CommunicatorImpl>& impl, std::span<const T> send,
                                std::span<const std::int64_t> offsets, std::span<T> receive,
                                Reduction reduction) {
  check_pieces(*impl, offsets, send.size(), receive.size());
  Collective collective;
  collective.kind = Collective::Kind::reduce_scatter;
  collective.element = element_type<T>();
  collective.reduction = reduction;
  collective.send = send.data();
  collective.receive = receive.data();
  collective.offsets = offsets.data();
  collective.element_bytes = sizeof(T);
  return {impl, impl->start(collective)};
}

template <class Rows>
void check_rows(const CommunicatorImpl& group, const Rows& rows) {
  FARSKIP_CHECK(rows.groups >= 1 && rows.row_bytes >= 0 && rows.max_rows_per_peer >= 0,
                "{}: {} groups, {} bytes a row, at most {} rows a peer", group.name(), rows.groups,
                rows.row_bytes, rows.max_rows_per_peer);
}

void check_offsets(const CommunicatorImpl& group, const std::int32_t* offsets, int groups) {
  FARSKIP_CHECK(offsets[0] >= 0, "{}: rows start at {}", group.name(), offsets[0]);
  for (int i = 0; i < group.size() * groups; ++i)
    FARSKIP_CHECK(offsets[i] <= offsets[i + 1], "{}: rows of rank {}, group {} are [{}, {})", group.name(),
                  i / groups, i % groups, offsets[i], offsets[i + 1]);
}

}  // namespace

Pending::Pending(std::shared_ptr<CommunicatorImpl> communicator, CollectiveOperation* operation)
    : communicator_(std::move(communicator)), operation_(operation) {}

Pending::Pending(Pending&& other) noexcept
    : communicator_(std::move(other.communicator_)), operation_(std::exchange(other.operation_, nullptr)) {}

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this == &other) return *this;
  drop();
  communicator_ = std::move(other.communicator_);
  operation_ = std::exchange(other.operation_, nullptr);
  return *this;
}

Pending::~Pending() {
  drop();
}

void Pending::drop() noexcept {
  if (operation_ != nullptr) communicator_->drop(std::exchange(operation_, nullptr));
}

bool Pending::test() {
  if (operation_ != nullptr && communicator_->test(operation_)) operation_ = nullptr;
  return operation_ == nullptr;
}

void Pending::wait() {
  if (operation_ == nullptr) return;
  communicator_->wait(operation_);
  operation_ = nullptr;
}

Communicator::Communicator(std::shared_ptr<CommunicatorImpl> impl) : impl_(std::move(impl)) {}

int Communicator::rank() const {
  return impl_->rank();
}
int Communicator::size() const {
  return impl_->size();
}
std::string Communicator::name() const {
  return impl_->name();
}
Heartbeat* Communicator::heartbeat() const {
  return impl_->heartbeat();
}
void Communicator::poll() const noexcept {
  impl_->poll();
}

Pending Communicator::start_all_reduce(std::span<float> data, Reduction reduction) const {
  return start_all_reduce_of(impl_, data, reduction);
}
Pending Communicator::start_all_reduce(std::span<double> data, Reduction reduction) const {
  return start_all_reduce_of(impl_, data, reduction);
}
Pending Communicator::start_all_reduce(std::span<std::int32_t> data, Reduction reduction) const {
  return start_all_reduce_of(impl_, data, reduction);
}

Pending Communicator::start_reduce_scatter(std::span<const float> send, std::span<const std::int64_t> offsets,
                                           std::span<float> receive, Reduction reduction) const {
  return start_reduce_scatter_of(impl_, send, offsets, receive, reduction);
}
Pending Communicator::start_reduce_scatter(std::span<const double> send,
                                           std::span<const std::int64_t> offsets, std::span<double> receive,
                                           Reduction reduction) const {
  return start_reduce_scatter_of(impl_, send, offsets, receive, reduction);
}
Pending Communicator::start_reduce_scatter(std::span<const std::int32_t> send,
                                           std::span<const std::int64_t> offsets,
                                           std::span<std::int32_t> receive, Reduction reduction) const {
  return start_reduce_scatter_of(impl_, send, offsets, receive, reduction);
}

Pending Communicator::start_all_gather_bytes(std::span<const std::byte> send,
                                             std::span<const std::int64_t> offsets, std::size_t element_bytes,
                                             std::span<std::byte> receive) const {
  check_pieces(*impl_, offsets, receive.size() / element_bytes, send.size() / element_bytes);
  Collective collective;
  collective.kind = Collective::Kind::all_gather;
  collective.send = send.data();
  collective.receive = receive.data();
  collective.offsets = offsets.data();
  collective.element_bytes = static_cast<std::int64_t>(element_bytes);
  return {impl_, impl_->start(collective)};
}

Pending Communicator::start_broadcast_bytes(std::span<std::byte> data, int root) const {
  FARSKIP_CHECK(root >= 0 && root < size(), "{}: root {} of {} ranks", name(), root, size());
  Collective collective;
  collective.kind = Collective::Kind::broadcast;
  collective.send = data.data();
  collective.receive = data.data();
  collective.count = static_cast<std::int64_t>(data.size());
  collective.root = root;
  return {impl_, impl_->start(collective)};
}

Pending Communicator::start_barrier() const {
  Collective collective;
  collective.kind = Collective::Kind::barrier;
  return {impl_, impl_->start(collective)};
}

Pending Communicator::start_all_to_all(const RowExchange& rows) const {
  check_rows(*impl_, rows);
  check_offsets(*impl_, rows.send_offsets, rows.groups);
  FARSKIP_CHECK(rows.overflow != nullptr, "{}: an exchange of rows without a flag of overflow", name());
  *rows.overflow = 0;
  for (std::int64_t peer = 0; peer < size(); ++peer) {
    const std::int64_t count =
        std::int64_t{rows.send_offsets[(peer + 1) * rows.groups]} - rows.send_offsets[peer * rows.groups];
    if (count > rows.max_rows_per_peer) *rows.overflow = 1;
  }
  Collective collective;
  collective.kind = Collective::Kind::exchange_rows;
  collective.exchange = rows;
  return {impl_, impl_->start(collective)};
}

Pending Communicator::start_all_to_all(const RowReturn& rows) const {
  check_rows(*impl_, rows);
  check_offsets(*impl_, rows.receive_offsets, rows.groups);
  for (int peer = 0; peer < size(); ++peer) {
    std::int64_t count = 0;
    for (int g = 0; g < rows.groups; ++g) {
      const std::int32_t rows_of_group = rows.send_counts[peer * rows.groups + g];
      FARSKIP_CHECK(rows_of_group >= 0, "{}: {} rows for rank {}", name(), rows_of_group, peer);
      count += rows_of_group;
    }
    FARSKIP_CHECK(count <= rows.max_rows_per_peer, "{}: {} rows in the slab of rank {}, which holds {}",
                  name(), count, peer, rows.max_rows_per_peer);
  }
  Collective collective;
  collective.kind = Collective::Kind::return_rows;
  collective.row_return = rows;
  return {impl_, impl_->start(collective)};
}

Communicator Communicator::split(int color, int key, const std::string& name) const {
  FARSKIP_CHECK(color >= 0, "{}: color {}", this->name(), color);
  return Communicator(impl_->split(color, key, name));
}

}  // namespace farskip
