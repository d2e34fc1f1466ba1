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

/// Sends rows that say where they come from and go to, checks each on arrival, sends them back, checks them
/// again.
void check_round_trip(const Communicator& world, CountOf count_of, int groups, int max_rows) {
  const int rank = world.rank(), size = world.size();
  std::vector<Row> rows;
  std::vector<std::int32_t> offsets{0};
  for (int target = 0; target < size; ++target) {
    for (int g = 0; g < groups; ++g) {
      for (int i = 0; i < count_of(rank, target, g); ++i) rows.push_back({rank, target, g, i});
      offsets.push_back(static_cast<std::int32_t>(rows.size()));
    }
  }
  const auto num_slabs = static_cast<std::size_t>(size);
  std::vector<Row> slabs(num_slabs * static_cast<std::size_t>(max_rows));
  std::vector<std::int32_t> counts(num_slabs * static_cast<std::size_t>(groups), -1);
  world.all_to_all(
      RowExchange{rows.data(), offsets.data(), slabs.data(), counts.data(), sizeof(Row), max_rows, groups});

  for (int source = 0; source < size; ++source) {
    std::size_t at = static_cast<std::size_t>(source) * static_cast<std::size_t>(max_rows);
    const std::size_t end = at + static_cast<std::size_t>(max_rows);
    for (int g = 0; g < groups; ++g) {
      expect(counts[source * groups + g] == count_of(source, rank, g), "{} rows from {} for group {}",
             counts[source * groups + g], source, g);
      for (int i = 0; i < count_of(source, rank, g); ++i, ++at)
        expect(slabs[at] == Row{source, rank, g, i}, "row {} of group {} from {}", i, g, source);
    }
    for (; at < end; ++at) expect(slabs[at] == Row{}, "the rest of slab {} was touched", source);
  }

  std::vector<Row> back(rows.size());
  world.all_to_all(
      RowReturn{slabs.data(), counts.data(), back.data(), offsets.data(), sizeof(Row), max_rows, groups});
  expect(back == rows, "rows that came back differ");
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
  // Every rank has one row too many for the last rank.
  const int last = world.size() - 1;
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(world.size()) + 1, 0);
  offsets.back() = 5;
  std::vector<float> rows(5), slabs(4 * static_cast<std::size_t>(world.size()));
  std::vector<std::int32_t> counts(static_cast<std::size_t>(world.size()));
  std::string message;
  try {
    world.all_to_all(RowExchange{rows.data(), offsets.data(), slabs.data(), counts.data(), 4, 4, 1});
  } catch (const RowOverflowError& error) {
    message = error.what();
  }
  const std::string wanted = fmt::format(
      "rank {} has 5 routed rows for rank {}, but the plan has room for 4 rows", world.rank(), last);
  expect(message.find(wanted) != std::string::npos, "'{}' does not say '{}'", message, wanted);
  world.barrier();  // nothing was sent: the group is still usable
}

}  // namespace farskip::test
