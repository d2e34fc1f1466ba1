// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <span>
#include <vector>

#include "suite.h"

namespace farskip::test {
namespace {

/// Rows from `source` for group g of `target`.
using CountOf = int (*)(int source, int target, int group);

struct Row {
  std::int32_t source = -1, target = -1, group = -1, index = -1;
  bool operator==(const Row&) const = default;
};

/// Rows that say where they come from and go to, by target and group.
struct SentRows {
  std::vector<Row> rows;
  std::vector<std::int32_t> offsets{0};
};

SentRows make_rows(const Communicator& world, CountOf count_of, int groups) {
  SentRows sent;
  for (int target = 0; target < world.size(); ++target)
    for (int g = 0; g < groups; ++g) {
      for (int i = 0; i < count_of(world.rank(), target, g); ++i)
        sent.rows.push_back({world.rank(), target, g, i});
      sent.offsets.push_back(static_cast<std::int32_t>(sent.rows.size()));
    }
  return sent;
}

/// Slab `source` holds its first rows for this rank, as many as fit, and nothing else was touched.
void check_slab(const Communicator& world, CountOf count_of, int source, std::span<const Row> slab,
                std::span<const std::int32_t> counts) {
  std::size_t at = 0;
  for (int g = 0; g < static_cast<int>(counts.size()); ++g) {
    const int fits = std::min(count_of(source, world.rank(), g), static_cast<int>(slab.size() - at));
    expect(counts[g] == fits, "{} rows from {} for group {}, not {}", counts[g], source, g, fits);
    for (int i = 0; i < fits; ++i, ++at)
      expect(slab[at] == Row{source, world.rank(), g, i}, "row {} of group {} from {}", i, g, source);
  }
  for (; at < slab.size(); ++at) expect(slab[at] == Row{}, "the rest of slab {} was touched", source);
}

/// Sends rows, checks each on arrival, sends them back, checks them again. Where a peer gets more than
/// `max_rows`, the rest must be zero and this rank's flag set.
void check_round_trip(const Communicator& world, CountOf count_of, int groups, int max_rows) {
  const SentRows sent = make_rows(world, count_of, groups);
  const auto size = static_cast<std::size_t>(world.size()), slab_rows = static_cast<std::size_t>(max_rows),
             num_groups = static_cast<std::size_t>(groups);
  std::vector<Row> slabs(size * slab_rows);
  std::vector<std::int32_t> counts(size * num_groups, -1);
  std::int32_t overflow = -1;
  world.all_to_all(RowExchange{sent.rows.data(), sent.offsets.data(), slabs.data(), counts.data(), &overflow,
                               sizeof(Row), max_rows, groups});
  for (std::size_t source = 0; source < size; ++source)
    check_slab(world, count_of, static_cast<int>(source),
               std::span(slabs).subspan(source * slab_rows, slab_rows),
               std::span(counts).subspan(source * num_groups, num_groups));

  std::vector<Row> wanted = sent.rows;
  bool too_many = false;
  for (std::size_t target = 0; target < size; ++target)
    for (auto i = sent.offsets[target * num_groups] + max_rows; i < sent.offsets[(target + 1) * num_groups];
         ++i) {
      wanted[i] = {0, 0, 0, 0};
      too_many = true;
    }
  expect(overflow == (too_many ? 1 : 0), "the flag of overflow is {}", overflow);
  std::vector<Row> back(sent.rows.size());
  world.all_to_all(RowReturn{slabs.data(), counts.data(), back.data(), sent.offsets.data(), sizeof(Row),
                             max_rows, groups});
  expect(back == wanted, "rows that came back differ");
}

}  // namespace

void check_row_exchange(const Communicator& world) {
  const CountOf uneven = [](int source, int target, int g) { return (source * 5 + target * 3 + g * 2) % 7; };
  for (const int groups : {1, 2, 5}) check_round_trip(world, uneven, groups, 7 * groups);
  check_round_trip(
      world, [](int s, int t, int g) { return 300 + s + t + g; }, 3, 1000);  // beyond eager messages
}

void check_row_extremes(const Communicator& world) {
  check_round_trip(
      world, [](int, int, int) { return 0; }, 3, 4);
  check_round_trip(
      world, [](int, int, int) { return 0; }, 1, 0);  // room for none
  check_round_trip(
      world, [](int source, int, int) { return source == 0 ? 0 : 2; }, 2, 4);
  check_round_trip(
      world, [](int, int target, int) { return target == 0 ? 2 : 0; }, 2, 4);
  check_round_trip(
      world, [](int, int, int g) { return g == 1 ? 4 : 0; }, 3, 4);  // exactly full
}

void check_row_overflow(const Communicator& world) {
  const CountOf last_too_many = [](int source, int, int g) { return source == 0 && g == 2 ? 5 : 2; };
  check_round_trip(world, last_too_many, 3, 8);  // 9 rows from rank 0: the last group loses one
  const CountOf first_too_many = [](int source, int target, int g) { return source == target ? 1 : 9 - g; };
  check_round_trip(world, first_too_many, 3, 4);  // nothing is left for later groups, except to itself
  check_round_trip(
      world, [](int, int, int) { return 3; }, 2, 0);  // room for none
  check_round_trip(
      world, [](int source, int target, int g) { return 300 + source + target + g; }, 3, 500);
  check_round_trip(
      world, [](int, int, int) { return 2; }, 2, 4);  // what fits again is whole again
}

}  // namespace farskip::test
