// SPDX-License-Identifier: Apache-2.0
#pragma once
// The little of Unicode that tokenizers need: UTF-8 checking and repair, and normal form C.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace farskip {

/// Byte offset of the first byte that does not belong to well-formed UTF-8 (surrogates, overlong forms
/// and code points above U+10FFFF are ill-formed), or nothing if all of `text` is well-formed.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);

/// Bytes at the end of `text` that begin a character and could still become one: 0 to 3.
std::size_t num_bytes_of_cut_character(std::string_view text);

/// The code point at `position` of well-formed UTF-8; advances `position` past it.
char32_t next_code_point(std::string_view text, std::size_t& position);
void append_code_point(std::string& text, char32_t code_point);

/// Each maximal ill-formed part becomes one U+FFFD (the Unicode standard's recommended practice, section
/// 3.9), as the Hugging Face libraries do when they decode.
std::string replace_invalid_utf8(std::string_view text);

/// Unicode's White_Space property.
bool is_white_space(char32_t code_point);

/// Normal form C of well-formed UTF-8 (Unicode standard annex 15, data of Unicode 14).
std::string normalize_nfc(std::string_view text);

}  // namespace farskip
