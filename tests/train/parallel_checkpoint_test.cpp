// Checkpoints written by several ranks and read by others.

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "farskip/base/random.h"
#include "farskip/comm/local.h"
#include "farskip/train/training_checkpoint.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

struct Layout {
  int ranks, expert;
  bool zero;
  MeshPosition mesh(int rank) const { return {ranks, rank, expert}; }
  std::string text() const {
    return fmt::format("{} ranks, expert {}, {} ZeRO", ranks, expert, zero ? "with" : "without");
  }
};

std::vector<Layout> all_layouts() {
  std::vector<Layout> layouts;
  for (const bool zero : {false, true})
    for (const auto& [ranks, expert] : {std::pair{1, 1}, {2, 1}, {2, 2}, {3, 1}, {4, 2}, {4, 4}})
      layouts.push_back({ranks, expert, zero});
  return layouts;
}

const ModelConfig& model() {
  static const ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  return config;
}

/// The model, and parameters so small that some ranks keep no row of their state.
std::vector<ParameterSpec> all_specs() {
  std::vector<ParameterSpec> specs = list_parameters(model());
  for (const auto& [name, shape] : {std::pair{"tiny.matrix", Shape{1, 3}}, {"tiny.vector", Shape{2}}})
    specs.push_back({name, shape, SubBlock::none, -1, false, Initializer::normal, {{name, shape, 0}}});
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
  explicit Rank(const Layout& layout, int rank)
      : parameters(local_parameters(all_specs(), layout.mesh(rank), layout.zero)),
        weights(make_parameter_tensors(specs_of(parameters))),
        first(make_optimizer_tensors(parameters)),
        second(make_optimizer_tensors(parameters)) {
    set_all(-1);
  }
  TrainingTensors tensors() { return {parameters, weights, first, second}; }

  /// Calls visitor(values, position in the whole parameter, element) for all that is here.
  template <class Visitor>
  void visit(const Visitor& visitor) {
    for (const LocalParameter& p : parameters) {
      const auto each = [&](Kind kind, TensorMap& tensors, std::int64_t first_row) {
        const Values values(kind, p.spec.name);
        std::int64_t position = first_row * p.spec.row_size();
        for (float& value : tensors.at(p.spec.name).values<float>()) visitor(values, position++, value);
      };
      each(weight, weights, p.first_row);
      each(first_moment, first, p.first_row + p.optimizer_rows.first);
      each(second_moment, second, p.first_row + p.optimizer_rows.first);
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
  TensorMap weights, first, second;
};

TrainingState state_of(std::int64_t step) {
  return {step, step * 8, step * 8 * 32, std::uint64_t{1} << 60};
}

/// Calls body(world, rank's memory, its saver) on every rank.
template <class Body>
void on_ranks(const Layout& layout, const fs::path& folder, bool asynchronous, const Body& body) {
  run_local_ranks(layout.ranks, [&](const Communicator& world) {
    Rank rank(layout, world.rank());
    CheckpointSaver saver(folder, 10, asynchronous, model(), {}, kQuiet, layout.mesh(world.rank()), world);
    body(world, rank, saver);
  });
}

void save_on(const Layout& layout, const fs::path& folder, std::int64_t step, bool asynchronous = false) {
  on_ranks(layout, folder, asynchronous, [&](const Communicator&, Rank& rank, CheckpointSaver& saver) {
    rank.fill();
    saver.save(state_of(step), rank.tensors());
    saver.wait();
  });
}

/// Resumes on another layout, checks every value, and saves as step `next` where that is not 0.
void resume_on(const Layout& layout, const fs::path& folder, std::int64_t step, std::int64_t next = 0) {
  on_ranks(layout, folder, false, [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
    const auto resumed = resume_training(folder, model(), state_of(step).seed, rank.tensors(), world, kQuiet);
    expect(resumed == state_of(step), "another state");
    rank.check();
    if (next > 0) saver.save(state_of(next), rank.tensors());
  });
}

/// The whole tensors of a checkpoint, under hub names, hold what they should.
void check_content(const fs::path& path) {
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

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

/// Notes what `body` throws on this rank: "exit code: message".
template <class Body>
void note_error(const Communicator& world, std::vector<std::string>& errors, const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    errors[static_cast<std::size_t>(world.rank())] =
        fmt::format("{}: {}", static_cast<int>(e.code()), e.what());
  }
}

TEST_CASE("a checkpoint of any mesh is resumed on any other, bit for bit") {
  for (const Layout& from : all_layouts()) {
    INFO("from " << from.text());
    const test::TemporaryFolder folder;
    save_on(from, folder.path(), 5);
    check_content(folder / "step-5");
    for (const Layout& to : all_layouts()) {
      INFO("to " << to.text());
      CHECK_NOTHROW(resume_on(to, folder.path(), 5));
    }
  }
}

TEST_CASE("through 4, 1, 2 and 4 ranks a checkpoint keeps its content") {
  const test::TemporaryFolder folder;
  save_on({4, 2, true}, folder.path(), 1);
  resume_on({1, 1, false}, folder.path(), 1, 2);
  resume_on({2, 1, true}, folder.path(), 2, 3);
  resume_on({4, 4, false}, folder.path(), 3, 4);
  const Checkpoint first = open_checkpoint(folder / "step-1"), last = open_checkpoint(folder / "step-4");
  REQUIRE(first.manifest().tensors.size() == last.manifest().tensors.size());
  for (const auto& [name, tensor] : first.manifest().tensors) {
    INFO(name);
    const HostTensor a = first.read(name), b = last.read(name);
    REQUIRE(a.shape() == b.shape());
    CHECK(std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0);
  }
}

TEST_CASE("ZeRO or not, and asynchronous or not, the ranks write the same files") {
  const test::TemporaryFolder folder;
  save_on({4, 2, true}, folder / "a", 1);
  save_on({4, 2, false}, folder / "b", 1, true);
  const auto names = names_in(folder / "a/step-1");
  CHECK(names == names_in(folder / "b/step-1"));
  for (const std::string& name : names)
    CHECK(read_text_file(folder / "a/step-1" / name) == read_text_file(folder / "b/step-1" / name));
  CHECK(names == std::set<std::string>{
                     "config.json", "manifest.json", "model.safetensors.index.json",
                     "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                     "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
                     "optimizer-00001-of-00004.safetensors", "optimizer-00002-of-00004.safetensors",
                     "optimizer-00003-of-00004.safetensors", "optimizer-00004-of-00004.safetensors"});
}

TEST_CASE("each hub tensor falls to one rank, and each rank gets about equally many bytes") {
  for (const Layout& layout : {Layout{2, 2, true}, Layout{3, 1, true}, Layout{5, 1, false},
                               Layout{6, 2, true}, Layout{8, 8, true}}) {
    INFO(layout.text());
    std::set<std::string> names;
    std::vector<std::size_t> elements;
    std::size_t count = 0;
    for (int r = 0; r < layout.ranks; ++r) {
      Rank rank(layout, r);
      elements.push_back(0);
      for (const auto& [name, rows] : weights_to_write(rank.tensors(), layout.mesh(r))) {
        CHECK(rows.view.shape == rows.full_shape);
        elements.back() += static_cast<std::size_t>(rows.view.num_elements());
        names.insert(name);
        ++count;
      }
    }
    std::size_t pieces = 0;
    for (const ParameterSpec& spec : all_specs()) pieces += spec.pieces.size();
    CHECK(count == pieces);
    CHECK(names.size() == pieces);
    // A small part of any rank's share (from 13,000 elements), and less than one matrix of an expert (512).
    const auto [least, most] = std::minmax_element(elements.begin(), elements.end());
    CHECK(*most - *least <= 300);
  }
}

TEST_CASE("one rank writes the files of the hub") {
  const test::TemporaryFolder folder;
  save_on({1, 1, false}, folder.path(), 1);
  CHECK(names_in(folder / "step-1") ==
        std::set<std::string>{"config.json", "manifest.json", "model.safetensors", "optimizer.safetensors"});
}

TEST_CASE("a checkpoint of several ranks is a model folder") {
  for (const Layout& layout : {Layout{1, 1, false}, Layout{3, 1, true}, Layout{4, 2, true}}) {
    const test::TemporaryFolder folder;
    save_on(layout, folder.path(), 1);
    CHECK(read_hub_config(folder / "step-1") == model());
    Rank whole({1, 1, false}, 0);
    whole.fill();
    TensorMap weights = make_parameter_tensors(all_specs());
    load_weights(weights, whole_parameters(all_specs()), all_specs(), SafetensorsFolder(folder / "step-1"));
    for (const auto& [name, tensor] : weights)
      CHECK(std::memcmp(tensor.bytes().data(), whole.weights.at(name).bytes().data(),
                        tensor.bytes().size()) == 0);
  }
}

TEST_CASE("an asynchronous save has the values of its call, and is a checkpoint only once committed") {
  const test::TemporaryFolder folder;
  on_ranks({3, 1, true}, folder.path(), true, [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
    expect(!s.open() && s.written(), "open before the first save");
    for (const std::int64_t step : {1, 2}) {
      rank.fill();
      expect(s.snapshot_bytes(rank.tensors()) > 0, "no memory planned");
      s.save(state_of(step), rank.tensors());
      rank.set_all(0);  // training goes on
      expect(s.open(), "not open");
      for (std::int32_t all = 0; all == 0;) {
        all = s.written() ? 1 : 0;
        world.all_reduce(std::span(&all, 1), Reduction::min);
      }
      expect(!fs::exists(folder / fmt::format("step-{}", step)), "a checkpoint before its commit");
      world.barrier();
      s.commit();
      expect(!s.open() && fs::exists(folder / fmt::format("step-{}", step)), "no checkpoint");
    }
  });
  check_content(folder / "step-1");
  check_content(folder / "step-2");
}

TEST_CASE("a rank that fails fails the save for all, with one error, and leaves nothing behind") {
  const Layout layout{4, 2, true};
  for (const bool asynchronous : {false, true})
    for (const char* fault : {"ckpt.begin:0", "ckpt.shard:0", "ckpt.shard:1", "ckpt.shard:3",
                              "ckpt.manifest:0", "ckpt.rename:0"}) {
      INFO(fault << (asynchronous ? ", asynchronous" : ""));
      const test::TemporaryFolder folder;
      save_on(layout, folder.path(), 1);
      std::vector<std::string> errors(4);
      on_ranks(layout, folder.path(), asynchronous,
               [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
                 rank.fill();
                 if (world.rank() == 0) ::setenv("FARSKIP_FAULT", fmt::format("{}:error", fault).c_str(), 1);
                 world.barrier();
                 note_error(world, errors, [&] {
                   saver.save(state_of(2), rank.tensors());
                   saver.wait();
                 });
                 world.barrier();
                 if (world.rank() != 0) return;
                 ::unsetenv("FARSKIP_FAULT");
                 expect(names_in(folder.path()) == std::set<std::string>{"latest", "step-1"}, "left behind");
               });
      const std::string prefix = fmt::format("74: rank {}: ", fault[std::strlen(fault) - 1]);
      CHECK_THAT(errors[0], ContainsSubstring(prefix) && ContainsSubstring("asked for by FARSKIP_FAULT"));
      for (const std::string& error : errors) CHECK(error == errors[0]);
      check_content(folder / "step-1");
    }
}

TEST_CASE("after a failed save the same ranks can save again") {
  const test::TemporaryFolder folder;
  on_ranks({2, 2, false}, folder.path(), true,
           [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
             rank.fill();
             if (world.rank() == 0) ::setenv("FARSKIP_FAULT", "ckpt.shard:1:error", 1);
             world.barrier();
             s.save(state_of(1), rank.tensors());
             while (!s.written()) std::this_thread::yield();
             world.barrier();
             if (world.rank() == 0) ::unsetenv("FARSKIP_FAULT");
             std::vector<std::string> errors(2);
             note_error(world, errors, [&] { s.save(state_of(2), rank.tensors()); });  // of the save before
             expect(errors[static_cast<std::size_t>(world.rank())].find("ckpt.shard") != std::string::npos,
                    "no error");
             expect(!s.open(), "open after a failure");
             s.save(state_of(2), rank.tensors());
             s.wait();
           });
  CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-2"});
  check_content(folder / "step-2");
}

TEST_CASE("a step that exists is refused on every rank") {
  const test::TemporaryFolder folder;
  save_on({2, 1, true}, folder.path(), 1);
  std::vector<std::string> errors(2);
  on_ranks({2, 1, true}, folder.path(), false,
           [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
             note_error(world, errors, [&] { s.save(state_of(1), rank.tensors()); });
           });
  CHECK_THAT(errors[0], ContainsSubstring("64: rank 0: ") && ContainsSubstring("never overwritten"));
  CHECK(errors[1] == errors[0]);
}

TEST_CASE("an exception that passes gives up the save of several ranks, and completes that of one alone") {
  for (const int ranks : {1, 3}) {
    const test::TemporaryFolder folder;
    save_on({ranks, 1, true}, folder.path(), 1);
    CHECK_THROWS_WITH(on_ranks({ranks, 1, true}, folder.path(), true,
                               [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
                                 rank.fill();
                                 saver.save(state_of(2), rank.tensors());
                                 while (!saver.written()) std::this_thread::yield();
                                 world.barrier();
                                 if (world.rank() == ranks - 1) throw DataError("loss is not finite");
                                 world.barrier();
                               }),
                      "loss is not finite");
    if (ranks == 1)
      CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-1", "step-2"});
    else
      CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-1"});
    check_content(folder / (ranks == 1 ? "step-2" : "step-1"));
  }
}

TEST_CASE("ranks resume together: from nothing, past a damaged checkpoint, and not with another seed") {
  const test::TemporaryFolder folder;
  const Layout layout{4, 4, true};
  std::vector<std::string> errors(4);
  const auto resume = [&](std::uint64_t seed, std::optional<TrainingState> expected) {
    on_ranks(layout, folder.path(), false, [&](const Communicator& world, Rank& rank, CheckpointSaver&) {
      note_error(world, errors, [&] {
        expect(resume_training(folder.path(), model(), seed, rank.tensors(), world, kQuiet) == expected,
               "another state");
        if (expected) rank.check();
      });
    });
  };
  resume(1, std::nullopt);
  save_on({3, 1, true}, folder.path(), 1);
  save_on({2, 2, false}, folder.path(), 2);
  resume(1, std::nullopt);
  CHECK_THAT(errors[3], ContainsSubstring("64: rank 0: ") && ContainsSubstring("was made with seed"));
  for (const std::string& error : errors) CHECK(error == errors[0]);
  const fs::path shard = folder / "step-2/optimizer-00002-of-00002.safetensors";
  std::string bytes = read_text_file(shard);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_text_file(shard, bytes);
  resume(state_of(1).seed, state_of(1));
  CHECK_FALSE(fs::exists(folder / "step-2"));  // set aside
  CHECK(names_in(folder.path()).size() == 3);
}

TEST_CASE("old checkpoints are removed once, by rank 0, after the commit") {
  const test::TemporaryFolder folder;
  const Layout layout{2, 2, true};
  run_local_ranks(2, [&](const Communicator& world) {
    Rank rank(layout, world.rank());
    rank.fill();
    CheckpointSaver saver(folder.path(), 2, true, model(), {}, kQuiet, layout.mesh(world.rank()), world);
    for (const std::int64_t step : {1, 2, 3}) saver.save(state_of(step), rank.tensors());
    saver.wait();
  });
  CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-2", "step-3"});
}

}  // namespace
}  // namespace farskip
