// SPDX-License-Identifier: Apache-2.0
#include "tensor/sealed_json.h"

#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "tensor/hash.h"
#include "tensor/strict_json.h"

namespace farskip {
namespace {

// First line of the text: this, 32 hex digits, and the tail. The hash covers every byte after that line.
constexpr std::string_view kHead = "{\"manifest_xxh3_128\": \"";
constexpr std::string_view kTail = "\",\n";
constexpr std::size_t kHashDigits = 32;

}  // namespace

std::string print_sealed(const nlohmann::json& object) {
  const std::string rest = object.dump(1).substr(1) + "\n";  // without the opening brace, which is in kHead
  return fmt::format("{}{}{}{}", kHead, hash_text(rest), kTail, rest);
}

nlohmann::json parse_sealed(std::string_view text, std::string_view where) {
  const std::size_t body = kHead.size() + kHashDigits + kTail.size();
  if (text.size() < body || text.substr(0, kHead.size()) != kHead ||
      text.substr(body - kTail.size(), kTail.size()) != kTail)
    throw DataError(fmt::format("{}: does not begin as a manifest does; truncated or damaged", where));
  if (text.substr(kHead.size(), kHashDigits) != hash_text(text.substr(body)))
    throw DataError(
        fmt::format("{}: content does not have the hash in its first line; truncated or damaged", where));
  return parse_strict_json(text, where);
}

}  // namespace farskip
