// SPDX-License-Identifier: Apache-2.0
#include "distill/teacher.h"

#include <algorithm>

#include "checkpoint/training_checkpoint.h"
#include "passes/join_models.h"
#include "tensor/hash.h"

namespace farskip {

std::string Teacher::external_name(std::string_view read_name) const {
  const bool is_shared = std::any_of(shared.begin(), shared.end(), [&](const std::string& parameter) {
    return read_name == parameter || read_name == compute_copy_name(parameter);
  });
  return is_shared ? std::string(read_name) : teacher_name(read_name);
}

std::vector<StateSpec> Teacher::states(const MeshPosition& mesh, DType compute) const {
  auto parameters = local_parameters(list_parameters(model.config), mesh, zero);
  std::erase_if(parameters, [&](const LocalParameter& p) { return shared.contains(p.spec.name); });
  return constant_states(parameters, compute, [&](std::string_view name) { return external_name(name); });
}

Teacher open_teacher(const fs::path& folder, const Context& context) {
  Teacher teacher{wire_model(read_hub_config(folder))};
  const ModelConfig& config = teacher.model.config;
  verify_model_folder(folder, context.world());
  check_weights_fit(list_parameters(config), SafetensorsFolder(folder));
  context.logger.info("teacher {}: {:.2f}M parameters, {} wiring", folder.string(),
                      static_cast<double>(count_parameters(config).total) * 1e-6,
                      wiring_name(config.farskip));
  return teacher;
}

std::shared_ptr<const States> load_teacher_states(const Teacher& teacher, const SafetensorsFolder& folder,
                                                  DType compute, const Context& context) {
  auto states = std::make_shared<States>(context.device(), teacher.states(context.mesh.position(), compute));
  load_weights(*states, list_parameters(teacher.model.config), folder);
  return states;
}

std::string fingerprint_model(const fs::path& folder) {
  Hasher hasher;
  hasher.update(hub_config_text(read_hub_config(folder)));
  const SafetensorsFolder weights(folder);
  for (const SafetensorsFile& file : weights.files()) hasher.update(fingerprint_file(InputFile(file.path())));
  return hasher.hex();
}

std::shared_ptr<const States> make_random_states(const Teacher& teacher, DType compute,
                                                 const Context& context, std::uint64_t seed) {
  auto states = std::make_shared<States>(context.device(), teacher.states(context.mesh.position(), compute));
  initialise_weights(*states, seed, teacher.model.config.initializer_range);
  return states;
}

}  // namespace farskip
