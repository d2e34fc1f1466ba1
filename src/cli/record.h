// SPDX-License-Identifier: Apache-2.0
#pragma once
// The result of a command: one record of named fields, printed as JSON or as text.
//
// A field says its unit in its name (step_seconds, memory_bytes); records and lists of them nest. Text is
// made of the same fields by forms, in the units in which people read them:
//
//   print_result(record, "step {step_seconds|ms:.1f} ms, memory {memory_bytes.weights|MiB:.0f} MiB", common);

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "cli/command.h"

namespace farskip {

using Record = nlohmann::ordered_json;

/// As JSON in one line. A path may hold bytes that are not UTF-8, which JSON cannot: U+FFFD stands for them.
std::string json_text(const Record& record);
/// json_text on stdout.
void print_json(const Record& record);

/// `form` with each {FIELD|UNIT:FORMAT} replaced by that field. FIELD may name a field of a field ("a.b"), or
/// the quotient of two numbers ("flops/seconds"). UNIT, if it is there, turns the number into another one:
/// ms, us, %, of bytes KiB, MiB, GiB, MB, GB, of rates G or T; `count` gives how many entries a list has.
/// FORMAT is that of fmt. InternalError for a field that is not there.
std::string text_of(const Record& record, std::string_view form);

/// A line of text_of on stdout.
void print_line(const Record& record, std::string_view form);
/// The same for each record of a list.
void print_lines(const Record& list, std::string_view form);
/// With --json the record, else its line.
void print_result(const Record& record, std::string_view form, const CommonOptions& common);

/// The same for text of several lines.
void print_result(const Record& record, const std::function<void(const Record&)>& print_text,
                  const CommonOptions& common);
/// With --json the record; its line goes to the log in any case.
void log_result(const Record& record, std::string_view form, const CommonOptions& common,
                const Logger& logger);

/// A field as a number, for what a form cannot say.
double number_of(const Record& record, std::string_view field);

}  // namespace farskip
