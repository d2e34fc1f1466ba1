// SPDX-License-Identifier: Apache-2.0
#pragma once
// Cutting text into the words inside which byte pairs merge. A pre-tokenizer is data: a list of splits by
// regular expression, as tokenizer.json spells it.

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/regex.h"

namespace farskip {

/// The pattern of GPT-2, which ByteLevel uses with "use_regex".
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class PreTokenizer {
 public:
  /// From the "pre_tokenizer" value of tokenizer.json: ByteLevel, or a Sequence of Split (behaviors
  /// Isolated and Removed), Digits and a last ByteLevel. Throws DataError, naming `where`, for others.
  PreTokenizer(const nlohmann::json& description, const std::string& where);

  using Emit = std::function<void(std::string_view word)>;
  /// What one thread needs to split with.
  class Splitter {
   public:
    explicit Splitter(const PreTokenizer& pre_tokenizer);
    /// Emits the words of `text` (well-formed UTF-8) in order; each view lives only during its call.
    void split(std::string_view text, const Emit& emit);

   private:
    void run_stage(std::size_t stage, std::string_view text, const Emit& emit);
    const PreTokenizer& pre_tokenizer_;
    std::vector<Regex::Matcher> matchers_;
  };

 private:
  struct Split {
    Regex regex;
    bool keep_matches, keep_gaps;
  };
  void add_step(const nlohmann::json& step, const std::string& where);
  void add_split(const nlohmann::json& step, const std::string& where);
  void add_byte_level(const nlohmann::json& step, const std::string& where);

  std::vector<Split> splits_;
  std::size_t prefix_before_ = 0;  // the split before which a leading space is added
  bool add_prefix_space_ = false;
  bool ends_with_byte_level_ = false;
};

}  // namespace farskip
