// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/parameters.h"

#include <map>

#include "farskip/model/family.h"

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
    ParameterSpec& table =
        add(std::string(kEmbeddingName), {c_.vocab_size, c_.hidden_size}, SubBlock::embedding);
    for (std::int64_t layer = c_.num_layers; has_mtp_ && layer < c_.num_layers + kMostMtpLayers; ++layer)
      table.passed_over.push_back(layer_name(layer, ""));
    for (layer_ = 0; layer_ < c_.num_layers; ++layer_) add_layer();
    layer_ = -1;
    add_norm(std::string(kFinalNormName), c_.hidden_size, SubBlock::head);
    if (!c_.tie_embeddings) add(std::string(kHeadName), {c_.vocab_size, c_.hidden_size}, SubBlock::head);
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

  void add_projection(std::string_view part, std::int64_t outputs, std::int64_t inputs, bool has_bias) {
    const std::string module = name(fmt::format("self_attn.{}", part));
    add(module + ".weight", {outputs, inputs}, SubBlock::attention);
    if (has_bias) add(module + ".bias", {outputs}, SubBlock::attention, Initializer::zeros);
  }

  void add_latent_attention(const MlaConfig& mla) {
    const std::int64_t heads = c_.num_heads, qk = mla.nope_dim + mla.rope_dim;
    const bool bias = c_.attention_bias;
    if (mla.q_lora_rank > 0) {
      add_projection("q_a_proj", mla.q_lora_rank, c_.hidden_size, bias);
      add_norm(name("self_attn.q_a_layernorm.weight"), mla.q_lora_rank, SubBlock::attention);
      add_projection("q_b_proj", heads * qk, mla.q_lora_rank, false);
    } else {
      add_projection("q_proj", heads * qk, c_.hidden_size, false);
    }
    add_projection("kv_a_proj_with_mqa", mla.kv_lora_rank + mla.rope_dim, c_.hidden_size, bias);
    add_norm(name("self_attn.kv_a_layernorm.weight"), mla.kv_lora_rank, SubBlock::attention);
    add_projection("kv_b_proj", heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank, false);
    add_projection("o_proj", c_.hidden_size, heads * mla.v_dim, bias);
    if (c_.gated_attention) add_projection("gate_proj", heads * mla.v_dim, c_.hidden_size, false);
  }

  void add_grouped_query_attention() {
    const GqaConfig& gqa = c_.gqa;
    const bool bias = c_.attention_bias;
    add_projection("q_proj", c_.num_heads * gqa.head_dim, c_.hidden_size, bias);
    add_projection("k_proj", gqa.kv_heads * gqa.head_dim, c_.hidden_size, bias);
    add_projection("v_proj", gqa.kv_heads * gqa.head_dim, c_.hidden_size, bias);
    add_projection("o_proj", c_.hidden_size, c_.num_heads * gqa.head_dim, bias);
    if (gqa.qk_norm == QkNorm::none || gqa.qk_norm == QkNorm::rotated) return;
    const bool together = gqa.qk_norm == QkNorm::projection;
    add_norm(name("self_attn.q_norm.weight"), (together ? c_.num_heads : 1) * gqa.head_dim,
             SubBlock::attention);
    add_norm(name("self_attn.k_norm.weight"), (together ? gqa.kv_heads : 1) * gqa.head_dim,
             SubBlock::attention);
  }

  void add_mlp(const std::string& module, const std::string& on_hub, std::int64_t size, SubBlock block) {
    const Shape half{size, c_.hidden_size};
    ParameterSpec& gate_up = add(name(module + ".gate_up_proj.weight"), {2 * size, c_.hidden_size}, block);
    gate_up.matrix_rows = size;
    gate_up.pieces = {{name(on_hub + ".gate_proj.weight"), half, 0},
                      {name(on_hub + ".up_proj.weight"), half, size}};
    ParameterSpec& down = add(name(module + ".down_proj.weight"), {c_.hidden_size, size}, block);
    down.pieces[0].name = name(on_hub + ".down_proj.weight");
    if (c_.mlp_bias) add_mlp_biases(module, on_hub, size, block);
  }

  void add_mlp_biases(const std::string& module, const std::string& on_hub, std::int64_t size,
                      SubBlock block) {
    ParameterSpec& gate_up = add(name(module + ".gate_up_proj.bias"), {2 * size}, block, Initializer::zeros);
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
    gate_up.matrix_rows = size;
    gate_up.pieces.clear();
    if (names_.packed_transposed) gate_up.packed_transposed = name(names_.module + ".experts.gate_up_proj");
    for (std::int64_t e = 0; e < experts; ++e) {
      gate_up.pieces.push_back({expert_name(e, names_.gate), {size, hidden}, e * 2 * size});
      gate_up.pieces.push_back({expert_name(e, names_.up), {size, hidden}, e * 2 * size + size});
    }
    ParameterSpec& down = add(name("mlp.experts.down_proj"), {experts, hidden, size}, SubBlock::routed);
    down.is_expert = true;
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

/// Keeps the experts of one rank of the expert axis.
void keep_own_experts(LocalParameter& p, const MeshPosition& mesh) {
  const std::int64_t experts = p.full_shape[0];
  if (experts % mesh.expert_size != 0)
    throw UsageError(fmt::format(
        "parallel.expert is {}, which does not divide the {} experts of a layer; use a divisor of {}",
        mesh.expert_size, experts, experts));
  const Range own = part_of(experts, mesh.expert_size, mesh.rank(MeshAxis::expert));
  const std::int64_t rows_per_expert = p.spec.num_rows() / experts;
  p.first_row = own.first * rows_per_expert;
  std::vector<std::int64_t> dims(p.full_shape.dims().begin(), p.full_shape.dims().end());
  dims[0] = own.count;
  p.spec.shape = Shape(dims);
  const std::int64_t end = own.end() * rows_per_expert;
  std::erase_if(p.spec.pieces, [&](const HubPiece& piece) {
    return piece.first_row < p.first_row || piece.first_row >= end;
  });
  for (HubPiece& piece : p.spec.pieces) piece.first_row -= p.first_row;
  p.owners.axis = MeshAxis::data;
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
    const std::vector<ParameterSpec>& specs, const MeshPosition& mesh, bool zero,
    const std::function<bool(const ParameterSpec&)>& keeps_matrices) {
  std::vector<LocalParameter> local;
  MatrixDealer dealer;
  for (const ParameterSpec& spec : specs) {
    LocalParameter p{spec, 0, spec.shape, {}, {}};
    if (spec.is_expert) keep_own_experts(p, mesh);
    const MeshAxis axis = p.owners.axis;
    p.owners = keeps_matrices && keeps_matrices(spec) ? dealer.deal(p.spec, axis, mesh.size(axis))
                                                      : cut_evenly(axis, p.spec.num_rows(), mesh.size(axis));
    p.own_rows = zero ? p.owners.part(mesh.rank(axis)) : Range{0, p.spec.num_rows()};
    local.push_back(std::move(p));
  }
  return local;
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
