#pragma once
// What every communicator must do, whatever carries it. Each case is run by all ranks of a world at once and
// throws on a wrong result. (Test frameworks' assertions are for one thread and one process.)

#include <span>
#include <stdexcept>
#include <string>

#include "farskip/comm/communicator.h"

namespace farskip::test {

struct CommunicatorCase {
  const char* name;
  void (*run)(const Communicator& world);
};
std::span<const CommunicatorCase> communicator_cases();

template <class... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw std::runtime_error(fmt::format(format, std::forward<Args>(args)...));
}

// Defined in the files of the suite.
void check_all_reduce(const Communicator& world);
void check_fixed_order(const Communicator& world);
void check_not_a_number(const Communicator& world);
void check_reduce_scatter(const Communicator& world);
void check_all_gather(const Communicator& world);
void check_broadcast(const Communicator& world);
void check_many_in_flight(const Communicator& world);
void check_split(const Communicator& world);
void check_groups_serve_each_other(const Communicator& world);
void check_mesh(const Communicator& world);
void check_row_exchange(const Communicator& world);
void check_row_extremes(const Communicator& world);
void check_row_overflow(const Communicator& world);
void check_poll(const Communicator& world);
void check_gather_text(const Communicator& world);
void check_throw_together(const Communicator& world);
void check_work_together(const Communicator& world);

}  // namespace farskip::test
