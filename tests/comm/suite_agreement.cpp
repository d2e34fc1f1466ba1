#include <new>

#include "farskip/comm/agreement.h"
#include "suite.h"

namespace farskip::test {

void check_gather_text(const Communicator& world) {
  // Empty, with a NUL, long; and everyone empty.
  const auto text_of = [](int rank) {
    if (rank % 3 == 0) return std::string();
    return rank % 3 == 1 ? std::string("a\0b", 3) : std::string(10'000 + static_cast<std::size_t>(rank), 'x');
  };
  const std::vector<std::string> texts = all_gather_text(world, text_of(world.rank()));
  expect(texts.size() == static_cast<std::size_t>(world.size()), "{} texts", texts.size());
  for (int r = 0; r < world.size(); ++r)
    expect(texts[static_cast<std::size_t>(r)] == text_of(r), "text of rank {} differs", r);
  for (const std::string& text : all_gather_text(world, "")) expect(text.empty(), "text from nowhere");
}

namespace {

template <class E>
std::exception_ptr made(const E& error) {
  return std::make_exception_ptr(error);
}

std::string prefix(const Communicator& world, int rank) {
  return world.size() == 1 ? "" : fmt::format("rank {}: ", rank);
}

/// All ranks throw an E of this code and message, and can go on afterwards.
template <class E>
void expect_thrown(const Communicator& world, const std::exception_ptr& mine, ExitCode code,
                   const std::string& message) {
  bool thrown = false;
  try {
    throw_together(world, mine);
  } catch (const E& e) {
    thrown = true;
    expect(e.code() == code, "exit code {}", static_cast<int>(e.code()));
    expect(e.what() == message, "message {}, expected {}", e.what(), message);
  }
  expect(thrown, "nothing of this type was thrown for {}", message);
  world.barrier();
}

}  // namespace

void check_throw_together(const Communicator& world) {
  throw_together(world, nullptr);
  const int last = world.size() - 1, me = world.rank();
  expect_thrown<UserError>(world, me == last ? made(DataError("bad bytes")) : nullptr, ExitCode::bad_data,
                           prefix(world, last) + "bad bytes");
  // The lowest rank's, whatever else there is.
  const auto each = made(UsageError(fmt::format("of {}", me)));
  expect_thrown<UserError>(world, me >= last / 2 ? each : nullptr, ExitCode::usage,
                           fmt::format("{}of {}", prefix(world, last / 2), last / 2));
  expect_thrown<InternalError>(world, me == last ? made(InternalError("broken")) : nullptr,
                               ExitCode::internal, prefix(world, last) + "broken");
  expect_thrown<Error>(world, me == 0 ? made(Error(ExitCode::resumable, "later")) : nullptr,
                       ExitCode::resumable, prefix(world, 0) + "later");
  if (world.size() == 1) return;  // as they are
  expect_thrown<Error>(world, me == last ? made(std::bad_alloc()) : nullptr, ExitCode::internal,
                       prefix(world, last) + "out of memory");
  expect_thrown<Error>(world, me == last ? made(std::runtime_error("")) : nullptr, ExitCode::internal,
                       prefix(world, last));
  expect_thrown<Error>(world, me == last ? made(7) : nullptr, ExitCode::internal,
                       prefix(world, last) + "unknown error");
}

}  // namespace farskip::test
