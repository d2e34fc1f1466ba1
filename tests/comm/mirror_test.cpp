// SPDX-License-Identifier: Apache-2.0
#include "comm/mirror.h"

#include <limits>
#include <vector>

#include "comm/collective_errors.h"
#include "support/catch.h"

namespace farskip {
namespace {

TEST_CASE("the ranks of a mirror hold the same values: sums are multiples, extremes the value itself") {
  const Communicator group = make_mirror_communicator(3, 1);
  CHECK(group.size() == 3);
  CHECK(group.rank() == 1);
  std::vector<float> floats{1.5F, -2.0F};
  group.all_reduce(std::span(floats));
  CHECK(floats == std::vector<float>{4.5F, -6.0F});
  std::vector<double> doubles{0.25};
  group.all_reduce(std::span(doubles), Reduction::max);
  group.all_reduce(std::span(doubles), Reduction::min);
  CHECK(doubles == std::vector<double>{0.25});
  std::vector<std::int32_t> integers{std::numeric_limits<std::int32_t>::max()};
  group.all_reduce(std::span(integers));
  CHECK(integers[0] == std::numeric_limits<std::int32_t>::max() - 2);  // wraps around

  const std::vector<float> all{1, 2, 3, 4, 5};
  const std::vector<std::int64_t> offsets{0, 1, 3, 5};
  std::vector<float> own(2);
  group.reduce_scatter(std::span<const float>(all), offsets, std::span(own));
  CHECK(own == std::vector<float>{6, 9});
  group.reduce_scatter(std::span<const float>(all), offsets, std::span(own), Reduction::min);
  CHECK(own == std::vector<float>{2, 3});
}

TEST_CASE("a mirror gathers its own piece in every place, cut or filled up with zeros") {
  const Communicator group = make_mirror_communicator(4, 1);
  const std::vector<std::int64_t> offsets{0, 1, 3, 3, 6};
  std::vector<float> all{-1, 7, 8, -1, -1, -1};
  group.all_gather(std::span<const float>(all).subspan(1, 2), offsets, std::span(all));
  CHECK(all == std::vector<float>{7, 7, 8, 7, 8, 0});
  CHECK(all_gather_text(group, "abc") == std::vector<std::string>(4, "abc"));
  CHECK_NOTHROW(throw_together(group, nullptr));
}

struct Rows {
  std::vector<std::int32_t> offsets;
  std::vector<float> send, slabs, back;
  std::vector<std::int32_t> counts;
  std::int32_t overflow = -1;
};

// Two groups a peer, rows of two floats: row i is {i, i + 0.5}.
Rows exchange(const Communicator& group, std::vector<std::int32_t> offsets, std::int64_t most) {
  constexpr int groups = 2;
  Rows r;
  r.offsets = std::move(offsets);
  for (std::int32_t i = 0; i < r.offsets.back(); ++i) {
    r.send.push_back(static_cast<float>(i));
    r.send.push_back(static_cast<float>(i) + 0.5F);
  }
  r.slabs.assign(static_cast<std::size_t>(group.size() * most * 2), -1);
  r.back.assign(r.send.size(), -1);
  r.counts.assign(static_cast<std::size_t>(group.size() * groups), -1);
  group.all_to_all(RowExchange{.send = r.send.data(),
                               .send_offsets = r.offsets.data(),
                               .receive = r.slabs.data(),
                               .receive_counts = r.counts.data(),
                               .overflow = &r.overflow,
                               .row_bytes = 8,
                               .max_rows_per_peer = most,
                               .groups = groups});
  group.all_to_all(RowReturn{.send = r.slabs.data(),
                             .send_counts = r.counts.data(),
                             .receive = r.back.data(),
                             .receive_offsets = r.offsets.data(),
                             .row_bytes = 8,
                             .max_rows_per_peer = most,
                             .groups = groups});
  return r;
}

TEST_CASE("from each peer of a mirror come the rows that went to it, and they find their way back") {
  const Rows r = exchange(make_mirror_communicator(3, 2), {0, 1, 3, 3, 3, 3, 5}, 3);
  CHECK(r.counts == std::vector<std::int32_t>{1, 2, 0, 0, 0, 2});
  CHECK(r.overflow == 0);
  CHECK(r.slabs ==
        std::vector<float>{0, 0.5, 1, 1.5, 2, 2.5, -1, -1, -1, -1, -1, -1, 3, 3.5, 4, 4.5, -1, -1});
  CHECK(r.back == r.send);
}

TEST_CASE("rows that do not fit a slab of a mirror are cut, flagged, and come back as zeros") {
  const Rows r = exchange(make_mirror_communicator(2, 0), {0, 1, 4, 5, 5}, 2);
  CHECK(r.counts == std::vector<std::int32_t>{1, 1, 1, 0});
  CHECK(r.overflow == 1);
  CHECK(r.slabs == std::vector<float>{0, 0.5, 1, 1.5, 4, 4.5, -1, -1});
  CHECK(r.back == std::vector<float>{0, 0.5, 1, 1.5, 0, 0, 0, 0, 4, 4.5});
}

TEST_CASE("the mesh of a mirror has the groups of a real one") {
  const MeshPosition position{12, 7, 4};
  const Mesh mesh = make_mirror_mesh(position);
  CHECK(mesh.position() == position);
  CHECK(mesh.expert().size() == 4);
  CHECK(mesh.expert().rank() == 3);
  CHECK(mesh.data().size() == 3);
  CHECK(mesh.data().rank() == 1);
  CHECK_THROWS_AS(mesh.world().split(0, 0, "x"), InternalError);
  const MeshPosition shared{12, 7, 1, 4};
  CHECK(make_mirror_mesh(shared).position() == shared);
  CHECK(make_mirror_mesh(shared).batch().rank() == 1);
  CHECK_THROWS_AS(Mesh({mesh.world(), mesh.data(), mesh.expert(), mesh.tensor(), mesh.batch()}),
                  InternalError);
}

}  // namespace
}  // namespace farskip
