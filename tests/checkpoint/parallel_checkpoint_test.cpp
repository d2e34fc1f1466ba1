// SPDX-License-Identifier: Apache-2.0
// Checkpoints written by several ranks and read by others.

#include <algorithm>
#include <cstring>

#include "rank_memory.h"

namespace farskip {
namespace {

using namespace test;

std::vector<RankLayout> all_layouts() {
  std::vector<RankLayout> layouts;
  for (const bool zero : {false, true})
    for (const auto& [ranks, expert] : {std::pair{1, 1}, {2, 1}, {2, 2}, {3, 1}, {4, 2}, {4, 4}})
      layouts.push_back({ranks, expert, zero});
  for (const RankLayout& layout :
       {RankLayout{2, 1, false, 2}, RankLayout{2, 2, true, 2}, RankLayout{4, 1, true, 2},
        RankLayout{4, 2, false, 2}, RankLayout{4, 2, true, 2}, RankLayout{4, 1, false, 4},
        RankLayout{3, 1, 3}, RankLayout{4, 2, 3}, RankLayout{4, 1, 3, 2}, RankLayout{4, 2, 3, 2}})
    layouts.push_back(layout);
  return layouts;
}

/// Resumes on another layout, checks every value, and saves as step `next` where that is not 0.
void resume_on(const RankLayout& layout, const fs::path& folder, std::int64_t step, std::int64_t next = 0) {
  on_ranks(layout, folder, false, [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
    const auto resumed =
        resume_training(folder, model(), state_of(step).settings, *rank.states, world, kQuiet);
    expect(resumed == state_of(step), "another state");
    rank.check();
    if (next > 0) saver.save(state_of(next), *rank.states);
  });
}

TEST_CASE("a checkpoint of any mesh is resumed on any other, bit for bit") {
  for (const RankLayout& from : all_layouts()) {
    INFO("from " << from.text());
    const test::TemporaryFolder folder;
    save_on(from, folder.path(), 5);
    check_content(folder / "step-5");
    for (const RankLayout& to : all_layouts()) {
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
  save_on({4, 2, 3}, folder / "c", 1, true);
  const auto names = names_in(folder / "a/step-1");
  for (const char* other : {"b/step-1", "c/step-1"}) {
    CHECK(names == names_in(folder / other));
    for (const std::string& name : names)
      CHECK(read_text_file(folder / "a/step-1" / name) == read_text_file(folder / other / name));
  }
  CHECK(names == std::set<std::string>{
                     "config.json", "manifest.json", "model.safetensors.index.json",
                     "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                     "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
                     "optimizer-00001-of-00004.safetensors", "optimizer-00002-of-00004.safetensors",
                     "optimizer-00003-of-00004.safetensors", "optimizer-00004-of-00004.safetensors"});
}

TEST_CASE("each hub tensor falls to one rank, and each rank gets about equally many bytes") {
  for (const RankLayout& layout : {RankLayout{2, 2, true}, RankLayout{3, 1, true}, RankLayout{5, 1, false},
                                   RankLayout{6, 2, true}, RankLayout{8, 8, true}}) {
    INFO(layout.text());
    std::set<std::string> names;
    std::vector<std::size_t> elements;
    std::size_t count = 0;
    for (int r = 0; r < layout.ranks; ++r) {
      Rank rank(layout, r);
      elements.push_back(0);
      for (const auto& [name, rows] : weights_to_write(*rank.states, layout.mesh(r))) {
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
  for (const RankLayout& layout :
       {RankLayout{1, 1, false}, RankLayout{3, 1, true}, RankLayout{4, 2, true}, RankLayout{2, 1, true, 2},
        RankLayout{4, 2, false, 2}, RankLayout{4, 2, 3}, RankLayout{4, 1, 3, 2}}) {
    const test::TemporaryFolder folder;
    save_on(layout, folder.path(), 1);
    CHECK(read_hub_config(folder / "step-1") == model());
    Rank whole({1, 1, false}, 0);
    whole.fill();
    const auto weights = make_weights(whole_parameters(all_specs()));
    load_weights(*weights, all_specs(), SafetensorsFolder(folder / "step-1"));
    for (const StateSpec& spec : weights->specs())
      CHECK(same_bits(weights->at(spec.name), whole.states->at(spec.name)));
  }
}

TEST_CASE("an asynchronous save has the values of its call, and is a checkpoint only once committed") {
  const test::TemporaryFolder folder;
  on_ranks({3, 1, true}, folder.path(), true, [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
    expect(!s.open() && s.written(), "open before the first save");
    for (const std::int64_t step : {1, 2}) {
      rank.fill();
      expect(s.snapshot_bytes(*rank.states) > 0, "no memory planned");
      s.save(state_of(step), *rank.states);
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

}  // namespace
}  // namespace farskip
