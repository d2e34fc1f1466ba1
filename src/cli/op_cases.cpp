// SPDX-License-Identifier: Apache-2.0
#include "cli/op_cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>

#include "distill/distill_setup.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "farskip/base/random.h"
#include "farskip/engine/compile.h"
#include "farskip/program/inference_program.h"
#include "farskip/program/training_program.h"

namespace farskip {
namespace {

using Inputs = std::map<std::string, HostTensor, std::less<>>;

HostTensor integers(Shape shape, const std::function<std::int64_t(std::int64_t)>& value) {
  HostTensor tensor(DType::i32, std::move(shape));
  const std::span<std::int32_t> values = tensor.values<std::int32_t>();
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::int32_t>(value(static_cast<std::int64_t>(i)));
  return tensor;
}

HostTensor random_tokens(std::int64_t count, std::int64_t below) {
  return integers(Shape{count}, [=](std::int64_t i) {
    return static_cast<std::int64_t>(uniform_u64(1, 0, static_cast<std::uint64_t>(i)) %
                                     static_cast<std::uint64_t>(below));
  });
}

/// Numbers 0 to count - 1 in an order in which neighbours lie far apart.
std::int64_t mixed(std::int64_t i, std::int64_t count) {
  constexpr std::int64_t kStride = 7919;  // a prime
  return i * (std::gcd(kStride, count) == 1 ? kStride : 1) % count;
}

/// The experts of each token, [tokens, k]: rows of one expert come from tokens all over.
HostTensor choose_experts(const Shape& shape, std::int64_t experts, bool skewed) {
  const std::int64_t rows = shape.num_elements();
  const std::vector<std::int32_t> offsets = spread_rows(rows, experts, skewed);
  HostTensor chosen(DType::i32, shape);
  for (std::int64_t row = 0; row < rows; ++row)
    chosen.values<std::int32_t>()[static_cast<std::size_t>(mixed(row, rows))] = static_cast<std::int32_t>(
        std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1);
  return chosen;
}

/// What the values of a graph hold that must not be random.
class GraphValues {
 public:
  GraphValues(const Graph& graph, const Inputs& inputs, Device& device, bool skewed)
      : graph_(graph), device_(device), skewed_(skewed) {
    for (const External& external : graph.externals()) {
      const TensorType& type = graph.type(external.value);
      if (const auto given = inputs.find(external.name); given != inputs.end())
        known_.emplace(external.value, given->second);
      else if (type.dtype == DType::i32)  // 0 is a token, a row and a position everywhere
        known_.emplace(external.value, integers(type.shape, [](std::int64_t) { return 0; }));
    }
  }

  OpCase case_of(const Node& node) {
    OpCase c{node.op->name, node.attributes, {}};
    for (const ValueId input : node.inputs) {
      c.inputs.push_back(input ? std::optional(graph_.type(input)) : std::nullopt);
      if (const HostTensor* value = input ? find(input) : nullptr)
        c.values.emplace(c.inputs.size() - 1, *value);
    }
    return c;
  }

 private:
  /// nullptr: random numbers do.
  const HostTensor* find(ValueId id) {
    const Value& value = graph_.value(id);
    if (const auto it = known_.find(id); it != known_.end()) return &it->second;
    if (value.type.dtype != DType::i32 || !value.producer) return nullptr;
    return &known_.emplace(id, compute(value)).first->second;
  }

  HostTensor compute(const Value& value) {
    const Node& node = graph_.node(value.producer);
    if (node.op->name == "route")
      return choose_experts(value.type.shape, graph_.type(node.inputs[0]).shape.back(), skewed_);
    const OpRun run(device_, case_of(node));
    run.run();
    return run.read_output(value.output_index);
  }

  const Graph& graph_;
  Device& device_;
  bool skewed_;
  std::map<ValueId, HostTensor> known_;
};

/// A graph, how often a step runs it, and its inputs, in one or several ways.
struct Source {
  Graph graph;
  std::int64_t runs = 0;
  Inputs inputs;
  std::vector<std::pair<std::string, Inputs>> draws{};  // ways to choose a token
};

std::vector<Source> step_sources(const LoadedRun& run, DeviceKind device, const Logger& logger) {
  RunConfig config = run.config;
  config.parallel = {};
  TrainEngineOptions options = engine_options(config, 1);
  if (run.distill) add_distillation(options, *run.distill, run.model);
  const TrainingProgram program(wire_model(run.model), options, {1, 0, 1});
  const std::int64_t tokens = options.micro_batch * options.sequence_length * options.in_flight;
  const Inputs inputs{{"tokens", random_tokens(tokens, run.model.vocab_size)},
                      {"targets", random_tokens(tokens, run.model.vocab_size)}};
  std::vector<Source> sources;
  const auto add = [&](const PassPipeline& pipeline, std::int64_t runs) {
    sources.push_back({run_pipeline(pipeline, pipeline_for(device, {}), logger), runs, inputs});
  };
  for (const auto& [kind, runs] : program.micro_batches()) add(program.micro_batch(kind), runs);
  add(program.update(), 1);
  return sources;
}

/// Settings of ops::sample for each text.
Inputs draw(std::int64_t texts, float temperature, float top_p, std::int32_t top_k) {
  HostTensor real(DType::f32, Shape{texts, 4});
  const std::array<float, 4> setting{temperature, top_p, 0.0F, 1.0F};
  for (std::size_t i = 0; i < real.values<float>().size(); ++i) real.values<float>()[i] = setting[i % 4];
  return {{std::string(kDrawReal), real},
          {std::string(kDrawWhole), integers(Shape{texts, 4}, [=](std::int64_t i) {
             return std::array<std::int64_t, 4>{top_k, 1, 0, i / 4}[static_cast<std::size_t>(i % 4)];
           })}};
}

/// The next token of each sequence of a micro-batch, all but it in the cache, whose blocks are in a mixed
/// order.
Source cached_source(const LoadedRun& run, DeviceKind device, const Logger& logger) {
  const TrainConfig& t = run.config.train;
  const std::int64_t texts = t.micro_batch, last = t.sequence_length - 1;
  CachedRunShape shape;
  CacheShape& cache = shape.cache;
  cache.tokens = cache.outputs = cache.sequences = texts;
  cache.max_blocks = last / cache.block_tokens + 1;
  cache.num_blocks = texts * cache.max_blocks;
  const auto block = [=](std::int64_t i) { return mixed(i, cache.num_blocks); };
  const auto each = [&](const std::function<std::int64_t(std::int64_t)>& value) {
    return integers(Shape{texts}, value);
  };
  const auto number = [](std::int64_t i) { return i; };
  Inputs inputs{{"tokens", random_tokens(texts, run.model.vocab_size)},
                {std::string(kSequences), each(number)},
                {std::string(kOutputRows), each(number)},
                {std::string(kPositions), each([=](std::int64_t) { return last; })},
                {std::string(kBlockTable), integers(Shape{texts, cache.max_blocks}, block)},
                {std::string(kCacheRows), each([=](std::int64_t i) {
                   return block(i * cache.max_blocks + last / cache.block_tokens) * cache.block_tokens +
                          last % cache.block_tokens;
                 })}};
  const PassPipeline pipeline =
      cached_pipeline(wire_model(run.model), shape, compute_type(run.config.precision), {1, 0, 1});
  return {run_pipeline(pipeline, pipeline_for(device, {}), logger),
          0,
          std::move(inputs),
          {{"the most likely", draw(texts, 0.0F, 1.0F, 0)},
           {"by temperature", draw(texts, 0.8F, 1.0F, 0)},
           {"top 50", draw(texts, 0.8F, 1.0F, 50)},
           {"top 0.9", draw(texts, 0.8F, 0.9F, 0)},
           {"top 50 and top 0.9", draw(texts, 0.8F, 0.9F, 50)}}};
}

std::string scope_of(const Node& node) {
  Scope scope = node.scope;
  scope.layer = -1;
  scope.micro_batch = 0;
  return scope.text();
}

std::vector<std::string> types_of(const Graph& graph, const Node& node) {
  std::vector<std::string> types;
  for (const ValueId input : node.inputs)
    types.push_back(
        input ? fmt::format("{}{}", dtype_name(graph.type(input).dtype), graph.type(input).shape.text())
              : "_");
  return types;
}

/// `way`: of several in which it is timed.
std::string name_of(const Node& node, std::vector<std::string> types, const std::string& way) {
  constexpr std::size_t most = 6;  // a norm reads all gradients
  if (types.size() > most) {
    types.resize(most);
    types.emplace_back("…");
  }
  return fmt::format("{} {} {}{}{}", node.op->name, scope_of(node), fmt::join(types, ", "),
                     way.empty() ? "" : ", ", way);
}

/// Nodes that are alike, and the first of them.
struct Group {
  const Source* source = nullptr;
  const Node* first = nullptr;
  std::int64_t count = 0;
};

std::vector<Group> group_nodes(const std::vector<Source>& sources) {
  std::vector<Group> groups;
  std::map<std::string, std::size_t> known;
  std::set<std::string> in_step;
  for (const Source& source : sources)
    for (const Node& node : source.graph.nodes()) {
      if (node.op->collective || (source.runs == 0 && in_step.contains(node.op->name))) continue;
      if (source.runs > 0) in_step.insert(node.op->name);
      std::string key = fmt::format("{} {{{}}} {}", node.op->name, node.attributes.text(),
                                    fmt::join(types_of(source.graph, node), " "));
      const auto [it, is_new] = known.emplace(std::move(key), groups.size());
      if (is_new) groups.push_back({&source, &node, 0});
      groups[it->second].count += source.runs;
    }
  return groups;
}

}  // namespace

std::vector<std::int32_t> spread_rows(std::int64_t rows, std::int64_t experts, bool skewed) {
  double total = 0;
  for (std::int64_t e = 0; e < experts; ++e) total += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
  std::vector<std::int32_t> offsets{0};
  double sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    sum += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
    offsets.push_back(static_cast<std::int32_t>(std::llround(static_cast<double>(rows) * sum / total)));
  }
  return offsets;
}

std::vector<ProgramOp> program_ops(const LoadedRun& run, Device& device, std::string_view only,
                                   const Logger& logger) {
  std::vector<Source> sources = step_sources(run, device.kind(), logger);
  sources.push_back(cached_source(run, device.kind(), logger));
  std::vector<ProgramOp> ops;
  for (const Group& group : group_nodes(sources)) {
    const Node& node = *group.first;
    const bool by_expert = node.op->name.starts_with("grouped_matmul");
    const Graph& graph = group.source->graph;
    const auto add = [&](const std::string& way, const Inputs& more, bool skewed) {
      ProgramOp op{.name = name_of(node, types_of(graph, node), way),
                   .scope = scope_of(node),
                   .inputs = types_of(graph, node),
                   .count = group.count,
                   .op = {},
                   .by_expert = by_expert};
      if (op.name.find(only) == std::string::npos) return;
      Inputs inputs = group.source->inputs;
      inputs.insert(more.begin(), more.end());
      op.op = GraphValues(graph, inputs, device, skewed).case_of(node);
      ops.push_back(std::move(op));
    };
    const auto draws = graph.find_external(kDrawReal);
    if (by_expert) {
      add("balanced", {}, false);
      add("skewed", {}, true);
    } else if (draws && std::find(node.inputs.begin(), node.inputs.end(), *draws) != node.inputs.end()) {
      for (const auto& [way, inputs] : group.source->draws) add(way, inputs, false);
    } else {
      add("", {}, false);
    }
  }
  return ops;
}

}  // namespace farskip
