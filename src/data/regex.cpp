// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/regex.h"

#include <pcre2.h>

#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {

struct Regex::Code {
  pcre2_code* handle = nullptr;
  std::string pattern, where;
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(handle); }
};

namespace {

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string_view where) {
  const std::string translated = translate_oniguruma(pattern, where);
  auto code = std::make_shared<Code>();
  code->pattern = pattern;
  code->where = where;
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  FARSKIP_CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // In Oniguruma's default syntax ^ and $ always match at line ends, hence PCRE2_MULTILINE.
  code->handle = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                               PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context.get());
  if (code->handle == nullptr)
    throw DataError(fmt::format("{}: regular expression \"{}\" does not compile: {}", where,
                                printable(pattern), pcre2_message(error)));
  // Where PCRE2 was built without its compiler this fails and matching interprets the pattern.
  pcre2_jit_compile(code->handle, PCRE2_JIT_COMPLETE);
  code_ = std::move(code);
}

struct Regex::Matcher::State {
  std::shared_ptr<const Code> code;
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

Regex::Matcher::Matcher(const Regex& regex) : state_(std::make_unique<State>()) {
  state_->code = regex.code_;
  state_->data = pcre2_match_data_create_from_pattern(regex.code_->handle, nullptr);
  state_->context = pcre2_match_context_create(nullptr);
  FARSKIP_CHECK(state_->data != nullptr && state_->context != nullptr, "out of memory");
  state_->stack = pcre2_jit_stack_create(std::size_t{32} << 10, std::size_t{16} << 20, nullptr);
  if (state_->stack != nullptr) pcre2_jit_stack_assign(state_->context, nullptr, state_->stack);
}

Regex::Matcher::Matcher(Matcher&&) noexcept = default;
Regex::Matcher::~Matcher() = default;

std::optional<Regex::Match> Regex::Matcher::find(std::string_view text, std::size_t from) const {
  const auto match = [&](std::uint32_t options) {
    return pcre2_match(state_->code->handle, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, state_->data, state_->context);
  };
  int result = match(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0)
    throw DataError(fmt::format(
        "{}: regular expression \"{}\" gave up at byte {} of a text of {} bytes: {}; write it so "
        "that it tries fewer ways to match (possessive: ++ and *+), or divide the text",
        state_->code->where, printable(state_->code->pattern), from, text.size(), pcre2_message(result)));
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state_->data);
  return Match{bounds[0], bounds[1]};
}

}  // namespace farskip
