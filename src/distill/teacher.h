// SPDX-License-Identifier: Apache-2.0
#pragma once
// The model that a distillation learns from.

#include <set>
#include <string>

#include "farskip/program/model.h"
#include "farskip/runtime/context.h"
#include "farskip/state/weights.h"

namespace farskip {

/// In the graph of both models what the teacher's graph reads (read_name()) is called teacher_name() of that,
/// but for parameters in `shared`, which are the student's own tensors.
struct Teacher {
  Model model;                     // in the wiring that the configuration names
  std::set<std::string> shared{};  // names of list_parameters()
  int zero = 0;                    // LocalParameter::zero of what it has alone

  std::string external_name(std::string_view read_name) const;
  /// A rank at this place of a mesh holds these for it beside a student.
  std::vector<StateSpec> states(const MeshPosition& mesh, DType compute) const;
};

/// The teacher in a model folder, which is checked. Collective.
Teacher open_teacher(const fs::path& folder, const Context& context);
/// Its states on the context's device, with the weights in its folder. Collective.
std::shared_ptr<const States> load_teacher_states(const Teacher& teacher, const SafetensorsFolder& folder,
                                                  DType compute, const Context& context);
/// Tells this teacher from others, wherever its folder lies: a hash of its configuration and of
/// fingerprint_file of its weights' files.
std::string fingerprint_model(const fs::path& folder);
/// Its states on the context's device, with the weights that a model of this seed begins with.
std::shared_ptr<const States> make_random_states(const Teacher& teacher, DType compute,
                                                 const Context& context, std::uint64_t seed);

}  // namespace farskip
