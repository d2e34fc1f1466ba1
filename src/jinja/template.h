// SPDX-License-Identifier: Apache-2.0
#pragma once
// Chat templates: the subset of Jinja2 that those of published models use, as transformers renders them
// (trim_blocks, lstrip_blocks). Anything else is refused by name, never passed over.

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace farskip::jinja {

struct Block;

/// A template that was read. Immutable; any number of threads may render it.
///
/// Statements: if, elif, else, for (over lists, and key and value of items(); with a condition; loop.*), set
/// (of names, and of members of a namespace), break, continue, generation. Expressions: literals, lists,
/// maps, members, slices, calls, + - * / // %, ~, comparisons, in, is, and, or, not, if-else, filters.
/// docs/serving.md lists filters, tests, methods and functions.
class Template {
 public:
  /// DataError naming `where`, the line and what is wrong or not supported.
  static Template parse(std::string_view text, const std::string& where);
  /// `variables`: an object. DataError as above, also where the template calls raise_exception, where it
  /// would take too many steps, and where its text would be too long.
  std::string render(const nlohmann::ordered_json& variables) const;

 private:
  std::shared_ptr<const std::string> where_;  // places in the body point to it
  std::shared_ptr<const Block> body_;
};

}  // namespace farskip::jinja
