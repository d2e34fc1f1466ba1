// SPDX-License-Identifier: Apache-2.0
#include "data/pre_tokenizer.h"

#include <nlohmann/json.hpp>

#include "data/json_fields.h"
#include "data/unicode.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {

PreTokenizer::PreTokenizer(const nlohmann::json& description, const std::string& where) {
  add_step(description, where);
  if (!ends_with_byte_level_)
    throw DataError(
        fmt::format("{}: must be a ByteLevel pre-tokenizer or a Sequence that ends with one; only "
                    "byte-level BPE is supported",
                    where));
}

void PreTokenizer::add_step(const nlohmann::json& step, const std::string& where) {
  JsonFields fields(step, where);
  const std::string type = fields.require_string("type");
  if (ends_with_byte_level_)
    throw DataError(fmt::format("{}: {} after ByteLevel is not supported", where, type));
  if (type == "Sequence") {
    const nlohmann::json& steps = fields.require("pretokenizers");
    if (!steps.is_array()) throw DataError(fmt::format("{}: a list is expected", fields.at("pretokenizers")));
    for (std::size_t i = 0; i < steps.size(); ++i)
      add_step(steps[i], fmt::format("{}[{}]", fields.at("pretokenizers"), i));
    fields.finish();
  } else if (type == "Split") {
    add_split(step, where);
  } else if (type == "Digits") {
    const bool individual = fields.boolean_or("individual_digits", false);
    fields.finish();
    splits_.push_back({Regex(individual ? R"(\p{N})" : R"(\p{N}+)", where), true, true});
  } else if (type == "ByteLevel") {
    add_byte_level(step, where);
  } else {
    throw DataError(
        fmt::format("{}: pre-tokenizer \"{}\" is not supported; Sequence, Split, Digits and ByteLevel are",
                    where, printable(type)));
  }
}

void PreTokenizer::add_split(const nlohmann::json& step, const std::string& where) {
  JsonFields fields(step, where);
  fields.get("type");
  JsonFields pattern(fields.require("pattern"), fields.at("pattern"));
  const bool literal = !pattern.get("String").is_null();
  const std::string text = pattern.require_string(literal ? "String" : "Regex");
  pattern.finish();
  const std::string behavior = fields.require_string("behavior");
  const bool invert = fields.boolean_or("invert", false);
  fields.finish();
  if (behavior != "Isolated" && behavior != "Removed")
    throw DataError(fmt::format("{}: \"{}\" is not supported; Isolated and Removed are",
                                fields.at("behavior"), printable(behavior)));
  const bool removes = behavior == "Removed";  // inverted, the gaps count as the matches
  splits_.push_back(
      {Regex(literal ? escape_regex(text) : text, where), !removes || invert, !removes || !invert});
}

void PreTokenizer::add_byte_level(const nlohmann::json& step, const std::string& where) {
  JsonFields fields(step, where);
  fields.get("type");
  add_prefix_space_ = fields.boolean_or("add_prefix_space", true);
  fields.boolean_or("trim_offsets", true);  // moves reported offsets, never ids
  const bool use_regex = fields.boolean_or("use_regex", true);
  fields.finish();
  prefix_before_ = splits_.size();
  if (use_regex) splits_.push_back({Regex(kGpt2Pattern, where), true, true});
  ends_with_byte_level_ = true;
}

PreTokenizer::Splitter::Splitter(const PreTokenizer& pre_tokenizer) : pre_tokenizer_(pre_tokenizer) {
  for (const Split& split : pre_tokenizer.splits_) matchers_.emplace_back(split.regex);
}

void PreTokenizer::Splitter::split(std::string_view text, const Emit& emit) {
  run_stage(0, text, emit);
}

void PreTokenizer::Splitter::run_stage(std::size_t stage, std::string_view text, const Emit& emit) {
  if (text.empty()) return;
  std::string prefixed;
  if (stage == pre_tokenizer_.prefix_before_ && pre_tokenizer_.add_prefix_space_ && text.front() != ' ') {
    prefixed.append(1, ' ').append(text);
    text = prefixed;
  }
  if (stage == matchers_.size()) return emit(text);
  const Split& split = pre_tokenizer_.splits_[stage];
  std::size_t done = 0, from = 0;
  while (from <= text.size()) {
    const auto match = matchers_[stage].find(text, from);
    if (!match) break;
    if (split.keep_gaps) run_stage(stage + 1, text.substr(done, match->begin - done), emit);
    if (split.keep_matches) run_stage(stage + 1, text.substr(match->begin, match->end - match->begin), emit);
    done = from = match->end;
    if (match->begin == match->end) {  // an empty match splits there; look for the next one a character on
      if (from == text.size()) break;
      next_code_point(text, from);
    }
  }
  if (split.keep_gaps) run_stage(stage + 1, text.substr(done), emit);
}

}  // namespace farskip
