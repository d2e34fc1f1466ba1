// SPDX-License-Identifier: Apache-2.0
#include "state/gather_states.h"

#include <algorithm>

#include "farskip/state/weights.h"
#include "tensor/columns.h"

namespace farskip {
namespace {

/// A rank's part of a parameter to its place in the whole.
void place_part(const float* part, const LocalParameter& p, float* whole) {
  const std::int64_t width = row_size(p.full_shape), own = p.columns.count;
  p.for_each_block(0, p.spec.num_rows(), [&](std::int64_t row, std::int64_t whole_row, std::int64_t count) {
    copy_columns<float>({part + row * own, own}, {whole + whole_row * width + p.columns.first, width}, count,
                        own);
  });
}

}  // namespace

std::shared_ptr<States> gather_states(const States& states, Role role,
                                      const std::vector<ParameterSpec>& model, const Mesh& mesh) {
  std::vector<std::vector<LocalParameter>> parts;  // by rank
  for (int rank = 0; rank < mesh.world().size(); ++rank) {
    MeshPosition position = mesh.position();
    position.world_rank = rank;
    parts.push_back(local_parameters(model, position, false));
  }
  const std::vector<LocalParameter> whole = whole_parameters(model);
  std::vector<StateSpec> specs;
  std::vector<std::size_t> places;  // of their parameters in the model
  for (const StateSpec& spec : states.specs()) {
    if (spec.role != role) continue;
    FARSKIP_CHECK(!spec.own_rows_only && spec.dtype == DType::f32, "{} is not kept whole", spec.name);
    const auto at = std::find_if(whole.begin(), whole.end(), [&](const LocalParameter& p) {
      return p.spec.name == spec.parameter->spec.name;
    });
    specs.push_back(spec);
    specs.back().parameter = std::make_shared<LocalParameter>(*at);
    places.push_back(static_cast<std::size_t>(at - whole.begin()));
  }
  auto gathered = std::make_shared<States>(make_cpu_device(), specs);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const HostTensor own = copy_to_host(states.device(), states.at(specs[i].name));
    const std::int64_t count = own.num_elements();
    std::vector<std::int64_t> offsets;
    for (std::size_t r = 0; r <= parts.size(); ++r) offsets.push_back(static_cast<std::int64_t>(r) * count);
    HostTensor all(DType::f32, Shape{offsets.back()});
    mesh.world().start_all_gather(own.values<float>(), offsets, all.values<float>()).wait();
    for (std::size_t r = 0; r < parts.size(); ++r)
      place_part(all.values<float>().data() + offsets[r], parts[r][places[i]],
                 gathered->at(specs[i].name).as<float>());
  }
  return gathered;
}

}  // namespace farskip
