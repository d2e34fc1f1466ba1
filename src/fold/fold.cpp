// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/fold.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "farskip/backend/cpu/parallel.h"
#include "farskip/fold/fit_graphs.h"
#include "farskip/fold/fold_weights.h"
#include "farskip/fold/least_squares.h"
#include "farskip/fold/matrices.h"
#include "farskip/fold/walking_model.h"

namespace farskip {
namespace {

constexpr double kInputRidge = 1e-6;

/// The weights that a matrix has count as much as three rows of the fit for each of its columns, so that one
/// that few rows reach changes little.
double output_ridge(std::int64_t columns, double rows) {
  constexpr double rows_of_column = 3.0;
  return rows_of_column * static_cast<double>(columns) / std::max(rows, 1.0);
}

SequenceRange measured_range(const FoldText& text) {
  return text.held_out > 0 ? SequenceRange{text.fitted, text.held_out, text.at_once}
                           : SequenceRange{0, text.fitted, text.at_once};
}

/// What a matrix reads, and what it is fitted to, add up to these sums.
void require_finite(const NormalEquations& sums, const std::string& matrix) {
  if (sums.gram.allFinite() && sums.cross.allFinite()) return;
  throw DataError(fmt::format(
      "the fold of {}: what it reads, or what it is to write, is not finite on this text; farskip eval "
      "tells whether the model itself is sound",
      matrix));
}

double mean_square(const MatrixView& rows, Eigen::Index row) {
  constexpr double tiny = 1e-30;  // of a stream that is zero
  return rows.row(row).cast<double>().squaredNorm() / static_cast<double>(rows.cols()) + tiny;
}

/// How a fit weighs the tokens of some sequences. The first of a sequence counts for nothing: its stream is
/// larger by orders of magnitude in many models, and would be all that a fit looks at.
class TokenWeights {
 public:
  TokenWeights(std::int64_t tokens, std::int64_t sequence_length)
      : length_(sequence_length), weights_(static_cast<std::size_t>(tokens), 1.0F) {
    leave_out_first();
  }
  /// 1 / root mean square of a stream [T, H] in each token.
  void set_by(const TensorView& stream) {
    const MatrixView rows = as_matrix(stream);
    for (Eigen::Index t = 0; t < rows.rows(); ++t)
      weights_[static_cast<std::size_t>(t)] = static_cast<float>(1.0 / std::sqrt(mean_square(rows, t)));
    leave_out_first();
  }
  void write(GraphRunner& runner) const {
    write(runner, "row_weight", 1.0F);
    write(runner, "negative_weight", -1.0F);
    if (runner.has_input("slot_weight")) write(runner, "slot_weight", 1.0F);
  }

 private:
  void leave_out_first() {
    for (std::size_t t = 0; t < weights_.size(); t += static_cast<std::size_t>(length_)) weights_[t] = 0.0F;
  }
  /// Each weight as often as there are rows of a token.
  void write(GraphRunner& runner, const char* name, float factor) const {
    const TensorView& to = runner.input(name);
    const std::size_t copies = static_cast<std::size_t>(to.num_elements()) / weights_.size();
    for (std::size_t i = 0; i < weights_.size() * copies; ++i)
      to.as<float>()[i] = factor * weights_[i / copies];
  }

  std::int64_t length_;
  std::vector<float> weights_;
};

class Folding {
 public:
  Folding(const Model& teacher, const LayerGraph& wiring, const RowReader& rows, const FoldText& text,
          const Context& context)
      : config_(teacher.config),
        teacher_wiring_(teacher.layers),
        student_wiring_(wiring),
        rows_(rows),
        text_(text),
        context_(context),
        fitted_{0, text.fitted, text.at_once},
        teacher_(config_, teacher_wiring_, text, {0, text.sequences(), text.at_once}, context),
        student_(config_, wiring, text, {0, text.sequences(), text.at_once}, context),
        untrained_(config_, wiring, text, measured_range(text), context) {
    options_.batch = fitted_.at_once;
    options_.sequence_length = text.sequence_length;
  }

  Folded run() {
    int layer = -2;
    for (std::size_t i = 0; i < teacher_wiring_.blocks.size(); ++i) {
      const LayerBlock& block = student_wiring_.blocks[i];
      if (block.layer != layer) {
        enter_layer(layer = block.layer);
        if (layer >= 0) context_.logger.info("folding layer {} of {}", layer, config_.num_layers);
      }
      if (block.kind != SubBlock::head) fold_block(static_cast<int>(i), block);
    }
    folded_.teacher_loss = teacher_.loss();
    folded_.loss_before = untrained_.loss();
    folded_.loss_after = student_.loss();
    return std::move(folded_);
  }

 private:
  std::int64_t rows_at_once() const { return fitted_.at_once * text_.sequence_length; }

  void enter_layer(int layer) {
    const auto weights = load_layer(config_, rows_, layer, context_.device());
    teacher_.use_weights(weights);
    untrained_.use_weights(weights);
    student_weights_ = load_layer(config_, rows_, layer, context_.device());
    student_.use_weights(student_weights_);
    input_change_.reset();
  }

  /// Fits a block, given all before it, and computes it in every model.
  void fold_block(int i, const LayerBlock& block) {
    const bool is_rewired = block.omits != teacher_wiring_.blocks[static_cast<std::size_t>(i)].omits;
    differs_ |= is_rewired;
    if (is_rewired) fold_inputs(i, block);
    teacher_.compute(i);
    untrained_.compute(i);
    if (differs_) fold_outputs(i, block);
    student_.compute(i);
    if (differs_) folded_.edges.back().error_after = stream_error();
  }

  /// Calls `use` with the first token of each part of the fitted sequences.
  template <class F>
  void for_each_part(const F& use) const {
    for (std::int64_t s = 0; s < fitted_.count; s += fitted_.at_once) use(s * text_.sequence_length);
  }

  void fold_inputs(int i, const LayerBlock& block) {
    const std::vector<int> reads = student_wiring_.reads(i);
    // Attention has a norm of its own, also where it reads what an MLP reads.
    if (!input_change_ || input_change_->reads != reads ||
        norm_suffix(input_change_->edge.block) != norm_suffix(block.kind))
      input_change_ = fit_input(i, block, reads);
    folded_.edges.push_back(input_change_->edge);
    folded_.edges.back().block = block.kind;
    for (const std::string& part : stream_readers(block.kind)) {
      const std::string name = layer_name(block.layer, part);
      if (student_weights_->contains(name))
        folded_.weights[name] =
            fold_input(*context_.device(), student_weights_->at(name), input_change_->change);
    }
  }

  /// What a stream is changed by before matrices read it. Shared and routed experts may read the same.
  struct InputChange {
    std::vector<int> reads;
    Eigen::MatrixXd change;
    FoldEdge edge;
  };
  InputChange fit_input(int i, const LayerBlock& block, const std::vector<int>& reads) {
    GraphRunner runner(input_fit_graph(config_, block, options_), context_, student_weights_);
    TokenWeights(rows_at_once(), text_.sequence_length).write(runner);
    NormalEquations sums(config_.hidden_size, config_.hidden_size);
    double residual = 0, target = 0;
    for_each_part([&](std::int64_t token) {
      student_.stream().read(i, token, runner.input("student"));
      teacher_.stream().read(i, token, runner.input("teacher"));
      runner.run();
      sums.add(runner.read("gram").view(), runner.read("cross").view(), rows_at_once());
      residual += runner.read_number("residual_squares");
      target += runner.read_number("target_squares");
    });
    require_finite(sums, layer_name(block.layer, stream_readers(block.kind).front()));
    InputChange fit{reads, solve_ridge(sums, kInputRidge), {block.layer, block.kind, FoldSide::input}};
    fit.edge.error_before = residual / target;
    fit.edge.error_after = (residual + squares_gained(sums, fit.change)) / target;
    fit.edge.ridge = kInputRidge;
    return fit;
  }

  void fold_outputs(int i, const LayerBlock& block) {
    const std::string name = layer_name(block.layer, stream_writer(block.kind));
    const TensorView weight = student_weights_->at(name);
    const bool has_experts = weight.shape.rank() == 3;
    std::vector<NormalEquations> sums(static_cast<std::size_t>(has_experts ? weight.shape[0] : 1),
                                      {weight.shape.back(), config_.hidden_size});
    const double residual = sum_outputs(i, block, sums);
    std::vector<Eigen::MatrixXd> changes(sums.size());
    cpu::parallel_for(static_cast<std::int64_t>(sums.size()), [&](std::int64_t e) {
      const NormalEquations& one = sums[static_cast<std::size_t>(e)];
      require_finite(one, name);
      changes[static_cast<std::size_t>(e)] = solve_ridge(one, output_ridge(weight.shape.back(), one.rows));
    });
    double rows = 0;
    for (const NormalEquations& one : sums) rows += one.rows / static_cast<double>(sums.size());
    folded_.weights[name] = fold_output(*context_.device(), weight, changes);
    folded_.edges.push_back({block.layer, block.kind, FoldSide::output,
                             residual / (fitted_tokens() * static_cast<double>(config_.hidden_size)), 0.0,
                             output_ridge(weight.shape.back(), rows)});
  }

  /// Returns the squares of what is to be fitted.
  double sum_outputs(int i, const LayerBlock& block, std::vector<NormalEquations>& sums) {
    GraphRunner runner(output_fit_graph(config_, block, options_), context_, student_weights_);
    TokenWeights weights(rows_at_once(), text_.sequence_length);
    double residual = 0;
    for_each_part([&](std::int64_t token) {
      student_.stream().read(i, token, runner.input("stream"));
      weights.set_by(missing_in_student(token, runner.input("target")).view());
      weights.write(runner);
      runner.run();
      const HostTensor gram = runner.read("gram"), cross = runner.read("cross");
      const std::vector<std::int64_t> rows = count_rows(runner, block);
      cpu::parallel_for(static_cast<std::int64_t>(sums.size()), [&](std::int64_t number) {
        const auto e = static_cast<std::size_t>(number);
        sums[e].add(part(gram, e, sums.size()), part(cross, e, sums.size()), rows[e]);
      });
      residual += runner.read_number("residual_squares");
    });
    return residual;
  }

  /// Of the sums that the runner gave: of a routed block for each expert.
  std::vector<std::int64_t> count_rows(const GraphRunner& runner, const LayerBlock& block) const {
    if (block.kind != SubBlock::routed) return {rows_at_once()};
    const HostTensor offsets = runner.read(fmt::format("expert_offsets.{}", block.layer));
    const std::span<const std::int32_t> at = offsets.values<std::int32_t>();
    std::vector<std::int64_t> rows;
    for (std::size_t e = 0; e + 1 < at.size(); ++e) rows.push_back(at[e + 1] - at[e]);
    return rows;
  }

  /// Matrix `i` of `count` that lie one after the other.
  static TensorView part(const HostTensor& matrices, std::size_t i, std::size_t count) {
    const std::int64_t height = row_count(matrices.shape()) / static_cast<std::int64_t>(count);
    return rows_view(matrices.view(), static_cast<std::int64_t>(i) * height, height);
  }

  /// Fills `missing` with what separates the student's stream from the teacher's; returns the teacher's.
  HostTensor missing_in_student(std::int64_t first, const TensorView& missing) const {
    HostTensor teacher(DType::f32, missing.shape);
    teacher_.stream().read_all(first, teacher.view());
    student_.stream().read_all(first, missing);
    as_matrix(missing) = as_matrix(teacher.view()) - as_matrix(missing);
    return teacher;
  }

  /// Of the streams as they are now, as FoldEdge says.
  double stream_error() const {
    const HostTensor missing(DType::f32, Shape{rows_at_once(), config_.hidden_size});
    double sum = 0;
    for_each_part([&](std::int64_t token) {
      const HostTensor teacher = missing_in_student(token, missing.view());
      const MatrixView target = as_matrix(teacher.view()), rest = as_matrix(missing.view());
      for (Eigen::Index t = 0; t < rest.rows(); ++t)
        if (t % text_.sequence_length != 0) sum += mean_square(rest, t) / mean_square(target, t);
    });
    return sum / fitted_tokens();
  }
  double fitted_tokens() const { return static_cast<double>(fitted_.count * (text_.sequence_length - 1)); }

  const ModelConfig& config_;
  const LayerGraph& teacher_wiring_;
  const LayerGraph& student_wiring_;
  const RowReader& rows_;
  const FoldText& text_;
  const Context& context_;
  SequenceRange fitted_;
  LowerOptions options_;
  WalkingModel teacher_, student_, untrained_;
  std::shared_ptr<States> student_weights_;
  bool differs_ = false;  // the student's stream from the teacher's, from some block on
  std::optional<InputChange> input_change_;
  Folded folded_;
};

}  // namespace

Folded fold_model(const Model& teacher, const LayerGraph& wiring, const RowReader& rows, const FoldText& text,
                  const Context& context) {
  if (teacher.layers == wiring) return {};
  const auto start = std::chrono::steady_clock::now();
  Folded folded = Folding(teacher, wiring, rows, text, context).run();
  if (folded.loss_after > folded.loss_before)
    context.logger.warning(
        "the fold made the rewired model worse ({:.4f} nats before, {:.4f} after it): {} tokens are too few "
        "to fit {} "
        "columns; give more text",
        folded.loss_before, folded.loss_after, text.fitted * text.sequence_length,
        teacher.config.hidden_size);
  folded.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return folded;
}

RowReader folded_rows(const RowReader& rows, const Folded& folded) {
  return [&rows, &folded](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    const auto it = folded.weights.find(p.spec.name);
    if (it == folded.weights.end()) return rows(p, first_row, to);
    const TensorView from = rows_view(it->second.view(), first_row, row_count(to.shape));
    std::memcpy(to.data, from.data, to.num_bytes());
  };
}

}  // namespace farskip
