// SPDX-License-Identifier: Apache-2.0
#pragma once
// The model that a distillation learns from.

#include <set>
#include <string>

#include "farskip/program/model.h"
#include "farskip/runtime/context.h"
#include "farskip/state/weights.h"

namespace farskip {

/// A teacher on this rank. In the graph of both models what its graph reads (read_name()) is called
/// teacher_name() of that, but for parameters in `shared`, which are the student's own tensors.
struct Teacher {
  Model model;        // in the wiring that the configuration names
  TensorMap weights;  // f32, by the names of list_parameters(); none where only plans are made
  std::set<std::string> shared;

  std::string external_name(std::string_view read_name) const;
};

/// Without weights.
Teacher make_teacher(const ModelConfig& config);
/// With this rank's part of the weights in a model folder.
Teacher load_teacher(const fs::path& folder, const Context& context);
/// Tells this teacher from others, wherever its folder lies: a hash of its configuration and of
/// fingerprint_file of its weights' files.
std::string fingerprint_model(const fs::path& folder);
/// With the weights that a model of this seed begins with.
Teacher make_random_teacher(const ModelConfig& config, const MeshPosition& mesh, std::uint64_t seed);

}  // namespace farskip
