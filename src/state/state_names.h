// SPDX-License-Identifier: Apache-2.0
#pragma once
// Names, in graphs and in files, of what a training step keeps beside its parameters (and beside compute
// copies, which model/parameters.h names).

#include <string>
#include <string_view>

namespace farskip {

std::string gradient_name(std::string_view parameter);
/// Of what an optimizer keeps for a parameter: `kind` begins the name.
std::string state_name(std::string_view kind, std::string_view parameter);
/// The running average of a weight; in files, where the model is the average, the weight itself.
inline constexpr std::string_view kAveraging = "averaging.";
inline constexpr std::string_view kFirstMoment = "adam.m.", kSecondMoment = "adam.v.", kMomentum = "muon.m.";

}  // namespace farskip
