// SPDX-License-Identifier: Apache-2.0
#pragma once
// Unicode regular expressions (PCRE2, compiled to machine code), written in the dialect of tokenizer
// files, which is Oniguruma's.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace farskip {

/// An immutable compiled pattern; copies share it, and any number of threads may match with it.
class Regex {
 public:
  /// Throws DataError, naming `where`, for a pattern that does not compile or uses constructs whose
  /// meaning differs between the two dialects and is not translated.
  Regex(std::string_view pattern, std::string_view where);

  struct Match {
    std::size_t begin, end;
  };

  /// What one thread needs to match with one pattern.
  class Matcher {
   public:
    explicit Matcher(const Regex& regex);
    Matcher(Matcher&&) noexcept;
    ~Matcher();
    /// The first match in `text` (well-formed UTF-8) at or after byte `from`. Look-behind sees the bytes
    /// before `from`. Throws DataError, naming `where` of the pattern, if it needs
    /// absurd resources on this text.
    std::optional<Match> find(std::string_view text, std::size_t from) const;

   private:
    struct State;
    std::unique_ptr<State> state_;
  };

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

/// Matches the text itself, whatever characters it holds.
std::string escape_regex(std::string_view text);

/// The same pattern in PCRE2's dialect: `\s` becomes the explicit list of Unicode's White_Space, `\uHHHH`
/// and `\v` take their Oniguruma meaning. Throws DataError for what is not translated (nested sets, set
/// intersection, POSIX brackets, `\w`, `\b`, `\h`, inline flags other than i and x).
std::string translate_oniguruma(std::string_view pattern, std::string_view where);

}  // namespace farskip
