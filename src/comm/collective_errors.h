// SPDX-License-Identifier: Apache-2.0
#pragma once
// What ranks tell each other in text, and how they fail together.

#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/base/log.h"
#include "farskip/comm/communicator.h"

namespace farskip {

/// Everyone's text, in order of rank. Lengths may differ and may be zero. Collective.
std::vector<std::string> all_gather_text(const Communicator& group, std::string_view mine);

/// What a file that can be made again holds as rank 0 sees it, on every rank; empty where it is not there,
/// or, with a warning, where it cannot be read. Collective.
std::string read_on_first_rank(const Communicator& group, const fs::path& path, const Logger& logger);

/// Collective verdict on a piece of work that each rank did by itself. Returns if no rank has an error
/// (`mine` is null everywhere). Otherwise every rank throws that of the lowest rank that has one, as "rank
/// 2: message": with its ExitCode, and as an InternalError or a UserError where it is one. A group of one
/// throws `mine` as it is.
void throw_together(const Communicator& group, const std::exception_ptr& mine);

/// Waits until `done()` holds on every rank, which may take long. The ranks meet several times a second, so
/// that one that is lost or stopped meanwhile is noticed as in any other wait. `what` names the wait in
/// messages and lives as long as the program. Collective.
void wait_for_all(const Communicator& group, const char* what, const std::function<bool()>& done);

/// Each rank does its part; an error on any of them is the same error on all. Collective.
void run_together(const Communicator& group, const std::function<void()>& body);

/// Runs `work` on the ranks that have any, beside such a wait, then throws together. Collective.
void work_together(const Communicator& group, const char* what, const std::function<void()>& work);

}  // namespace farskip
