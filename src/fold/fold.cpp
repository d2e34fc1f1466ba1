// SPDX-License-Identifier: Apache-2.0
#include "fold/fold.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <tuple>

#include "backend/cpu/parallel.h"
#include "fold/fit_graphs.h"
#include "fold/fold_weights.h"
#include "fold/least_squares.h"
#include "fold/matrices.h"
#include "fold/walking_model.h"
#include "model/blocks/block.h"

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

/// Tells a fit which tokens count: the first of a sequence does not. Its stream is larger by orders of
/// magnitude in many models, and would be all that the fit looks at.
void write_mask(GraphRunner& runner, std::int64_t tokens, std::int64_t sequence_length) {
  for (const auto& [name, one] : {std::pair{"row_mask", 1.0F}, {"negative_mask", -1.0F}}) {
    std::vector<float> mask(static_cast<std::size_t>(tokens), one);
    for (std::size_t t = 0; t < mask.size(); t += static_cast<std::size_t>(sequence_length)) mask[t] = 0.0F;
    runner.write(name, mask.data());
  }
}

/// Where the streams of three models lie: on the device that computes, or in host memory where it has too
/// little.
Context stream_memory(const ModelConfig& config, const FoldText& text, const Context& context) {
  Device& device = *context.device();
  if (device.shares_host_memory()) return context;
  constexpr std::int64_t tensors = 10;  // at most, of all tokens
  const std::int64_t bytes = tensors * text.sequences() * text.sequence_length * config.hidden_size *
                             static_cast<std::int64_t>(sizeof(float));
  if (static_cast<std::size_t>(bytes) < device.memory().free / 2) return context;
  context.logger.info("{} has too little memory for the streams of the text; they lie in host memory",
                      device.name());
  return make_context(make_cpu_device(), context.logger);
}

/// Whether the block reads another stream than in the other wiring.
bool is_rewired(const LayerGraph& before, const LayerGraph& after, std::size_t block) {
  return after.blocks[block].omits != before.blocks[block].omits;
}

class Folding {
 public:
  Folding(const Model& teacher, const LayerGraph& wiring, const RowReader& rows, const FoldText& text,
          const Communicator& world, const Context& context, const TakeFolded& take)
      : config_(teacher.config),
        teacher_wiring_(teacher.layers),
        student_wiring_(wiring),
        rows_(rows),
        text_(text),
        world_(world),
        context_(context),
        take_(take),
        memory_(stream_memory(config_, text, context)),
        fitted_{0, text.fitted, text.at_once},
        options_(options_of(text)),
        teacher_(config_, teacher_wiring_, text, {0, text.sequences(), text.at_once}, context, memory_),
        student_(config_, wiring, text, {0, text.sequences(), text.at_once}, context, memory_),
        untrained_(config_, wiring, text, measured_range(text), context, memory_),
        stream_error_(stream_error_graph(config_, options_), context) {
    write_mask(stream_error_, rows_at_once(), text.sequence_length);
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
    const SequenceRange measured = measured_range(text_);
    std::array losses{teacher_.loss(measured), untrained_.loss(measured), student_.loss(measured)};
    world_.all_reduce(std::span<double>(losses));
    for (double& loss : losses) loss /= world_.size();
    std::tie(folded_.teacher_loss, folded_.loss_before, folded_.loss_after) =
        std::tuple(losses[0], losses[1], losses[2]);
    return std::move(folded_);
  }

 private:
  static LowerOptions options_of(const FoldText& text) {
    LowerOptions options;
    options.batch = text.at_once;
    options.sequence_length = text.sequence_length;
    return options;
  }
  std::int64_t rows_at_once() const { return fitted_.at_once * text_.sequence_length; }

  void enter_layer(int layer) {
    const auto weights = load_layer(config_, rows_, layer, context_.device());
    teacher_.use_weights(weights);
    untrained_.use_weights(weights);
    student_weights_ = copy_layer(*weights);
    student_.use_weights(student_weights_);
    input_change_.reset();
  }

  /// Fits a block, given all before it, and computes it in every model.
  void fold_block(int i, const LayerBlock& block) {
    const bool reads_another = is_rewired(teacher_wiring_, student_wiring_, static_cast<std::size_t>(i));
    differs_ |= reads_another;
    if (reads_another) fold_inputs(i, block);
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
    for (const std::string& part : make_block(config_, block.kind)->readers()) {
      const std::string name = layer_name(block.layer, part);
      take_(name, fold_input(context_, student_weights_->at(name), input_change_->change, world_));
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
    write_mask(runner, rows_at_once(), text_.sequence_length);
    std::vector<NormalEquations> sums{{config_.hidden_size, config_.hidden_size}};
    std::array squares{0.0, 0.0};  // residual, target
    add_up(runner, sums, squares, [&](std::int64_t token) {
      student_.stream().read(i, token, runner.at("student"));
      teacher_.stream().read(i, token, runner.at("teacher"));
      runner.run();
      squares[0] += runner.read_number("residual_squares");
      squares[1] += runner.read_number("target_squares");
    });
    require_finite(sums[0], layer_name(block.layer, make_block(config_, block.kind)->readers().front()));
    InputChange fit{
        reads, std::move(solve(sums, {kInputRidge})[0]), {block.layer, block.kind, FoldSide::input}};
    fit.edge.error_before = squares[0] / squares[1];
    fit.edge.error_after = (squares[0] + squares_gained(sums[0], fit.change)) / squares[1];
    fit.edge.ridge = kInputRidge;
    return fit;
  }

  void fold_outputs(int i, const LayerBlock& block) {
    const std::string name = layer_name(block.layer, make_block(config_, block.kind)->writer());
    const TensorView weight = student_weights_->at(name);
    const bool has_experts = weight.shape.rank() == 3;
    std::vector<NormalEquations> sums(static_cast<std::size_t>(has_experts ? weight.shape[0] : 1),
                                      {weight.shape.back(), config_.hidden_size});
    std::vector<double> rows(sums.size(), 0.0);
    const double residual = sum_outputs(i, block, sums, rows);
    std::vector<double> ridges;
    for (std::size_t e = 0; e < sums.size(); ++e) {
      require_finite(sums[e], name);
      ridges.push_back(output_ridge(weight.shape.back(), rows[e]));
    }
    const std::vector<Eigen::MatrixXd> changes = solve(sums, ridges);
    sums.clear();
    take_(name, fold_output(*context_.device(), weight, changes));
    const double mean_rows =
        std::accumulate(rows.begin(), rows.end(), 0.0) / static_cast<double>(rows.size());
    folded_.edges.push_back({block.layer, block.kind, FoldSide::output,
                             residual / (fitted_tokens() * static_cast<double>(config_.hidden_size)), 0.0,
                             output_ridge(weight.shape.back(), mean_rows)});
  }

  /// Each rank solves some of the equations, which all of them have, and all get all solutions.
  std::vector<Eigen::MatrixXd> solve(std::span<NormalEquations> sums, const std::vector<double>& ridges) {
    const auto count = static_cast<std::int64_t>(sums.size());
    const auto first = [&](int rank) { return static_cast<std::size_t>(count * rank / world_.size()); };
    std::vector<Eigen::MatrixXd> solutions(sums.size());
    const std::size_t begin = first(world_.rank()), own = first(world_.rank() + 1) - begin;
    auto solved = solve_ridges(sums.subspan(begin, own), std::span(ridges).subspan(begin, own));
    std::move(solved.begin(), solved.end(), solutions.begin() + static_cast<std::ptrdiff_t>(begin));
    for (int rank = 0; rank < world_.size(); ++rank)
      for (std::size_t e = first(rank); e < first(rank + 1); ++e) {
        solutions[e].resize(sums[e].cross.rows(), sums[e].cross.cols());
        world_.broadcast(values_of(solutions[e]), rank);
      }
    return solutions;
  }
  static std::span<double> values_of(Eigen::MatrixXd& matrix) {
    return {matrix.data(), static_cast<std::size_t>(matrix.size())};
  }

  /// Returns the squares of what is to be fitted; `rows` of each matrix.
  double sum_outputs(int i, const LayerBlock& block, std::vector<NormalEquations>& sums,
                     std::vector<double>& rows) {
    GraphRunner runner(output_fit_graph(config_, block, options_), context_, student_weights_);
    write_mask(runner, rows_at_once(), text_.sequence_length);
    std::array residual{0.0};
    add_up(runner, sums, residual, [&](std::int64_t token) {
      student_.stream().read(i, token, runner.at("stream"));
      student_.stream().read_all(token, runner.at("student"));
      teacher_.stream().read_all(token, runner.at("teacher"));
      runner.run();
      count_rows(runner, block, rows);
      residual[0] += runner.read_number("residual_squares");
    });
    world_.all_reduce(std::span(rows));
    return residual[0];
  }

  /// Calls `run_part` for each part of the fitted sequences, and adds what the runs of the graph have summed
  /// up: on the device in f32 over some of them, here in double. Then what other ranks have: of these sums,
  /// and of `numbers`, to which `run_part` adds.
  template <class F>
  void add_up(GraphRunner& runner, std::vector<NormalEquations>& sums, std::span<double> numbers,
              const F& run_part) {
    constexpr std::int64_t tokens_in_f32 = 1 << 17;
    const std::int64_t parts = std::max<std::int64_t>(tokens_in_f32 / rows_at_once(), 1);
    std::int64_t pending = 0;
    const auto take = [&] {
      runner.take("gram", [&](const TensorView& all) {
        for_each_matrix(all, sums, [](NormalEquations& of, const TensorView& part) { of.add_gram(part); });
      });
      runner.take("cross", [&](const TensorView& all) {
        for_each_matrix(all, sums, [](NormalEquations& of, const TensorView& part) { of.add_cross(part); });
      });
      pending = 0;
    };
    for_each_part([&](std::int64_t token) {
      run_part(token);
      if (++pending == parts) take();
    });
    if (pending > 0) take();
    for (NormalEquations& of : sums) {
      world_.all_reduce(values_of(of.gram));
      world_.all_reduce(values_of(of.cross));
    }
    world_.all_reduce(numbers);
  }

  /// The last run made these: of a routed block for each expert.
  void count_rows(const GraphRunner& runner, const LayerBlock& block, std::vector<double>& rows) const {
    if (block.kind != SubBlock::routed) {
      rows[0] += static_cast<double>(rows_at_once());
      return;
    }
    const HostTensor offsets = runner.read(fmt::format("expert_offsets.{}", block.layer));
    const std::span<const std::int32_t> at = offsets.values<std::int32_t>();
    for (std::size_t e = 0; e < rows.size(); ++e) rows[e] += at[e + 1] - at[e];
  }

  /// `all` has a matrix for each of the sums, one after the other.
  template <class F>
  static void for_each_matrix(const TensorView& all, std::vector<NormalEquations>& sums, const F& use) {
    const auto count = static_cast<std::int64_t>(sums.size());
    const std::int64_t height = row_count(all.shape) / count;
    cpu::parallel_for(count, [&](std::int64_t e) {
      use(sums[static_cast<std::size_t>(e)], rows_view(all, e * height, height));
    });
  }

  /// Of the streams as they are now, as FoldEdge says.
  double stream_error() {
    double sum = 0;
    for_each_part([&](std::int64_t token) {
      student_.stream().read_all(token, stream_error_.at("student"));
      teacher_.stream().read_all(token, stream_error_.at("teacher"));
      stream_error_.run();
      sum += stream_error_.read_number("residual_squares");
    });
    world_.all_reduce(std::span(&sum, 1));
    return sum / (fitted_tokens() * static_cast<double>(config_.hidden_size));
  }
  /// Of all ranks, without the first of each sequence.
  double fitted_tokens() const {
    return static_cast<double>(world_.size() * fitted_.count * (text_.sequence_length - 1));
  }

  const ModelConfig& config_;
  const LayerGraph& teacher_wiring_;
  const LayerGraph& student_wiring_;
  const RowReader& rows_;
  const FoldText& text_;
  const Communicator& world_;
  const Context& context_;
  const TakeFolded& take_;
  Context memory_;  // of the streams
  SequenceRange fitted_;
  LowerOptions options_;
  WalkingModel teacher_, student_, untrained_;
  GraphRunner stream_error_;
  std::shared_ptr<States> student_weights_;
  bool differs_ = false;  // the student's stream from the teacher's, from some block on
  std::optional<InputChange> input_change_;
  Folded folded_;
};

}  // namespace

std::set<std::string> folded_parameters(const Model& teacher, const LayerGraph& wiring) {
  std::set<std::string> names;
  bool differs = false;
  for (std::size_t i = 0; i < wiring.blocks.size(); ++i) {
    const LayerBlock& block = wiring.blocks[i];
    const bool reads_another = is_rewired(teacher.layers, wiring, i);
    differs |= reads_another;
    if (!differs || block.kind == SubBlock::head) continue;
    const auto parts = make_block(teacher.config, block.kind);
    if (reads_another)
      for (const std::string& part : parts->readers()) names.insert(layer_name(block.layer, part));
    names.insert(layer_name(block.layer, parts->writer()));
  }
  return names;
}

Folded fold_model(const Model& teacher, const LayerGraph& wiring, const RowReader& rows, const FoldText& text,
                  const Communicator& world, const Context& context, const TakeFolded& take) {
  if (teacher.layers == wiring) return {};
  const auto start = std::chrono::steady_clock::now();
  Folded folded = Folding(teacher, wiring, rows, text, world, context, take).run();
  // Where the model itself has a higher loss than the rewired one, that is where a fold leads.
  const bool is_farther =
      std::abs(folded.loss_after - folded.teacher_loss) > std::abs(folded.loss_before - folded.teacher_loss);
  if (folded.loss_after > folded.loss_before && is_farther && world.rank() == 0)
    context.logger.warning(
        "the fold made the rewired model worse ({:.4f} nats before, {:.4f} after it): {} tokens are too few "
        "to fit {} "
        "columns; give more text",
        folded.loss_before, folded.loss_after, world.size() * text.fitted * text.sequence_length,
        teacher.config.hidden_size);
  folded.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return folded;
}

}  // namespace farskip
