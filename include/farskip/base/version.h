#pragma once

namespace farskip {

/// "0.1.0".
const char* version();
/// Abbreviated commit that was configured, "-dirty" appended for a changed tree; "unknown" outside git.
const char* commit();

}  // namespace farskip
