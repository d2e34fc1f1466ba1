// SPDX-License-Identifier: Apache-2.0
// Text form of a graph:
//
//   %0 = input "tokens" : i32[64]
//   %1 = parameter "embed" : f32[160, 32]
//   %2 = embedding(%1, %0) {first=0, of=0} @embedding.forward : f32[64, 32]
//   %3, %4 = rms_norm(%2, %9) {eps=1e-06} @0.attention.forward : f32[64, 32], f32[64, 1]
//   output "hidden" = %3
//   update %5 -> %8
//
// `_` is an absent optional input; `f32[<=96:%7, 32]` has at most 96 rows, %7 says how many.

#include <algorithm>
#include <array>
#include <cctype>

#include "farskip/graph/graph.h"

namespace farskip {
namespace {

constexpr std::array<std::string_view, 8> kBlocks{"none",   "embedding", "attention", "shared",
                                                  "routed", "dense",     "head",      "optimizer"};
constexpr std::array<std::string_view, 3> kPhases{"forward", "backward", "update"};
constexpr std::array<std::string_view, 3> kKinds{"input", "parameter", "state"};

std::string type_text(const TensorType& type) {
  std::string text = fmt::format("{}[", dtype_name(type.dtype));
  for (std::size_t i = 0; i < type.shape.rank(); ++i) {
    if (i > 0) text += ", ";
    if (i == 0 && type.count)
      text += fmt::format("<={}:%{}", type.shape[0], type.count.value);
    else
      text += fmt::format("{}", type.shape[i]);
  }
  return text + "]";
}

// Reads one line of graph text, token by token.
class LineParser {
 public:
  LineParser(std::string_view line, std::size_t number) : rest_(line), number_(number) {}

  [[noreturn]] void fail(std::string_view what) const {
    throw DataError(fmt::format("graph text line {}: {} at '{}'", number_, what, rest_.substr(0, 30)));
  }
  bool at_end() {
    skip_space();
    return rest_.empty();
  }
  bool accept(std::string_view token) {
    skip_space();
    if (rest_.substr(0, token.size()) != token) return false;
    rest_.remove_prefix(token.size());
    return true;
  }
  void expect(std::string_view token) {
    if (!accept(token)) fail(fmt::format("'{}' expected", token));
  }
  std::string_view until(std::string_view stops) {
    skip_space();
    const std::size_t end = std::min(rest_.find_first_of(stops), rest_.size());
    std::string_view token = rest_.substr(0, end);
    rest_.remove_prefix(end);
    while (!token.empty() && token.back() == ' ') token.remove_suffix(1);
    return token;
  }
  std::int64_t number() {
    skip_space();
    std::int64_t value = 0;
    const auto result = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (result.ec != std::errc()) fail("number expected");
    rest_.remove_prefix(static_cast<std::size_t>(result.ptr - rest_.data()));
    return value;
  }
  std::int64_t value_number() {
    expect("%");
    return number();
  }
  std::string quoted() {
    expect("\"");
    std::string text(until("\""));
    expect("\"");
    return text;
  }

 private:
  void skip_space() {
    while (!rest_.empty() && std::isspace(static_cast<unsigned char>(rest_.front()))) rest_.remove_prefix(1);
  }
  std::string_view rest_;
  std::size_t number_;
};

class GraphParser {
 public:
  explicit GraphParser(const OpTable& ops) : graph_(ops) {}

  void parse_line(LineParser& p) {
    if (p.at_end() || p.accept("#")) return;
    if (p.accept("output")) {
      const std::string name = p.quoted();
      p.expect("=");
      graph_.add_output(name, value(p));
    } else if (p.accept("update")) {
      const ValueId from = value(p);
      p.expect("->");
      graph_.add_update(from, value(p));
    } else {
      parse_definition(p);
    }
    if (!p.at_end()) p.fail("end of line expected");
  }
  Graph take() { return std::move(graph_); }

 private:
  ValueId value(LineParser& p) {
    const auto it = names_.find(p.value_number());
    if (it == names_.end()) p.fail("value is not defined");
    return it->second;
  }

  void parse_definition(LineParser& p) {
    std::vector<std::int64_t> defined{p.value_number()};
    while (p.accept(",")) defined.push_back(p.value_number());
    p.expect("=");
    const std::string word(p.until("(\" "));
    for (std::size_t kind = 0; kind < kKinds.size(); ++kind)
      if (word == kKinds[kind] && !p.accept("(")) {
        const std::string name = p.quoted();
        p.expect(":");
        define(p, defined, {graph_.add_external(static_cast<ExternalKind>(kind), name, type(p))});
        return;
      }
    parse_node(p, word, defined);
  }

  void parse_node(LineParser& p, const std::string& op_name, const std::vector<std::int64_t>& defined) {
    const OpDef* op = graph_.ops().find(op_name);
    if (op == nullptr) p.fail(fmt::format("unknown op '{}'", op_name));
    p.expect("(");
    std::vector<ValueId> inputs;
    while (!p.accept(")")) {
      if (!inputs.empty()) p.expect(",");
      inputs.push_back(p.accept("_") ? ValueId() : value(p));
    }
    FieldTexts fields;
    if (p.accept("{"))
      while (!p.accept("}")) {
        if (!fields.empty()) p.expect(",");
        const std::string key(p.until("="));
        p.expect("=");
        fields[key] = std::string(p.until(",}"));
      }
    Scope scope;
    if (p.accept("@")) scope = parse_scope(p.until(" :"));
    define(p, defined, graph_.add_node(*op, op->parse_attributes(fields), std::move(inputs), scope));
    if (!p.accept(":")) return;  // printed types are checked where given
    for (std::size_t i = 0; i < defined.size(); ++i) {
      if (i > 0) p.expect(",");
      if (type(p) != graph_.type(names_.at(defined[i]))) p.fail("type does not follow from the inputs");
    }
  }

  void define(const LineParser& p, const std::vector<std::int64_t>& numbers,
              const std::vector<ValueId>& values) {
    if (numbers.size() != values.size()) p.fail(fmt::format("the op has {} outputs", values.size()));
    for (std::size_t i = 0; i < numbers.size(); ++i)
      if (!names_.emplace(numbers[i], values[i]).second) p.fail("value is defined twice");
  }

  TensorType type(LineParser& p) {
    const auto dtype = parse_dtype(p.until("["));
    if (!dtype) p.fail("element type expected");
    TensorType type{*dtype, {}, {}};
    std::vector<std::int64_t> dims;
    p.expect("[");
    while (!p.accept("]")) {
      if (!dims.empty()) p.expect(",");
      const bool bounded = p.accept("<=");
      dims.push_back(p.number());
      if (!bounded) continue;
      p.expect(":");
      type.count = value(p);
    }
    type.shape = Shape(std::move(dims));
    return type;
  }

  Graph graph_;
  std::unordered_map<std::int64_t, ValueId> names_;
};

}  // namespace

std::string_view block_name(SubBlock block) {
  return kBlocks[static_cast<std::size_t>(block)];
}

std::string Scope::text() const {
  std::string text;
  if (model != 0) text += fmt::format("m{}.", model);
  if (micro_batch != 0) text += fmt::format("b{}.", micro_batch);
  if (layer >= 0) text += fmt::format("{}.", layer);
  return text + fmt::format("{}.{}", kBlocks[static_cast<std::size_t>(block)],
                            kPhases[static_cast<std::size_t>(phase)]);
}

Scope parse_scope(std::string_view text) {
  Scope scope;
  const std::string_view whole = text;
  auto fail = [&] { throw DataError(fmt::format("'{}' is not a scope", whole)); };
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t dot = text.find('.');
    parts.push_back(text.substr(0, dot));
    if (dot == std::string_view::npos) break;
    text.remove_prefix(dot + 1);
  }
  if (parts.size() < 2) fail();
  auto index_in = [&](const auto& names, std::string_view name) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) fail();
    return static_cast<std::uint8_t>(it - names.begin());
  };
  scope.phase = static_cast<Phase>(index_in(kPhases, parts.back()));
  scope.block = static_cast<SubBlock>(index_in(kBlocks, parts[parts.size() - 2]));
  for (std::size_t i = 0; i + 2 < parts.size(); ++i) {
    std::int64_t number = 0;
    const std::string_view part = parts[i];
    const bool lettered = part.starts_with('m') || part.starts_with('b');
    detail::parse_field(part.substr(lettered ? 1 : 0), number);
    if (part.starts_with('m'))
      scope.model = static_cast<std::int16_t>(number);
    else if (part.starts_with('b'))
      scope.micro_batch = static_cast<std::int16_t>(number);
    else
      scope.layer = static_cast<std::int32_t>(number);
  }
  return scope;
}

std::string print_graph(const Graph& graph) {
  std::string text;
  for (const External& e : graph.externals())
    text += fmt::format("%{} = {} \"{}\" : {}\n", e.value.value, kKinds[static_cast<std::size_t>(e.kind)],
                        e.name, type_text(graph.type(e.value)));
  for (const Node& node : graph.nodes()) {
    std::string outputs, inputs, types;
    for (const ValueId v : node.outputs) {
      outputs += fmt::format("{}%{}", outputs.empty() ? "" : ", ", v.value);
      types += fmt::format("{}{}", types.empty() ? "" : ", ", type_text(graph.type(v)));
    }
    for (std::size_t i = 0; i < node.inputs.size(); ++i)
      inputs += fmt::format("{}{}", i == 0 ? "" : ", ",
                            node.inputs[i] ? fmt::format("%{}", node.inputs[i].value) : std::string("_"));
    std::string attributes = node.attributes.text();
    if (!attributes.empty()) attributes = fmt::format(" {{{}}}", attributes);
    text += fmt::format("{} = {}({}){} @{} : {}\n", outputs, node.op->name, inputs, attributes,
                        node.scope.text(), types);
  }
  for (const Output& o : graph.outputs()) text += fmt::format("output \"{}\" = %{}\n", o.name, o.value.value);
  for (const StateUpdate& u : graph.updates())
    text += fmt::format("update %{} -> %{}\n", u.from.value, u.to.value);
  return text;
}

Graph parse_graph(std::string_view text, const OpTable& ops) {
  GraphParser parser(ops);
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    LineParser line(text.substr(0, end), number);
    parser.parse_line(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parser.take();
}

}  // namespace farskip
