// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace farskip {

/// CSS of the page: light, dark, narrow, print.
const char* report_style();
/// JavaScript of the page: values under the pointer, zoom of the timeline. The page is complete without it.
const char* report_script();

}  // namespace farskip
