// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace farskip {

/// "0.1.0".
const char* version();
/// What `git describe` says of the commit that was built: the tag before it and its abbreviated hash, or the
/// hash alone before the first tag; "-dirty" appended for a changed tree. "unknown" outside git and its
/// archives.
const char* commit();

}  // namespace farskip
