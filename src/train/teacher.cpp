#include "farskip/train/teacher.h"

#include "farskip/passes/farskip.h"
#include "farskip/passes/join_models.h"

namespace farskip {
namespace {

/// `weights`: by the model's own names.
void take_weights(Teacher& teacher, TensorMap weights) {
  for (auto& [name, tensor] : weights)
    teacher.tensors.emplace(teacher.external_name(name), std::move(tensor));
}

}  // namespace

std::string Teacher::external_name(std::string_view parameter) const {
  return shared.contains(std::string(parameter)) ? std::string(parameter) : teacher_name(parameter);
}

Teacher make_teacher(const ModelConfig& config) {
  return {config, rewire_farskip(build_layer_graph(config), config.farskip), {}, {}};
}

Teacher load_teacher(const fs::path& folder, const Mesh& mesh, const Logger& logger) {
  Teacher teacher = make_teacher(read_hub_config(folder));
  const auto specs = list_parameters(teacher.config);
  const auto local = local_parameters(specs, mesh.position(), false);
  TensorMap weights = make_parameter_tensors(specs_of(local));
  load_weights(weights, local, specs, SafetensorsFolder(folder));
  take_weights(teacher, std::move(weights));
  logger.info("teacher {}: {:.2f}M parameters, {} wiring", folder.string(),
              static_cast<double>(count_parameters(teacher.config).total) * 1e-6,
              wiring_name(teacher.config.farskip));
  return teacher;
}

Teacher make_random_teacher(const ModelConfig& config, const MeshPosition& mesh, std::uint64_t seed) {
  Teacher teacher = make_teacher(config);
  const auto local = local_parameters(list_parameters(config), mesh, false);
  TensorMap weights = make_parameter_tensors(specs_of(local));
  initialise_weights(weights, local, seed, config.initializer_range);
  take_weights(teacher, std::move(weights));
  return teacher;
}

}  // namespace farskip
