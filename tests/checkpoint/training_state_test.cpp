// SPDX-License-Identifier: Apache-2.0
// What a checkpoint remembers beside tensors: every field is checked before it is used.
#include "checkpoint/training_state.h"

#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

using nlohmann::json;

const TrainingState kState{
    7, 56, 1792, {{"seed", "1"}}, 1e-3, {{"best", 2.5}, {"best_step", 6.0}, {"looks_without", 0.0}}};

json printed() {
  return print_state(kState, read_hub_config(test::fixtures() / "deepseek_v2"));
}

TEST_CASE("a state comes back as it was") {
  CHECK(parse_state(printed(), 7, "m") == kState);
  TrainingState small{7, 0, 0};
  CHECK(parse_state(print_state(small, read_hub_config(test::fixtures() / "deepseek_v2")), 7, "m") == small);
}

TEST_CASE("a field of a state that is wrong in any way is refused by name") {
  const std::vector<std::pair<std::string, std::vector<json>>> wrong{
      {"step", {nullptr, 7, "8", "-7", "7 ", "", "7.0", "99999999999999999999", json::array(), true}},
      {"samples", {nullptr, 56, "-1", "-4", "1e3", "9223372036854775807", "0x10", json::object()}},
      {"tokens", {nullptr, 1792, "-1", "x", "1152921504606846977", json::array({"1"})}},
      {"learning_rate", {nullptr, 0.1, "inf", "nan", "", "1e400", "0.1x", json::object()}},
      {"settings", {nullptr, "x", 3, json::array(), json{{"seed", 1}}, json{{"seed", nullptr}}}},
      {"numbers",
       {nullptr, 1, json::array(), json{{"best", 1.0}}, json{{"best", "1"}},
        json{{"best", "nan"}, {"best_step", "1"}, {"looks_without", "0"}},
        json{{"best", "1"}, {"best_step", "1"}}, json{{"teacher_loss", "1"}}, json{{"untrained_loss", "1"}},
        json{{"surprise", "1"}}}},
      {"model", {nullptr, 3, "x", json::array()}}};
  for (const auto& [field, values] : wrong)
    for (const json& value : values) {
      json state = printed();
      state[field] = value;
      INFO(field << " = " << value.dump());
      try {
        parse_state(state, 7, "m");
        FAIL_CHECK("no error");
      } catch (const DataError& error) {
        CHECK_THAT(error.what(), ContainsSubstring("m: state: `" + field));
      }
    }
  for (const char* field : {"step", "samples", "tokens", "model"}) {
    json state = printed();
    state.erase(field);
    INFO("without " << field);
    CHECK_THROWS_AS(parse_state(state, 7, "m"), DataError);
  }
  CHECK_THROWS_WITH(parse_state(printed(), 8, "m"),
                    ContainsSubstring("`step` is 7, the checkpoint is of step 8"));
}

}  // namespace
}  // namespace farskip
