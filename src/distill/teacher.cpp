// SPDX-License-Identifier: Apache-2.0
#include "farskip/distill/teacher.h"

#include <algorithm>

#include "farskip/checkpoint/training_checkpoint.h"
#include "farskip/passes/join_models.h"
#include "farskip/tensor/hash.h"

namespace farskip {

std::string Teacher::external_name(std::string_view read_name) const {
  const bool is_shared = std::any_of(shared.begin(), shared.end(), [&](const std::string& parameter) {
    return read_name == parameter || read_name == compute_copy_name(parameter);
  });
  return is_shared ? std::string(read_name) : teacher_name(read_name);
}

Teacher make_teacher(const ModelConfig& config) {
  return {wire_model(config), {}, {}};
}

Teacher load_teacher(const fs::path& folder, const Context& context) {
  Teacher teacher = make_teacher(read_hub_config(folder));
  const auto specs = list_parameters(teacher.model.config);
  const auto local = local_parameters(specs, context.mesh.position(), false);
  teacher.weights = make_parameter_tensors(specs_of(local));
  verify_model_folder(folder, context.world());
  load_weights(teacher.weights, local, specs, SafetensorsFolder(folder));
  context.logger.info("teacher {}: {:.2f}M parameters, {} wiring", folder.string(),
                      static_cast<double>(count_parameters(teacher.model.config).total) * 1e-6,
                      wiring_name(teacher.model.config.farskip));
  return teacher;
}

std::string fingerprint_model(const fs::path& folder) {
  Hasher hasher;
  hasher.update(hub_config_text(read_hub_config(folder)));
  const SafetensorsFolder weights(folder);
  for (const SafetensorsFile& file : weights.files()) hasher.update(fingerprint_file(InputFile(file.path())));
  return hasher.hex();
}

Teacher make_random_teacher(const ModelConfig& config, const MeshPosition& mesh, std::uint64_t seed) {
  Teacher teacher = make_teacher(config);
  const auto local = local_parameters(list_parameters(config), mesh, false);
  teacher.weights = make_parameter_tensors(specs_of(local));
  initialise_weights(teacher.weights, local, seed, config.initializer_range);
  return teacher;
}

}  // namespace farskip
