// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the graph knows of an op: its rules, stated side by side in one file per op family (src/ops/).

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/id.h"
#include "farskip/base/mesh_position.h"
#include "farskip/graph/attributes.h"
#include "farskip/tensor/tensor.h"

namespace farskip {

using ValueId = Id<struct ValueTag>;
using NodeId = Id<struct NodeTag>;

/// Type of a value. When `count` names a value (i32[1]), dim 0 of `shape` is only a bound: the actual
/// number of rows is that device value (routed rows).
struct TensorType {
  DType dtype = DType::f32;
  Shape shape;
  ValueId count{};

  /// Bytes of the full (bounded) extent.
  std::size_t num_bytes() const { return static_cast<std::size_t>(shape.num_elements()) * dtype_size(dtype); }
  friend bool operator==(const TensorType&, const TensorType&) = default;
};

// Element types. A graph computes in one type: f32, f64 (references) or bf16. Activations, and the matrices
// that products read, are of that type; where it is a low one, everything that sums or decides is wide:
// weights of norms, biases, the router, statistics, losses, and the gradients of parameters.

inline bool is_low(DType dtype) {
  return dtype == DType::bf16;
}
/// The type of sums beside values of type `dtype`.
inline DType wide(DType dtype) {
  return is_low(dtype) ? DType::f32 : dtype;
}

/// Of which type an op wants an input.
enum class InputType : std::uint8_t {
  compute,  // what the graph computes in; all such inputs of an op are of one type
  wide,     // the type of sums beside that
  integer,  // i32
  any,      // its rule decides
};

/// What one execution of a node takes, at the bound of its shapes.
struct OpCost {
  double flops = 0;       // multiply and add count as two
  double bytes = 0;       // inputs read once + outputs written once
  double wire_bytes = 0;  // sent by one rank
};

/// Attributes and types handed to the shape and cost rules. An absent optional input is nullptr.
struct OpTypes {
  const Attributes& attributes;
  std::span<const TensorType* const> inputs;
  std::span<const TensorType> outputs = {};  // empty in the shape rule

  template <class A>
  const A& get() const {
    return attributes.get<A>();
  }
  bool has(std::size_t i) const { return i < inputs.size() && inputs[i] != nullptr; }
  const TensorType& in(std::size_t i) const {
    FARSKIP_CHECK(has(i), "input {} is absent", i);
    return *inputs[i];
  }
  const Shape& shape(std::size_t i) const { return in(i).shape; }
};

class GradientCall;

/// A pair (output, input): the output may live in the input's buffer when nothing reads the input later.
struct InPlace {
  std::size_t output, input;
  bool wide_only = false;  // in_place: not where the output is bf16
};

/// Output `output` has as many rows as output `count` (i32[1]) of the same op says, within its bound.
struct RowCount {
  std::size_t output, count;
};

/// How an op treats rows that were routed to experts, when the experts are spread over ranks
/// (passes/shard_experts.h).
enum class RoutedRows : std::uint8_t {
  anywhere,   // not an op on routed rows: reads them where they were made
  by_expert,  // inputs rows, weights [E, …], offsets [E + 1]: runs where the experts are
  by_row,     // row by row: runs where its rows are
};

struct OpDef {
  std::string name;
  Attributes (*parse_attributes)(const FieldTexts&) = &Attributes::parse<NoAttributes>;
  std::size_t min_inputs = 0, max_inputs = 0;  // inputs past the minimum are optional
  /// The type of each input; the last one stands for all that follow. An accumulator (`accumulates`) is not
  /// among them: it is of the type of its output.
  std::vector<InputType> inputs{};
  /// Inputs whose rows may be only bounded (TensorType::count).
  std::vector<std::size_t> bounded{};
  /// Types of the outputs, for inputs of the right element types; throws InternalError where their shapes do
  /// not fit together. Called through infer_outputs.
  std::vector<TensorType> (*infer)(const OpTypes&) = nullptr;
  /// Emits the gradient as ops (graph/gradient_call.h). nullptr: not differentiable, and asking for
  /// its gradient is an error that names the op.
  void (*gradient)(GradientCall&) = nullptr;
  /// Of a loss: its gradient op, if that gives the outputs of the loss too, as its first ones. It reads the
  /// gradient of the loss and then what the loss reads (passes/fuse_loss.h).
  std::string fused_gradient{};
  /// nullptr: no arithmetic, every input read once and every output written once.
  OpCost (*cost)(const OpTypes&) = nullptr;
  /// Costs little beside a matrix product: the backward may compute it again instead of keeping its output.
  bool cheap = false;
  std::vector<InPlace> in_place{};
  /// Optional input that is added to an output (gradient accumulation): output += input.
  std::vector<InPlace> accumulates{};
  /// Every output i may live in the buffer of input i.
  bool in_place_each = false;
  std::vector<RowCount> row_counts{};
  RoutedRows routed = RoutedRows::anywhere;
  /// Moves data between ranks: a plan starts it in one step and waits for it in another.
  bool collective = false;
  /// Of a collective: the ranks that take part.
  MeshAxis (*axis)(const Attributes&) = nullptr;
  /// Into how many equal portions of rows it may be cut: every input and output has the same number of rows,
  /// and a portion of the outputs depends on that portion of the inputs alone, so that a plan may run the
  /// portions one by one, with other work between them. nullptr: only whole.
  std::int64_t (*portions)(const OpTypes&) = nullptr;

  /// Whether an output of this type may live in the buffer of an input.
  bool may_share(std::size_t output, std::size_t input, DType type) const;
  /// Of input i, which is not an accumulator.
  InputType input_type(std::size_t i) const;
  /// Whether a graph of low precision gives it low inputs.
  bool takes_low() const;
};

/// All ops by name. Filled once by register_ops(), then constant.
class OpTable {
 public:
  void add(OpDef op);
  /// InternalError for an unknown name.
  const OpDef& at(std::string_view name) const;
  const OpDef* find(std::string_view name) const;
  const std::map<std::string, OpDef, std::less<>>& all() const { return ops_; }

 private:
  std::map<std::string, OpDef, std::less<>> ops_;
};

/// The table with every family of src/ops (defined in layer ops).
const OpTable& op_table();

/// Types of the outputs. InternalError where element types or shapes of the inputs do not fit, or where the
/// rows of an input are bounded and the op takes only whole ones.
std::vector<TensorType> infer_outputs(const OpDef& op, const OpTypes& types);
/// "f32[2, 3], absent, i32[4]": the inputs.
std::string inputs_text(const OpTypes& types);

OpCost cost_of(const OpDef& op, const OpTypes& types);

}  // namespace farskip
