// SPDX-License-Identifier: Apache-2.0
// Positions in config.json: the rotary base and its scaling, in each of their spellings.

#include "hub_json.h"
#include "support/catch.h"

namespace farskip {
namespace {

using test::fixture_config;
using test::Json;
using test::read;
using test::refusal;
using test::with;

TEST_CASE("the rotary base is taken from either place, or from both where they agree") {
  Json bare = fixture_config("qwen3_moe");
  bare.erase("rope_parameters");
  const std::string standard = R"({"rope_type": "default"})",
                    whole = R"({"rope_type": "default", "rope_theta": 1e6})";
  CHECK(read(bare).rope.theta == 1e4);
  CHECK(read(with(bare, {{"rope_theta", "1000000.0"}})).rope.theta == 1e6);
  CHECK(read(with(bare, {{"rope_theta", "1e6"}, {"rope_parameters", standard}})).rope.theta == 1e6);
  CHECK(read(with(bare, {{"rope_theta", "1e6"}, {"rope_scaling", "null"}})).rope.theta == 1e6);
  CHECK(read(with(bare, {{"rope_theta", "null"}, {"rope_parameters", whole}})).rope.theta == 1e6);
  CHECK(read(with(bare, {{"rope_theta", "1000000"}, {"rope_parameters", whole}})).rope.theta == 1e6);
  CHECK(read(with(bare, {{"rope_parameters", "null"}, {"rope_scaling", whole}})).rope.theta == 1e6);
  CHECK_THAT(refusal(with(bare, {{"rope_theta", "10000.0"}, {"rope_parameters", whole}})),
             ContainsSubstring("rope_theta: \"10000.0\" here") &&
                 ContainsSubstring("rope_parameters.rope_theta") && ContainsSubstring("1000000.0") &&
                 ContainsSubstring("leave one of them"));
}

TEST_CASE("the scaling of positions is taken from rope_scaling, rope_parameters, or both where they agree") {
  Json bare = fixture_config("deepseek_v2_yarn");
  Json yarn = bare["rope_parameters"];
  const ModelConfig expected = read(bare);
  yarn.erase("rope_theta");
  bare.erase("rope_parameters");
  Json old = yarn;
  old.erase("rope_type");
  old["type"] = "yarn";
  CHECK(read(with(bare, {{"rope_scaling", old.dump()}})) == expected);
  CHECK(read(with(bare, {{"rope_scaling", old.dump()}, {"rope_parameters", yarn.dump()}})) == expected);
  Json both = yarn;
  both["type"] = "yarn";
  CHECK(read(with(bare, {{"rope_scaling", both.dump()}})) == expected);
  Json other = old;
  other["factor"] = 8.0;
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", other.dump()}, {"rope_parameters", yarn.dump()}})),
             ContainsSubstring("rope_scaling.factor: \"8.0\" here, but rope_parameters.factor"));
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", R"({"type": "dynamic", "factor": 2.0})"}})),
             ContainsSubstring("dynamic"));
  both["type"] = "default";
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", both.dump()}})), ContainsSubstring("rope_type"));
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", "[1]"}})), ContainsSubstring("a list stands here"));
}

TEST_CASE("positions are scaled linearly, or as in Llama 3") {
  Json bare = fixture_config("llama");
  bare.erase("rope_parameters");
  const auto scaled = [&](const std::string& scaling) {
    return read(with(bare, {{"rope_theta", "5e5"}, {"rope_scaling", scaling}})).rope;
  };
  const RopeConfig linear = scaled(R"({"type": "linear", "factor": 4.0})");
  CHECK(linear.scaling == ops::RopeScaling::linear);
  CHECK(linear.factor == 4.0);
  const std::string llama3 =
      R"({"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": LOW,
          "original_max_position_embeddings": 8192})";
  const auto with_low = [&](const std::string& low) {
    return std::string(llama3).replace(llama3.find("LOW"), 3, low);
  };
  CHECK(scaled(with_low("1.0")) == RopeConfig{.theta = 5e5,
                                              .scaling = ops::RopeScaling::llama3,
                                              .factor = 32.0,
                                              .original_positions = 8192,
                                              .beta_fast = 4.0,
                                              .beta_slow = 1.0});
  CHECK(scaled(with_low("4.0")).beta_slow == 4.0);  // a step, as Llama 4 has it
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", with_low("4.5")}})),
             ContainsSubstring("high_freq_factor: 4 is below low_freq_factor, 4.5"));
  CHECK_THAT(refusal(with(bare, {{"rope_scaling", R"({"rope_type": "llama3", "factor": 8.0})"}})),
             ContainsSubstring("low_freq_factor"));
  // Without the length that was first learnt it is that of the model.
  CHECK(read(with(bare, {{"max_position_embeddings", "512"},
                         {"rope_scaling", R"({"type": "yarn", "factor": 4.0})"}}))
            .rope.original_positions == 512);
}

}  // namespace
}  // namespace farskip
