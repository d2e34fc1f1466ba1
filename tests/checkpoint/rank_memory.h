// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks with memory of their own, filled with known values, for the tests of checkpoints.

#include <set>

#include "checkpoint/training_checkpoint.h"
#include "comm/local.h"
#include "farskip/base/random.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip::test {

inline const Logger kQuiet(LogLevel::off);

struct RankLayout {
  int ranks, expert;
  int zero;
  int tensor = 1;
  MeshPosition mesh(int rank) const { return {ranks, rank, expert, tensor}; }
  std::string text() const {
    return fmt::format("{} ranks, expert {}, tensor {}, ZeRO {}", ranks, expert, tensor, zero);
  }
};

inline const ModelConfig& model() {
  static const ModelConfig config = read_hub_config(fixtures() / "qwen3_moe");
  return config;
}

/// The model, and parameters so small that some ranks keep no row of their state.
inline std::vector<ParameterSpec> all_specs() {
  std::vector<ParameterSpec> specs = list_parameters(model());
  for (const auto& [name, shape] : {std::pair{"tiny.matrix", Shape{1, 3}}, {"tiny.vector", Shape{2}}})
    specs.push_back({name, shape, SubBlock::none, -1, false, Initializer::normal, {{name, shape, 0}}});
  const std::string odd = "odd.rows";  // that no number of ranks divides
  specs.push_back(
      {odd, Shape{7, 3}, SubBlock::none, -1, false, Initializer::normal, {{odd, Shape{7, 3}, 0}}});
  specs.back().layout = {{.dim = 0, .padded = true}};
  return specs;
}

enum Kind : std::uint64_t { weight, first_moment, second_moment };

/// What element `position` of a whole parameter holds: of no meaning, but neighbours, parameters and kinds
/// differ.
class Values {
 public:
  Values(Kind kind, const std::string& parameter) : base_(stream_id(parameter) + kind) {}
  float operator()(std::int64_t position) const {
    const std::uint64_t mixed = (base_ ^ static_cast<std::uint64_t>(position)) * 0x9E3779B97F4A7C15u;
    return static_cast<float>(mixed >> 40);
  }

 private:
  std::uint64_t base_;
};

template <class... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw std::runtime_error(fmt::format(format, std::forward<Args>(args)...));
}

/// The memory of one rank.
struct Rank {
  explicit Rank(const RankLayout& layout, int rank)
      : parameters(local_parameters(all_specs(), layout.mesh(rank), layout.zero)),
        states(make_weights(parameters)) {
    states->add(moments_of(parameters));
    set_all(-1);
  }

  /// Calls visitor(values, position in the whole parameter, element) for all that is here.
  template <class Visitor>
  void visit(const Visitor& visitor) {
    for (const StateSpec& spec : states->specs()) {
      const LocalParameter& p = *spec.parameter;
      const Kind kind = spec.role == Role::weight   ? weight
                        : spec.kind == kFirstMoment ? first_moment
                                                    : second_moment;
      const Values values(kind, p.spec.name);
      const std::span<float> all = values_of(*states, spec.name);
      const std::int64_t width = row_size(p.full_shape), first = spec.rows().first;
      p.for_each_block(
          first, spec.rows().count, [&](std::int64_t row, std::int64_t whole, std::int64_t count) {
            for (std::int64_t i = 0; i < count * p.columns.count; ++i)
              visitor(values, (whole + i / p.columns.count) * width + p.columns.first + i % p.columns.count,
                      all[static_cast<std::size_t>((row - first) * p.columns.count + i)]);
          });
    }
  }
  void set_all(float to) {
    visit([to](const Values&, std::int64_t, float& value) { value = to; });
  }
  void fill() {
    visit([](const Values& values, std::int64_t position, float& value) { value = values(position); });
  }
  void check() {
    std::int64_t wrong = 0;
    visit([&](const Values& values, std::int64_t position, const float& value) {
      wrong += value == values(position) ? 0 : 1;
    });
    expect(wrong == 0, "{} values differ", wrong);
  }

  std::vector<LocalParameter> parameters;
  std::shared_ptr<States> states;
};

inline TrainingState state_of(std::int64_t step) {
  return {step, step * 8, step * 8 * 32, {{"seed", "7"}}};
}

/// Calls body(world, rank's memory, its saver) on every rank.
template <class Body>
void on_ranks(const RankLayout& layout, const fs::path& folder, bool asynchronous, const Body& body) {
  run_local_ranks(layout.ranks, [&](const Communicator& world) {
    Rank rank(layout, world.rank());
    CheckpointSaver saver({folder, 10, asynchronous}, model(), {},
                          quiet_context(Mesh(world, layout.expert, layout.tensor)));
    body(world, rank, saver);
  });
}

inline void save_on(const RankLayout& layout, const fs::path& folder, std::int64_t step,
                    bool asynchronous = false) {
  on_ranks(layout, folder, asynchronous, [&](const Communicator&, Rank& rank, CheckpointSaver& saver) {
    rank.fill();
    saver.save(state_of(step), *rank.states);
    saver.wait();
  });
}

/// The whole tensors of a checkpoint, under hub names, hold what they should.
inline void check_content(const fs::path& path) {
  const Checkpoint checkpoint = open_checkpoint(path);
  std::size_t count = 0;
  for (const ParameterSpec& spec : all_specs())
    for (const HubPiece& piece : spec.pieces)
      for (const auto& [kind, prefix] :
           {std::pair{weight, ""}, {first_moment, "adam.m."}, {second_moment, "adam.v."}}) {
        const HostTensor tensor = checkpoint.read(prefix + piece.name);
        REQUIRE(tensor.shape() == piece.shape);
        const Values values(kind, spec.name);
        bool equal = true;
        for (std::int64_t i = 0; i < tensor.num_elements(); ++i)
          equal = equal && tensor.values<float>()[static_cast<std::size_t>(i)] ==
                               values(piece.first_row * spec.row_size() + i);
        INFO(prefix << piece.name);
        CHECK(equal);
        ++count;
      }
  CHECK(checkpoint.manifest().tensors.size() == count);
}

inline std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

}  // namespace farskip::test
