// SPDX-License-Identifier: Apache-2.0
// Every op of the catalogue, by one table (cases_*.cpp): its CPU kernel against the slow f64 one, its
// gradient against finite differences, and what the backend promises of every kernel.
#include <omp.h>

#include <cmath>
#include <set>

#include "autograd/gradient.h"
#include "farskip/base/random.h"
#include "interpreter.h"
#include "op_case.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

const std::vector<OpCase>& cases() {
  static const std::vector<OpCase> all = all_op_cases();
  return all;
}

std::vector<TensorView> views(const std::vector<HostTensor>& tensors) {
  std::vector<TensorView> out;
  for (const HostTensor& tensor : tensors) out.push_back(tensor.view());
  return out;
}

/// Holds the number of OpenMP threads for one scope.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

/// A graph that computes a case and the gradient of Σ <output, its dout> over `outputs`.
struct GradientGraph {
  Graph graph;
  std::vector<TensorView> externals;  // the present inputs, then a random dout per differentiated output
  std::vector<HostTensor> douts;
  std::vector<ValueId> gradients;  // per input; none: constant, absent or integer
};

bool is_differentiated(const OpCase& c, std::size_t input) {
  return c.inputs[input].view() && c.inputs[input].dtype() == DType::f32 &&
         std::find(c.constants.begin(), c.constants.end(), input) == c.constants.end();
}

GradientGraph gradient_graph(const OpCase& c, const std::vector<std::size_t>& outputs) {
  GradientGraph g;
  std::vector<ValueId> inputs, wanted;
  for (std::size_t i = 0; i < c.inputs.size(); ++i) {
    inputs.emplace_back();
    if (!c.inputs[i].view()) continue;
    const TensorType type{c.inputs[i].dtype(), c.inputs[i].shape(), {}};
    inputs.back() = g.graph.add_external(ExternalKind::input, fmt::format("in{}", i), type);
    g.externals.push_back(c.inputs[i].view());
    if (is_differentiated(c, i)) wanted.push_back(inputs.back());
  }
  const auto types = OpRun{op_table().at(c.op), c.attributes, views(c.inputs)}.output_types();
  std::vector<ValueId> seeds;
  for (const std::size_t output : outputs) {
    seeds.push_back(g.graph.add_external(ExternalKind::input, fmt::format("dout{}", output), types[output]));
    g.douts.push_back(random_tensor(types[output].shape, 900 + output));
    g.externals.push_back(g.douts.back().view());
  }
  const auto results = g.graph.add_node(op_table().at(c.op), c.attributes, inputs, Scope{});
  std::vector<Objective> objectives;
  for (std::size_t o = 0; o < outputs.size(); ++o) objectives.push_back({results[outputs[o]], seeds[o]});
  const auto gradients = differentiate(g.graph, objectives, wanted);
  std::size_t next = 0;
  for (std::size_t i = 0; i < c.inputs.size(); ++i)
    g.gradients.push_back(is_differentiated(c, i) ? gradients[next++] : ValueId());
  return g;
}

/// Σ <output, dout> by the reference kernel, with the inputs given in f64.
double functional(const OpCase& c, const std::vector<TensorView>& inputs,
                  const std::vector<std::size_t>& outputs, const std::vector<HostTensor>& douts) {
  const auto values = run_reference(op_table().at(c.op), c.attributes, inputs);
  double sum = 0.0;
  for (std::size_t o = 0; o < outputs.size(); ++o)
    for (std::int64_t i = 0; i < douts[o].num_elements(); ++i)
      sum += element(values[outputs[o]].view(), i) * element(douts[o].view(), i);
  return sum;
}

/// Derivative of the functional when `input` moves along `direction` (f64), by central differences.
double slope(const OpCase& c, std::size_t input, const std::vector<double>& direction,
             const std::vector<std::size_t>& outputs, const std::vector<HostTensor>& douts) {
  constexpr double step = 1e-5;
  HostTensor moved = convert_dtype(c.inputs[input], DType::f64);
  auto inputs = views(c.inputs);
  inputs[input] = moved.view();
  const auto at = [&](double t) {
    for (std::size_t i = 0; i < direction.size(); ++i)
      moved.values<double>()[i] =
          element(c.inputs[input].view(), static_cast<std::int64_t>(i)) + t * direction[i];
    return functional(c, inputs, outputs, douts);
  };
  return (at(step) - at(-step)) / (2 * step);
}

/// Checks one input's gradient: single elements (up to 24, spread evenly) and one random direction.
void check_gradient(const OpCase& c, std::size_t input, const TensorView& gradient,
                    const std::vector<std::size_t>& outputs, const std::vector<HostTensor>& douts) {
  const std::int64_t n = c.inputs[input].num_elements();
  if (n == 0) return;
  double square = 0.0;
  for (std::int64_t i = 0; i < n; ++i) square += element(gradient, i) * element(gradient, i);
  // The floor is for gradients that cancel to almost nothing.
  const double scale = std::sqrt(square / static_cast<double>(n)) + 0.02;
  std::vector<double> direction(static_cast<std::size_t>(n), 0.0);
  const std::int64_t stride = std::max<std::int64_t>(1, n / 24);
  for (std::int64_t i = 0; i < n; i += stride) {
    direction[static_cast<std::size_t>(i)] = 1.0;
    const double expected = slope(c, input, direction, outputs, douts);
    direction[static_cast<std::size_t>(i)] = 0.0;
    INFO("gradient of input " << input << " at element " << i << ": " << element(gradient, i) << ", expected "
                              << expected);
    CHECK(std::fabs(element(gradient, i) - expected) <= c.gradient_tolerance * (std::fabs(expected) + scale));
  }
  double along = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    direction[static_cast<std::size_t>(i)] = normal(7, input, static_cast<std::uint64_t>(i));
    along += element(gradient, i) * direction[static_cast<std::size_t>(i)];
  }
  const double expected = slope(c, input, direction, outputs, douts);
  INFO("gradient of input " << input << " along a random direction: " << along << ", expected " << expected);
  CHECK(std::fabs(along - expected) <=
        c.gradient_tolerance * (std::fabs(expected) + scale * std::sqrt(static_cast<double>(n))));
}

/// All differentiated outputs together, and each alone where there are several.
std::vector<std::vector<std::size_t>> output_choices(const OpCase& c) {
  std::vector<std::vector<std::size_t>> choices;
  if (c.differentiated.empty() || op_table().at(c.op).gradient == nullptr) return choices;
  choices.push_back(c.differentiated);
  if (c.differentiated.size() > 1 && !c.used_whole)
    for (const std::size_t output : c.differentiated) choices.push_back({output});
  return choices;
}

/// Calls check(run, outputs of the run) for the node of every case and for all nodes of its gradient.
template <class Check>
void for_each_node(const Check& check) {
  const auto check_graph = [&](const Graph& graph, const std::vector<TensorView>& externals) {
    const auto values = run_graph(graph, externals);
    for (const Node& node : graph.nodes()) {
      OpRun run{*node.op, node.attributes, {}};
      for (const ValueId input : node.inputs)
        run.inputs.push_back(input ? values[input.index()].view() : TensorView{});
      std::vector<Buffer> outputs;
      for (const ValueId output : node.outputs) outputs.push_back(values[output.index()]);
      INFO("op " << node.op->name << " {" << node.attributes.text() << "}");
      check(run, outputs);
    }
  };
  for (const OpCase& c : cases()) {
    INFO(c.text());
    const auto choices = output_choices(c);
    if (!choices.empty()) {
      const GradientGraph g = gradient_graph(c, choices[0]);
      check_graph(g.graph, g.externals);
      continue;
    }
    const OpRun run{op_table().at(c.op), c.attributes, views(c.inputs)};
    check(run, run.execute(cpu_kernel_table(), run.dtype(), run.output_types()));
  }
}

TEST_CASE("the CPU kernel of every op agrees with the slow f64 reference") {
  for (const OpCase& c : cases()) {
    INFO(c.text());
    const OpRun run{op_table().at(c.op), c.attributes, views(c.inputs)};
    const auto outputs = run.execute(cpu_kernel_table(), run.dtype(), run.output_types());
    const auto expected = run_reference(run.op, c.attributes, run.inputs);
    REQUIRE(outputs.size() == expected.size());
    for (std::size_t o = 0; o < outputs.size(); ++o) {
      INFO("output " << o);
      const bool exact = outputs[o].view().dtype == DType::i32;
      CHECK(relative_error(outputs[o].view(), expected[o].view()) <= (exact ? 0.0 : c.tolerance));
    }
  }
}

TEST_CASE("the gradient of every op agrees with finite differences of the f64 reference") {
  for (const OpCase& c : cases())
    for (const auto& outputs : output_choices(c)) {
      INFO(c.text() << ", loss of output(s) " << fmt::format("{}", fmt::join(outputs, ", ")));
      const GradientGraph g = gradient_graph(c, outputs);
      const auto values = run_graph(g.graph, g.externals);
      for (std::size_t input = 0; input < c.inputs.size(); ++input) {
        if (!is_differentiated(c, input)) continue;
        INFO("input " << input);
        REQUIRE(g.gradients[input]);
        REQUIRE(g.graph.type(g.gradients[input]).shape == c.inputs[input].shape());
        check_gradient(c, input, values[g.gradients[input].index()].view(), outputs, g.douts);
      }
    }
}

TEST_CASE("kernels give the same bits for every number of threads") {
  std::vector<std::vector<Buffer>> expected;
  for (const int threads : {1, 2, 3, 7}) {
    const Threads scope(threads);
    INFO(threads << " threads");
    std::size_t node = 0;
    for_each_node([&](const OpRun&, const std::vector<Buffer>& outputs) {
      if (threads == 1) expected.push_back(outputs);
      REQUIRE(node < expected.size());
      for (std::size_t o = 0; o < outputs.size(); ++o) CHECK(outputs[o].same_bits(expected[node][o]));
      ++node;
    });
  }
}

TEST_CASE("kernels leave their inputs alone") {
  for_each_node([](const OpRun& run, const std::vector<Buffer>&) {
    std::vector<Buffer> copies;
    for (const TensorView& input : run.inputs) copies.push_back(input ? Buffer::copy_of(input) : Buffer());
    run.execute(cpu_kernel_table(), run.dtype(), run.output_types());
    for (std::size_t i = 0; i < copies.size(); ++i)
      if (run.inputs[i]) CHECK(copies[i].same_bits(Buffer::copy_of(run.inputs[i])));
  });
}

TEST_CASE("an output that is allowed to share an input's buffer gets the same bits there") {
  for_each_node([](const OpRun& run, const std::vector<Buffer>& outputs) {
    for (const InPlace& pair : run.op.in_place) {
      if (pair.input >= run.inputs.size() || !run.inputs[pair.input] || pair.output >= outputs.size())
        continue;
      INFO("output " << pair.output << " in input " << pair.input);
      OpRun in_place = run;
      std::vector<Buffer> buffers;
      for (const TensorType& type : run.output_types()) buffers.emplace_back(type);
      buffers[pair.output] = Buffer::copy_of(run.inputs[pair.input]);
      in_place.inputs[pair.input] = buffers[pair.output].view();
      in_place.execute(cpu_kernel_table(), run.dtype(), buffers);
      for (std::size_t o = 0; o < outputs.size(); ++o) CHECK(buffers[o].same_bits(outputs[o]));
    }
  });
}

TEST_CASE("an accumulator is added to the result, in its own buffer and beside it") {
  for_each_node([](const OpRun& run, const std::vector<Buffer>& outputs) {
    for (const InPlace& pair : run.op.accumulates) {
      if (pair.input < run.inputs.size()) continue;  // the case itself accumulates
      const HostTensor before = random_tensor(outputs[pair.output].view().shape, 950);
      OpRun accumulating = run;
      accumulating.inputs.resize(pair.input);
      accumulating.inputs.push_back(before.view());
      const auto beside = accumulating.execute(cpu_kernel_table(), run.dtype(), run.output_types());
      HostTensor expected(DType::f64, before.shape());
      for (std::int64_t i = 0; i < before.num_elements(); ++i)
        expected.view().as<double>()[i] = element(outputs[pair.output].view(), i) + element(before.view(), i);
      CHECK(relative_error(beside[pair.output].view(), expected.view()) <= 1e-6);

      std::vector<Buffer> buffers;
      for (const TensorType& type : run.output_types()) buffers.emplace_back(type);
      buffers[pair.output] = Buffer::copy_of(before.view());
      accumulating.inputs[pair.input] = buffers[pair.output].view();
      accumulating.execute(cpu_kernel_table(), run.dtype(), buffers);
      for (std::size_t o = 0; o < outputs.size(); ++o) CHECK(buffers[o].same_bits(beside[o]));
    }
  });
}

TEST_CASE("every op of the catalogue has a case, or is the gradient of one that has") {
  std::set<std::string> tested;
  for (const OpCase& c : cases()) {
    tested.insert(c.op);
    for (const auto& outputs : output_choices(c)) {
      const GradientGraph g = gradient_graph(c, outputs);
      for (const Node& node : g.graph.nodes()) tested.insert(node.op->name);
    }
  }
  for (const auto& [name, op] : op_table().all()) {
    if (op.collective) continue;      // tests/distributed/collective_ops_test.cpp
    if (name == "fan_out") continue;  // no kernel: passes/drop_fan_out.h
    if (op.name == "cast") continue;  // tests/ops/low_precision_test.cpp
    INFO("op " << name << " needs a row in tests/ops/cases_*.cpp");
    CHECK(tested.contains(name));
  }
}

}  // namespace
}  // namespace farskip::test
