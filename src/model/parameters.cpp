// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/parameters.h"

#include <map>

#include "model/family.h"

namespace farskip {
namespace {

class Lister {
 public:
  explicit Lister(const ModelConfig& config) : c_(config) {
    const Family* family = find_family(config.family);
    if (family == nullptr) return;
    names_ = family->mlp_names;
    has_mtp_ = family->has_mtp;
  }

  std::vector<ParameterSpec> run() {
    const Layout by_token{{.dim = 0, .padded = true}};
    ParameterSpec& table =
        add(std::string(kEmbeddingName), {c_.vocab_size, c_.hidden_size}, SubBlock::embedding);
    table.layout = by_token;
    for (std::int64_t layer = c_.num_layers; has_mtp_ && layer < c_.num_layers + kMostMtpLayers; ++layer)
      table.passed_over.push_back(layer_name(layer, ""));
    for (layer_ = 0; layer_ < c_.num_layers; ++layer_) add_layer();
    layer_ = -1;
    add_norm(std::string(kFinalNormName), c_.hidden_size, SubBlock::head);
    if (!c_.tie_embeddings)
      add(std::string(kHeadName), {c_.vocab_size, c_.hidden_size}, SubBlock::head).layout = by_token;
    return std::move(out_);
  }

 private:
  ParameterSpec& add(std::string name, Shape shape, SubBlock block,
                     Initializer initializer = Initializer::normal) {
    ParameterSpec p{name, shape, block, static_cast<std::int32_t>(layer_), false, initializer, {}};
    p.pieces.push_back({std::move(name), std::move(shape), 0});
    return out_.emplace_back(std::move(p));
  }
  void add_norm(std::string name, std::int64_t size, SubBlock block) {
    add(std::move(name), {size}, block, Initializer::ones);
  }
  std::string name(std::string_view suffix) const { return layer_name(layer_, suffix); }

  void add_layer() {
    add_norm(name("input_layernorm.weight"), c_.hidden_size, SubBlock::attention);
    if (c_.mla)
      add_latent_attention(*c_.mla);
    else
      add_grouped_query_attention();
    const bool moe = c_.moe_layers[static_cast<std::size_t>(layer_)];
    add_norm(name("post_attention_layernorm.weight"), c_.hidden_size,
             moe ? SubBlock::routed : SubBlock::dense);
    if (!moe) {
      add_mlp("mlp", names_.module, c_.intermediate_size, SubBlock::dense);
      return;
    }
    ParameterSpec& router =
        add(name("mlp.gate.weight"), {c_.moe.num_experts, c_.hidden_size}, SubBlock::routed);
    router.is_router = true;
    router.pieces[0].name = name(fmt::format("{}.{}.weight", names_.module, names_.router));
    if (c_.moe.selection_bias) {
      ParameterSpec& bias = add(name("mlp.gate.e_score_correction_bias"), {c_.moe.num_experts},
                                SubBlock::routed, Initializer::zeros);
      bias.is_trained = false;
    }
    add_experts();
    if (c_.moe.shared_size > 0)
      add_mlp("mlp.shared_experts", names_.module + "." + names_.shared, c_.moe.shared_size,
              SubBlock::shared);
  }

  /// `layout`: of weight and bias.
  void add_projection(std::string_view part, std::int64_t outputs, std::int64_t inputs, bool has_bias,
                      const Layout& layout = {}) {
    const std::string module = name(fmt::format("self_attn.{}", part));
    add(module + ".weight", {outputs, inputs}, SubBlock::attention).layout = layout;
    if (has_bias) add(module + ".bias", {outputs}, SubBlock::attention, Initializer::zeros).layout = layout;
  }
  /// From the heads back to the stream: its inputs are cut, and what the ranks give is summed.
  void add_output_projection(std::int64_t inputs) {
    const std::string module = name("self_attn.o_proj");
    add(module + ".weight", {c_.hidden_size, inputs}, SubBlock::attention).layout = {
        {.dim = 1, .heads = c_.num_heads}};
    if (c_.attention_bias) add(module + ".bias", {c_.hidden_size}, SubBlock::attention, Initializer::zeros);
  }

  void add_latent_attention(const MlaConfig& mla) {
    const std::int64_t heads = c_.num_heads, qk = mla.nope_dim + mla.rope_dim;
    const bool bias = c_.attention_bias;
    const Layout by_head{{.dim = 0, .heads = heads}};
    if (mla.q_lora_rank > 0) {
      add_projection("q_a_proj", mla.q_lora_rank, c_.hidden_size, bias);
      add_norm(name("self_attn.q_a_layernorm.weight"), mla.q_lora_rank, SubBlock::attention);
      add_projection("q_b_proj", heads * qk, mla.q_lora_rank, false, by_head);
    } else {
      add_projection("q_proj", heads * qk, c_.hidden_size, false, by_head);
    }
    add_projection("kv_a_proj_with_mqa", mla.kv_lora_rank + mla.rope_dim, c_.hidden_size, bias);
    add_norm(name("self_attn.kv_a_layernorm.weight"), mla.kv_lora_rank, SubBlock::attention);
    add_projection("kv_b_proj", heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank, false, by_head);
    add_output_projection(heads * mla.v_dim);
    if (c_.gated_attention) add_projection("gate_proj", heads * mla.v_dim, c_.hidden_size, false, by_head);
  }

  void add_grouped_query_attention() {
    const GqaConfig& gqa = c_.gqa;
    const bool bias = c_.attention_bias;
    const bool together = gqa.qk_norm == QkNorm::projection;  // a norm over all heads: they stay together
    const Layout by_head{{.dim = 0, .heads = c_.num_heads}};
    const Layout by_kv_head{{.dim = 0, .heads = gqa.kv_heads, .whole_if_few_heads = true}};
    add_projection("q_proj", c_.num_heads * gqa.head_dim, c_.hidden_size, bias,
                   together ? Layout{} : by_head);
    add_projection("k_proj", gqa.kv_heads * gqa.head_dim, c_.hidden_size, bias,
                   together ? Layout{} : by_kv_head);
    add_projection("v_proj", gqa.kv_heads * gqa.head_dim, c_.hidden_size, bias, by_kv_head);
    add_output_projection(c_.num_heads * gqa.head_dim);
    if (gqa.qk_norm == QkNorm::none || gqa.qk_norm == QkNorm::rotated) return;
    add_norm(name("self_attn.q_norm.weight"), (together ? c_.num_heads : 1) * gqa.head_dim,
             SubBlock::attention);
    add_norm(name("self_attn.k_norm.weight"), (together ? gqa.kv_heads : 1) * gqa.head_dim,
             SubBlock::attention);
  }

  void add_mlp(const std::string& module, const std::string& on_hub, std::int64_t size, SubBlock block) {
    const Shape half{size, c_.hidden_size};
    ParameterSpec& gate_up = add(name(module + ".gate_up_proj.weight"), {2 * size, c_.hidden_size}, block);
    gate_up.matrix_rows = size;
    gate_up.layout = {{.dim = 0, .groups = 2}};
    gate_up.pieces = {{name(on_hub + ".gate_proj.weight"), half, 0},
                      {name(on_hub + ".up_proj.weight"), half, size}};
    ParameterSpec& down = add(name(module + ".down_proj.weight"), {c_.hidden_size, size}, block);
    down.pieces[0].name = name(on_hub + ".down_proj.weight");
    down.layout = {{.dim = 1}};
    if (c_.mlp_bias) add_mlp_biases(module, on_hub, size, block);
  }

  void add_mlp_biases(const std::string& module, const std::string& on_hub, std::int64_t size,
                      SubBlock block) {
    ParameterSpec& gate_up = add(name(module + ".gate_up_proj.bias"), {2 * size}, block, Initializer::zeros);
    gate_up.layout = {{.dim = 0, .groups = 2}};
    gate_up.pieces = {{name(on_hub + ".gate_proj.bias"), {size}, 0},
                      {name(on_hub + ".up_proj.bias"), {size}, size}};
    ParameterSpec& down = add(name(module + ".down_proj.bias"), {c_.hidden_size}, block, Initializer::zeros);
    down.pieces[0].name = name(on_hub + ".down_proj.bias");
  }

  std::string expert_name(std::int64_t expert, std::string_view part) const {
    return name(fmt::format("{}.experts.{}.{}.weight", names_.module, expert, part));
  }

  void add_experts() {
    const std::int64_t experts = c_.moe.num_experts, size = c_.moe.expert_size, hidden = c_.hidden_size;
    ParameterSpec& gate_up =
        add(name("mlp.experts.gate_up_proj"), {experts, 2 * size, hidden}, SubBlock::routed);
    gate_up.is_expert = true;
    gate_up.layout = {{.dim = 0, .axis = MeshAxis::expert}, {.dim = 1, .groups = 2}};
    gate_up.matrix_rows = size;
    gate_up.pieces.clear();
    if (names_.packed_transposed) gate_up.packed_transposed = name(names_.module + ".experts.gate_up_proj");
    for (std::int64_t e = 0; e < experts; ++e) {
      gate_up.pieces.push_back({expert_name(e, names_.gate), {size, hidden}, e * 2 * size});
      gate_up.pieces.push_back({expert_name(e, names_.up), {size, hidden}, e * 2 * size + size});
    }
    ParameterSpec& down = add(name("mlp.experts.down_proj"), {experts, hidden, size}, SubBlock::routed);
    down.is_expert = true;
    down.layout = {{.dim = 0, .axis = MeshAxis::expert}, {.dim = 2}};
    down.matrix_rows = hidden;
    down.pieces.clear();
    if (names_.packed_transposed) down.packed_transposed = name(names_.module + ".experts.down_proj");
    for (std::int64_t e = 0; e < experts; ++e)
      down.pieces.push_back({expert_name(e, names_.down), {hidden, size}, e * hidden});
  }

  const ModelConfig& c_;
  MlpNames names_;
  bool has_mtp_ = false;
  std::int64_t layer_ = -1;
  std::vector<ParameterSpec> out_;
};

/// The cuts that a mesh makes.
Layout layout_on(const ParameterSpec& spec, const MeshPosition& mesh) {
  Layout layout;
  for (const Cut& cut : spec.layout) {
    const int ranks = mesh.size(cut.axis);
    const bool whole_experts = spec.is_expert && mesh.expert_size > 1 && cut.axis == MeshAxis::tensor;
    const bool few_heads = cut.whole_if_few_heads && cut.heads < ranks && ranks % cut.heads == 0;
    if (ranks > 1 && !whole_experts && !few_heads) layout.push_back(cut);
  }
  return layout;
}

std::int64_t ceil_div(std::int64_t n, std::int64_t parts) {
  return (n + parts - 1) / parts;
}

void check_divides(const ParameterSpec& spec, const Cut& cut, int ranks) {
  const std::int64_t size =
      cut.heads > 0 ? cut.heads : spec.shape[static_cast<std::size_t>(cut.dim)] / cut.groups;
  if (size % ranks == 0) return;
  if (cut.padded && ceil_div(size, ranks) * (ranks - 1) < size) return;
  if (cut.padded)
    throw UsageError(
        fmt::format("parallel.tensor is {}, which leaves a rank without any of the {} rows of {}; use less",
                    ranks, size, spec.name));
  if (cut.axis == MeshAxis::expert)
    throw UsageError(fmt::format(
        "parallel.expert is {}, which does not divide the {} experts of a layer; use a divisor of {}", ranks,
        size, size));
  throw UsageError(
      fmt::format("parallel.tensor is {}, which does not divide the {}{} of {}; use a divisor of {}", ranks,
                  size, cut.heads > 0 ? " heads" : "", spec.name, size));
}

bool is_column_cut(const ParameterSpec& spec, const Cut& cut) {
  return spec.shape.rank() > 1 && cut.dim == static_cast<int>(spec.shape.rank()) - 1;
}

/// The rows that a cut of a dim of rows leaves.
std::vector<RowBlock> cut_rows(const ParameterSpec& spec, const Cut& cut, const MeshPosition& mesh) {
  const auto dim = static_cast<std::size_t>(cut.dim);
  std::int64_t outer = 1, inner = 1;
  for (std::size_t d = 0; d < dim; ++d) outer *= spec.shape[d];
  for (std::size_t d = dim + 1; d + 1 < spec.shape.rank(); ++d) inner *= spec.shape[d];
  const std::int64_t group = spec.shape[dim] / cut.groups * inner;
  std::vector<RowBlock> blocks;
  if (cut.padded) {
    const std::int64_t rows = ceil_div(group, mesh.size(cut.axis)), first = mesh.rank(cut.axis) * rows;
    return {{0, first, std::min(rows, group - first)}};
  }
  const Range part = part_of(group, mesh.size(cut.axis), mesh.rank(cut.axis));
  for (std::int64_t g = 0; g < outer * cut.groups; ++g)
    blocks.push_back({g * part.count, g * group + part.first, part.count});
  return blocks;
}

std::vector<HubPiece> pieces_of(const LocalParameter& p) {
  std::vector<HubPiece> pieces;
  for (const HubPiece& piece : p.spec.pieces)
    for (const RowBlock& block : p.blocks) {
      const std::int64_t from = std::max(block.whole_row, piece.first_row),
                         upto = std::min(block.whole_row + block.count,
                                         piece.first_row + row_count(piece.shape));
      if (from < upto)
        pieces.push_back({piece.name,
                          piece.shape,
                          block.row + from - block.whole_row,
                          {from - piece.first_row, upto - from}});
    }
  return pieces;
}

LocalParameter cut_parameter(const ParameterSpec& spec, const MeshPosition& mesh) {
  LocalParameter p{.spec = spec,
                   .full_shape = spec.shape,
                   .blocks = {{0, 0, spec.num_rows()}},
                   .columns = {0, spec.row_size()},
                   .owners = {},
                   .own_rows = {},
                   .zero = 0,
                   .cut_axis = {}};
  std::vector<std::int64_t> dims = spec.shape.dims();
  for (const Cut& cut : layout_on(spec, mesh)) {
    FARSKIP_CHECK(!p.cut_axis, "{} is cut twice", spec.name);
    check_divides(spec, cut, mesh.size(cut.axis));
    p.cut_axis = cut.axis;
    std::int64_t& dim = dims[static_cast<std::size_t>(cut.dim)];
    dim = ceil_div(dim, mesh.size(cut.axis));
    if (is_column_cut(spec, cut))
      p.columns = part_of(spec.row_size(), mesh.size(cut.axis), mesh.rank(cut.axis));
    else
      p.blocks = cut_rows(spec, cut, mesh);
  }
  p.spec.shape = Shape(std::move(dims));
  if (p.cut_axis) p.spec.pieces = pieces_of(p);
  if (spec.matrix_rows > 0 && p.cut_axis && *p.cut_axis != MeshAxis::expert && p.has_whole_rows())
    p.spec.matrix_rows /= mesh.size(*p.cut_axis);
  return p;
}

/// Deals matrices out to replicas: evenly where there are as many as replicas, else to those that have least
/// so far.
class MatrixDealer {
 public:
  RowCut deal(const ParameterSpec& spec, MeshAxis axis, int ranks) {
    const std::int64_t rows = spec.num_rows(), unit = spec.matrix_rows > 0 ? spec.matrix_rows : rows;
    const std::int64_t matrices = rows / unit;
    if (matrices >= ranks) return cut_evenly(axis, rows, ranks, unit);
    std::vector<std::int64_t>& load = loads_[axis];
    load.resize(static_cast<std::size_t>(ranks));
    std::vector<bool> takes(load.size());
    for (std::int64_t m = 0; m < matrices; ++m) {
      std::size_t least = load.size();
      for (std::size_t r = 0; r < load.size(); ++r)
        if (!takes[r] && (least == load.size() || load[r] < load[least])) least = r;
      takes[least] = true;
      load[least] += unit * spec.row_size();
    }
    RowCut cut{axis, {0}};
    for (const bool one : takes) cut.bounds.push_back(cut.bounds.back() + (one ? unit : 0));
    return cut;
  }

 private:
  std::map<MeshAxis, std::vector<std::int64_t>> loads_;
};

}  // namespace

std::vector<LocalParameter> local_parameters(
    const std::vector<ParameterSpec>& specs, const MeshPosition& mesh, int zero,
    const std::function<bool(const ParameterSpec&)>& keeps_matrices) {
  std::vector<LocalParameter> local;
  MatrixDealer dealer;
  for (const ParameterSpec& spec : specs) {
    LocalParameter p = cut_parameter(spec, mesh);
    const MeshAxis axis = spec.is_expert ? MeshAxis::data : MeshAxis::batch;
    p.owners = keeps_matrices && keeps_matrices(spec) ? dealer.deal(p.spec, axis, mesh.size(axis))
                                                      : cut_evenly(axis, p.spec.num_rows(), mesh.size(axis));
    p.own_rows = zero > 0 ? p.owners.part(mesh.rank(axis)) : Range{0, p.spec.num_rows()};
    p.zero = zero;
    local.push_back(std::move(p));
  }
  return local;
}

Shape local_shape(const ParameterSpec& spec, const MeshPosition& mesh) {
  return cut_parameter(spec, mesh).spec.shape;
}

Range LocalParameter::padding() const {
  const std::int64_t first = blocks.back().row + blocks.back().count;
  return {first, spec.num_rows() - first};
}

std::int64_t LocalParameter::whole_row(std::int64_t row) const {
  for (const RowBlock& block : blocks)
    if (row < block.row + block.count) return block.whole_row + row - block.row;
  return row;
}

void LocalParameter::for_each_block(
    std::int64_t first, std::int64_t count,
    const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& f) const {
  for (const RowBlock& block : blocks) {
    const std::int64_t from = std::max(first, block.row),
                       upto = std::min(first + count, block.row + block.count);
    if (from < upto) f(from, block.whole_row + from - block.row, upto - from);
  }
}

std::string_view head_name(const ModelConfig& config) {
  return config.tie_embeddings ? kEmbeddingName : kHeadName;
}

std::string layer_name(std::int64_t layer, std::string_view suffix) {
  return fmt::format("model.layers.{}.{}", layer, suffix);
}

std::vector<ParameterSpec> list_parameters(const ModelConfig& config) {
  return Lister(config).run();
}

std::string compute_copy_name(std::string_view parameter) {
  return fmt::format("compute.{}", parameter);
}

std::string own_rows_name(std::string_view tensor) {
  return fmt::format("{}{}", kOwnRows, tensor);
}

std::string read_name(const ParameterSpec& spec, DType compute) {
  return compute == DType::bf16 && spec.has_compute_copy() ? compute_copy_name(spec.name) : spec.name;
}

}  // namespace farskip
