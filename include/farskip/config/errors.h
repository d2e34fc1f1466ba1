// SPDX-License-Identifier: Apache-2.0
#pragma once
// Positions in configuration files, and the list in which all mistakes of one configuration gather before
// any is reported.

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/error.h"

namespace farskip {

/// A place in a configuration. Lines and columns count from 1, columns in characters. Line 0 means that
/// `file` alone says it all, as in `command line: train.steps=20`.
struct Position {
  std::shared_ptr<const std::string> file;
  int line = 0;
  int column = 0;
};

/// `file:line:column`, or `file` for line 0.
std::string describe(const Position& position);

/// One key that the schema knows, as its reader declared it.
struct KnownKey {
  std::string path;      // train.learning_rate.peak
  std::string allowed;   // "number > 0"
  std::string fallback;  // the default as YAML; "required", or "-" for a value that may be left out
};

/// The mistakes of one configuration. Readers of all its sections share one list; throw_if_any() then
/// reports every mistake at once by position, one a line; a misspelt key before the line that misses it.
class ErrorList {
 public:
  /// `kind` says whose fault a mistake is: ExitCode::usage (a run configuration) or ExitCode::bad_data (the
  /// config.json of a model).
  explicit ErrorList(ExitCode kind = ExitCode::usage) : kind_(kind) {}

  /// `message` says what value was found, what is allowed and how to mend it. `path` may be empty.
  void add(const Position& position, const std::string& path, const std::string& message);
  /// A key that no reader asked for. The nearest valid key is searched when the list is reported, because
  /// other sections, where the key may belong, are often read later.
  void add_unknown_key(const Position& position, const std::string& section, const std::string& key);
  void add_known_key(const KnownKey& key);

  /// The user should know this, although nothing is wrong.
  void add_notice(std::string text) { notices_.push_back(std::move(text)); }
  const std::vector<std::string>& notices() const { return notices_; }

  bool empty() const { return mistakes_.empty(); }
  std::size_t size() const { return mistakes_.size(); }
  /// In the order of reading, each path once.
  const std::vector<KnownKey>& known_keys() const { return known_keys_; }
  /// All mistakes, one a line, without a newline at the end. Beyond a hundred they are only counted.
  std::string report() const;
  /// Throws UsageError (DataError for ExitCode::bad_data) with report() unless the list is empty.
  void throw_if_any() const;

 private:
  struct Mistake {
    Position position;
    std::string path;     // the section, for an unknown key
    std::string message;  // the key, for an unknown key
    bool unknown_key = false;
  };
  std::string describe_unknown_key(const std::string& section, const std::string& key) const;

  ExitCode kind_;
  std::vector<Mistake> mistakes_;
  std::vector<std::string> notices_;
  std::vector<KnownKey> known_keys_;
  std::set<std::string> known_paths_;
};

/// `text` between quotes, control characters escaped and long texts cut, fit for a message of one line.
std::string quote_for_message(std::string_view text);

/// Path of `key` inside `section` (which may be empty, the root).
std::string join_path(std::string_view section, std::string_view key);

}  // namespace farskip
