// SPDX-License-Identifier: Apache-2.0
#include "fold/walking_model.h"

#include "farskip/model/lower.h"

namespace farskip {

std::shared_ptr<States> load_layer(const ModelConfig& config, const RowReader& rows, int layer,
                                   const std::shared_ptr<Device>& device) {
  std::vector<ParameterSpec> specs = list_parameters(config);
  std::erase_if(specs, [&](const ParameterSpec& spec) { return spec.layer != layer; });
  auto weights = std::make_shared<States>(device, constant_states(whole_parameters(specs), DType::f32));
  for (const StateSpec& spec : weights->specs())
    for_each_part(spec.parameter->spec, spec.rows(), [&](const Range& wanted, const Range&) {
      const TensorView to = rows_view(weights->at(spec.name), wanted.first, wanted.count);
      if (device->shares_host_memory()) return rows(*spec.parameter, wanted.first, to);
      const HostTensor part(to.dtype, to.shape);
      rows(*spec.parameter, wanted.first, part.view());
      device->copy_in(to.data, part.view().data, to.num_bytes());
    });
  return weights;
}

std::shared_ptr<States> copy_layer(const States& layer) {
  auto copy = std::make_shared<States>(layer.shared_device(), layer.specs());
  for (const StateSpec& spec : layer.specs()) {
    const TensorView from = layer.at(spec.name);
    layer.device().copy_within(copy->at(spec.name).data, from.data, from.num_bytes());
  }
  return copy;
}

WalkingModel::WalkingModel(const ModelConfig& config, const LayerGraph& wiring, const FoldText& text,
                           const SequenceRange& range, Context context, const Context& memory)
    : config_(config),
      wiring_(wiring),
      text_(text),
      range_(range),
      context_(std::move(context)),
      stream_(wiring,
              {memory, context_.device(), Shape{range.count * text.sequence_length, config.hidden_size},
               range.at_once * text.sequence_length}) {}

void WalkingModel::compute(int block) {
  stream_.begin_contribution();
  run_all(block, range_, [&](GraphRunner& runner, std::int64_t sequence) {
    stream_.contribute(first_row(sequence), runner.output("out"));
  });
  stream_.finish_contribution();
}

double WalkingModel::loss(const SequenceRange& range) {
  double sum = 0;
  run_all(static_cast<int>(wiring_.blocks.size()) - 1, range, [&](GraphRunner& runner, std::int64_t) {
    sum += static_cast<double>(runner.read("loss_sum").values<float>()[0]);
  });
  return sum / static_cast<double>(range.count * text_.sequence_length);
}

void WalkingModel::run_all(int block, const SequenceRange& range,
                           const std::function<void(GraphRunner&, std::int64_t)>& use) {
  LowerOptions options;
  options.batch = range.at_once;
  options.sequence_length = text_.sequence_length;
  GraphRunner runner(lower_block(config_, wiring_.blocks[static_cast<std::size_t>(block)], options), context_,
                     weights_);
  const std::int64_t end = range.first + range.count;
  for (std::int64_t sequence = range.first; sequence < end; sequence += range.at_once) {
    set_inputs(runner, block, sequence);
    runner.run();
    use(runner, sequence);
  }
}

void WalkingModel::set_inputs(GraphRunner& runner, int block, std::int64_t sequence) {
  const auto set = [&](const char* name, const std::vector<std::int32_t>& values) {
    if (runner.has_input(name)) runner.write(name, values.data() + sequence * text_.sequence_length);
  };
  set("tokens", text_.tokens);
  set("targets", text_.targets);
  if (runner.has_input("stream")) stream_.read(block, first_row(sequence), runner.at("stream"));
}

}  // namespace farskip
