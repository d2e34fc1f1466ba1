#include "farskip/base/heartbeat.h"

#include <chrono>
#include <string>
#include <thread>

#include "support/catch.h"

namespace farskip {
namespace {

void sleep_100_ms() {
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

TEST_CASE("a heartbeat knows step, wait and age, and every call is a sign of life") {
  Heartbeat heartbeat;
  CHECK(heartbeat.last_sign().step == -1);
  CHECK(heartbeat.last_sign().waits_in == nullptr);
  const auto check_fresh = [&](const auto& call) {
    sleep_100_ms();
    CHECK(heartbeat.last_sign().age_seconds > 0.09);
    call();
    CHECK(heartbeat.last_sign().age_seconds < 0.09);
  };
  check_fresh([&] { heartbeat.begin_step(17); });
  check_fresh([&] { heartbeat.enter("expert.all_to_all"); });
  CHECK(heartbeat.last_sign().step == 17);
  CHECK(heartbeat.last_sign().waits_in == std::string("expert.all_to_all"));
  check_fresh([&] { heartbeat.beat(); });
  CHECK(heartbeat.last_sign().waits_in != nullptr);
  check_fresh([&] { heartbeat.leave(); });
  CHECK(heartbeat.last_sign().waits_in == nullptr);
}

TEST_CASE("of nested waits the outermost has the name") {
  Heartbeat heartbeat;
  {
    const HeartbeatWait outer(&heartbeat, "the end of a checkpoint");
    { const HeartbeatWait inner(&heartbeat, "all_reduce"); }
    CHECK(heartbeat.last_sign().waits_in == std::string("the end of a checkpoint"));
  }
  CHECK(heartbeat.last_sign().waits_in == nullptr);
}

TEST_CASE("answers of peers end their silence, but are no progress") {
  Heartbeat heartbeat;
  CHECK(heartbeat.last_sign().silence_seconds == 0);
  heartbeat.enter("the files of a checkpoint");
  sleep_100_ms();
  CHECK(heartbeat.last_sign().silence_seconds == 0);  // not yet a wait in which they answer
  heartbeat.hear_from_peers();
  sleep_100_ms();
  CHECK(heartbeat.last_sign().silence_seconds > 0.09);
  CHECK(heartbeat.last_sign().age_seconds > 0.19);
  heartbeat.hear_from_peers();
  CHECK(heartbeat.last_sign().silence_seconds < 0.09);
  CHECK(heartbeat.last_sign().age_seconds > 0.19);
  heartbeat.leave();
  sleep_100_ms();
  CHECK(heartbeat.last_sign().silence_seconds == 0);
}

TEST_CASE("a heartbeat is patient while any long work lives, and the end of it is a sign of life") {
  Heartbeat heartbeat;
  CHECK_FALSE(heartbeat.last_sign().patient);
  {
    const HeartbeatPatience outer(heartbeat);
    { const HeartbeatPatience inner(heartbeat); }
    CHECK(heartbeat.last_sign().patient);
    sleep_100_ms();
  }
  CHECK_FALSE(heartbeat.last_sign().patient);
  CHECK(heartbeat.last_sign().age_seconds < 0.09);
}

}  // namespace
}  // namespace farskip
