// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/checkpoint_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "checkpoint/training_checkpoint.h"
#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

using nlohmann::json;
using test::TemporaryFolder;

const Logger kQuiet(LogLevel::off);

/// Two shards with rows 0..2 and 3..4 of one tensor and a scalar; every value tells its step.
void save(const fs::path& folder, std::int64_t step, const std::string& run_id = "run", int shard_rank = 0) {
  HostTensor low(DType::f32, {3, 2}), high(DType::f32, {2, 2}), scalar(DType::i64, {});
  for (std::size_t i = 0; i < 6; ++i)
    low.values<float>()[i] = static_cast<float>(step * 100) + static_cast<float>(i);
  for (std::size_t i = 0; i < 4; ++i)
    high.values<float>()[i] = static_cast<float>(step * 100 + 6) + static_cast<float>(i);
  scalar.values<std::int64_t>()[0] = step;
  CheckpointWriter writer(folder, step, run_id);
  const CheckpointWriter peer(folder, step, run_id, shard_rank == 0 ? 1 : shard_rank);
  const WrittenFile first =
      write_safetensors(writer.shard_path("0.safetensors"), {{"w", low.view()}, {"s", scalar.view()}});
  const WrittenFile second = write_safetensors(peer.shard_path("1.safetensors"), {{"w.3", high.view()}});
  writer.add_file({"0.safetensors", first.size, first.hash});
  writer.add_file({"1.safetensors", second.size, second.hash});
  writer.commit({{"tokens", std::to_string(step)}},
                {{"w",
                  {DType::f32,
                   {5, 2},
                   {{"0.safetensors", "w", 0, 3, hash_bytes(low.bytes())},
                    {"1.safetensors", "w.3", 3, 2, hash_bytes(high.bytes())}}}},
                 {"s", {DType::i64, {}, {{"0.safetensors", "s", 0, 1, hash_bytes(scalar.bytes())}}}}});
}

/// Everything in the checkpoint is of the step it claims.
void check_whole(const Checkpoint& checkpoint) {
  const std::int64_t step = checkpoint.step();
  CHECK(checkpoint.path().filename() == fmt::format("step-{}", step));
  CHECK(checkpoint.state() == json{{"tokens", std::to_string(step)}});
  CHECK(checkpoint.read("s").values<std::int64_t>()[0] == step);
  const HostTensor w = checkpoint.read("w");
  REQUIRE(w.shape() == Shape{5, 2});
  for (std::size_t i = 0; i < 10; ++i)
    CHECK(w.values<float>()[i] == static_cast<float>(step * 100) + static_cast<float>(i));
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const UserError& error) {
    return error.what();
  }
  return "(no error)";
}

std::string opening(const fs::path& path) {
  return refusal([&] { open_checkpoint(path); });
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

/// Runs `body` in a child process; its wait status.
int in_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      body();
    } catch (const UserError& error) {
      ::_exit(static_cast<int>(error.code()));
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

void flip_bit(const fs::path& path, std::uint64_t bit) {
  std::string bytes = read_text_file(path);
  bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  write_text_file(path, bytes);
}

const std::vector<std::string> kPhases{"ckpt.begin",    "ckpt.shard",  "ckpt.shard:1",
                                       "ckpt.manifest", "ckpt.rename", "ckpt.latest"};

}  // namespace

TEST_CASE("a checkpoint comes back whole, and by rows across its pieces") {
  const TemporaryFolder folder;
  CHECK_FALSE(find_newest_valid_checkpoint(folder / "absent", kQuiet));
  CHECK_FALSE(find_newest_valid_checkpoint(folder.path(), kQuiet));
  save(folder / "c", 7);
  const Checkpoint checkpoint = open_checkpoint(folder / "c" / "step-7");
  check_whole(checkpoint);
  for (std::int64_t first = 0; first <= 5; ++first)
    for (std::int64_t num = 0; num <= 5 - first; ++num) {
      const HostTensor rows = checkpoint.read_rows("w", first, num);
      REQUIRE(rows.shape() == Shape{num, 2});
      for (std::size_t i = 0; i < static_cast<std::size_t>(2 * num); ++i)
        CHECK(rows.values<float>()[i] == 700.0F + static_cast<float>(2 * first) + static_cast<float>(i));
    }
  CHECK_THROWS_AS(checkpoint.read_rows("w", 4, 2), DataError);
  CHECK_THROWS_AS(checkpoint.read("x"), DataError);
  CHECK(names_in(folder / "c") == std::set<std::string>{"latest", "step-7"});
  CHECK(read_text_file(folder / "c" / "latest") == "step-7\n");
}

TEST_CASE("the same content gives the same checkpoint byte for byte") {
  const TemporaryFolder a, b;
  save(a.path(), 3, "run-a");
  save(b.path(), 3, "run-b");
  for (const char* name : {"manifest.json", "0.safetensors", "1.safetensors"})
    CHECK(read_text_file(a / "step-3" / name) == read_text_file(b / "step-3" / name));
}

TEST_CASE("checkpoints are ordered by step, and only exact names count") {
  const TemporaryFolder folder;
  for (const std::int64_t step : {9, 10, 2}) save(folder.path(), step);
  for (const char* name :
       {"step-11.tmp-x", "step-012", "step-", "step--1", "step-1e9", "step-99999999999999999999"})
    fs::create_directory(folder / name);
  fs::create_directory_symlink(folder / "step-2", folder / "step-50");
  const auto newest = find_newest_valid_checkpoint(folder.path(), kQuiet);
  REQUIRE(newest);
  CHECK(newest->step() == 10);
  CHECK(parse_step_name("step-0") == 0);
  CHECK_FALSE(parse_step_name("step-00"));
  CHECK_FALSE(parse_step_name("step-+1"));
}

TEST_CASE(
    "a process killed in any phase of a save leaves the previous or the new checkpoint, never a mixture") {
  for (const std::string& phase : kPhases) {
    INFO(phase);
    const TemporaryFolder folder;
    save(folder.path(), 1);
    const int status = in_child([&] {
      ::setenv("FARSKIP_FAULT", (phase + ":kill").c_str(), 1);
      save(folder.path(), 2, "dead");
    });
    REQUIRE(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGKILL);
    const auto newest = find_newest_valid_checkpoint(folder.path(), kQuiet);
    REQUIRE(newest);
    check_whole(*newest);
    CHECK(newest->step() == (phase == "ckpt.latest" ? 2 : 1));
    // The next run saves the same or the next step, and clears what the dead one left.
    save(folder.path(), newest->step() + 1, "alive");
    remove_old_checkpoints(folder.path(), 1, "alive", kQuiet);
    CHECK(names_in(folder.path()) ==
          std::set<std::string>{"latest", fmt::format("step-{}", newest->step() + 1)});
    check_whole(*find_newest_valid_checkpoint(folder.path(), kQuiet));
  }
}

TEST_CASE("an error in any phase removes the temporary folder and keeps the previous checkpoint") {
  for (const std::string& phase : kPhases) {
    INFO(phase);
    const TemporaryFolder folder;
    save(folder.path(), 1);
    ::setenv("FARSKIP_FAULT", (phase + ":error").c_str(), 1);
    CHECK_THAT(refusal([&] { save(folder.path(), 2); }), ContainsSubstring("asked for by FARSKIP_FAULT"));
    ::unsetenv("FARSKIP_FAULT");
    const bool committed = phase == "ckpt.latest";
    CHECK(names_in(folder.path()) == (committed ? std::set<std::string>{"latest", "step-1", "step-2"}
                                                : std::set<std::string>{"latest", "step-1"}));
    check_whole(open_checkpoint(folder / "step-1"));
    CHECK(find_newest_valid_checkpoint(folder.path(), kQuiet)->step() == (committed ? 2 : 1));
  }
}

TEST_CASE("a failpoint strikes its own rank only, and a variable it cannot read is refused") {
  const TemporaryFolder folder;
  ::setenv("FARSKIP_FAULT", "ckpt.shard:5:error", 1);
  CHECK_NOTHROW(save(folder.path(), 1));
  CHECK_THROWS_AS(save(folder.path(), 2, "run", 5), IoError);
  for (const char* text :
       {":", "ckpt.begin:", "ckpt.begin:x", "ckpt.begin:-1", "ckpt.begin:kill:0", "ckpt.begin:1:2"}) {
    ::setenv("FARSKIP_FAULT", text, 1);
    CHECK_THROWS_AS(save(folder.path(), 2), UsageError);
  }
  ::unsetenv("FARSKIP_FAULT");
  CHECK(WEXITSTATUS(in_child([&] {
          ::setenv("FARSKIP_FAULT", "ckpt.rename:exit", 1);
          save(folder.path(), 2);
        })) == 75);
}

TEST_CASE("a full disk is an error with file and bytes, and leaves nothing behind") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  const fs::path report = folder / "report";
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    HostTensor big(DType::u8, {100'000});
    std::fill(big.bytes().begin(), big.bytes().end(), std::byte{1});
    const std::string message = refusal([&] {
      const struct rlimit limit { 50'000, 50'000 };
      ::setrlimit(RLIMIT_FSIZE, &limit);
      const CheckpointWriter writer(folder.path(), 2, "run");
      write_safetensors(writer.shard_path("0.safetensors"), {{"w", big.view()}});
    });
    write_text_file(report, message);
  });
  REQUIRE(status == 0);
  CHECK_THAT(read_text_file(report), ContainsSubstring("0.safetensors: write failed after"));
  fs::remove(report);
  CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-1"});
  check_whole(*find_newest_valid_checkpoint(folder.path(), kQuiet));
}

TEST_CASE("an existing step is never overwritten, not even an empty or a damaged one") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  const std::string before = read_text_file(folder / "step-1/manifest.json");
  CHECK_THAT(refusal([&] { save(folder.path(), 1, "other"); }), ContainsSubstring("never overwritten"));
  CHECK(read_text_file(folder / "step-1/manifest.json") == before);
  CheckpointWriter writer(folder.path(), 2, "run");
  fs::create_directory(folder / "step-2");  // appears between the check and the rename
  CHECK_THAT(refusal([&] { writer.commit(json::object(), {}); }),
             ContainsSubstring("cannot rename to step-2"));
  CHECK(fs::is_empty(folder / "step-2"));
}

TEST_CASE("a shard cut at any place is found without a signal, and the previous checkpoint is taken") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  save(folder.path(), 2);
  for (const char* name : {"0.safetensors", "1.safetensors", "manifest.json"}) {
    const fs::path path = folder / "step-2" / name;
    const std::string whole = read_text_file(path);
    const std::size_t header = 8 + static_cast<unsigned char>(whole[0]);
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{7}, std::size_t{8}, header - 1, whole.size() - 1}) {
      INFO(name << " cut to " << size);
      write_text_file(path, whole.substr(0, size));
      for (const Verify verify : {Verify::layout, Verify::hashes}) {
        CHECK_THAT(refusal([&] { open_checkpoint(folder / "step-2", verify); }),
                   ContainsSubstring(path.string()));
        const auto newest = find_newest_valid_checkpoint(folder.path(), kQuiet, verify);
        REQUIRE(newest);
        CHECK(newest->step() == 1);
      }
    }
    write_text_file(path, whole);
    check_whole(*find_newest_valid_checkpoint(folder.path(), kQuiet));
  }
}

TEST_CASE("every one of 200 flipped bits is found, in every region of every file") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) {
    const fs::path path = folder / "step-1" /
                          (i % 3 == 0   ? "manifest.json"
                           : i % 3 == 1 ? "0.safetensors"
                                        : "1.safetensors");
    const std::uint64_t bits = fs::file_size(path) * 8;
    const std::uint64_t bit = i < 60 ? random() % 64 : random() % bits;  // many in the header length
    INFO(path << " bit " << bit);
    flip_bit(path, bit);
    CHECK_THAT(opening(folder / "step-1"), ContainsSubstring(path.string()));
    CHECK_THROWS_AS(find_newest_valid_checkpoint(folder.path(), kQuiet), DataError);
    flip_bit(path, bit);
  }
  check_whole(open_checkpoint(folder / "step-1"));
}

TEST_CASE("every flipped bit of the hint is harmless and is reported") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  for (std::uint64_t bit = 0; bit < fs::file_size(folder / "latest") * 8; ++bit) {
    flip_bit(folder / "latest", bit);
    const fs::path log = folder / "log";
    const int status = in_child([&] {
      if (std::freopen(log.c_str(), "w", stderr) == nullptr) ::_exit(2);
      if (find_newest_valid_checkpoint(folder.path(), Logger())->step() != 1) ::_exit(3);
      std::fflush(stderr);
    });
    CHECK(status == 0);
    CHECK_THAT(read_text_file(log), ContainsSubstring("latest: names"));
    flip_bit(folder / "latest", bit);
  }
}

TEST_CASE("missing and exchanged files are found and named") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  save(folder.path(), 2);
  const fs::path shard = folder / "step-2/1.safetensors", other = folder / "step-1/1.safetensors";
  fs::rename(shard, folder / "kept");
  CHECK_THAT(opening(folder / "step-2"), ContainsSubstring(shard.string() + ": no such file"));
  fs::create_symlink(folder / "kept", shard);
  CHECK_THAT(opening(folder / "step-2"), ContainsSubstring(shard.string() + ": is a symbolic link"));
  fs::remove(shard);
  REQUIRE(::mkfifo(shard.c_str(), 0600) == 0);
  CHECK_THAT(opening(folder / "step-2"), ContainsSubstring(shard.string() + ": not a regular file"));
  fs::remove(shard);
  fs::copy_file(other, shard);  // same size, from another step
  REQUIRE(fs::file_size(other) == fs::file_size(folder / "kept"));
  CHECK_THAT(opening(folder / "step-2"), ContainsSubstring(shard.string() + ": content has hash"));
  fs::remove(shard);
  fs::rename(folder / "kept", shard);
  check_whole(open_checkpoint(folder / "step-2"));
  fs::rename(folder / "step-2", folder / "step-3");
  CHECK_THAT(opening(folder / "step-3"), ContainsSubstring("is the manifest of step 2"));
  CHECK_THAT(opening(folder / "step-4"), ContainsSubstring("manifest.json: no such file"));
}

TEST_CASE("what lies in a checkpoint and is no part of it is passed over and named") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  save(folder.path(), 2);
  write_text_file(folder / "step-2" / ".nfs0001", "");
  write_text_file(folder / "step-2" / "2.safetensors", "x");
  fs::create_directory(folder / "step-2" / "notes");
  fs::create_symlink("nowhere", folder / "step-2" / "link");
  const auto newest = find_newest_valid_checkpoint(folder.path(), kQuiet);
  REQUIRE(newest);
  check_whole(*newest);
  CHECK(newest->step() == 2);
  CHECK(newest->strays() == std::vector<std::string>{".nfs0001", "2.safetensors", "link", "notes"});
}

TEST_CASE("a stray that readers of model folders would take for weights is refused by them") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  CHECK_NOTHROW(verify_model_folder(folder / "step-1", make_self_communicator()));
  write_text_file(folder / "step-1" / "model.safetensors.index.json", "{}");
  CHECK_THROWS_WITH(verify_model_folder(folder / "step-1", make_self_communicator()),
                    ContainsSubstring("index.json: is no part of this checkpoint; move it away"));
  CHECK(find_newest_valid_checkpoint(folder.path(), kQuiet)->step() == 1);
}

TEST_CASE("bytes that change between the check and the read are found, whatever rows are read") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  const fs::path file = folder / "step-1" / "0.safetensors";
  const Checkpoint checkpoint = open_checkpoint(folder / "step-1", Verify::hashes);
  const int descriptor = ::open(file.c_str(), O_WRONLY);
  REQUIRE(::pwrite(descriptor, "x", 1, static_cast<off_t>(fs::file_size(file) - 1)) == 1);  // of row 2 of w
  ::close(descriptor);
  CHECK_THAT(refusal([&] { checkpoint.read_rows("w", 0, 1); }),
             ContainsSubstring("0.safetensors: tensor \"w\" has hash "));
  CHECK_THAT(refusal([&] { checkpoint.read("w"); }), ContainsSubstring("0.safetensors: tensor \"w\""));
  CHECK_NOTHROW(checkpoint.read_rows("w", 3, 2));  // of the other file
  CHECK_NOTHROW(checkpoint.read("s"));
  CHECK_NOTHROW(open_checkpoint(folder / "step-1", Verify::used));
}

TEST_CASE("a step-N that is no folder is passed over, and refused where its name is needed") {
  const TemporaryFolder folder;
  save(folder.path(), 5);
  write_text_file(folder / "step-3", "");
  fs::create_directory_symlink("step-5", folder / "step-4");
  CHECK(list_checkpoints(folder.path(), kQuiet) == std::vector<std::int64_t>{5});
  CHECK_NOTHROW(check_can_save(folder.path()));
  fs::create_directory_symlink("step-5", folder / "step-9");
  CHECK_THAT(refusal([&] { check_can_save(folder.path()); }),
             ContainsSubstring("step-9: is a link, where this run would write"));
  set_aside_newer_checkpoints(folder.path(), 5, kQuiet, "replaced");
  CHECK_NOTHROW(check_can_save(folder.path()));
}

TEST_CASE("a reported file of another size stops the commit") {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder.path(), 1, "run");
  write_text_file(writer.shard_path("stray"), "x");
  writer.add_file({"stray", 2, ""});
  CHECK_THAT(refusal([&] { writer.commit(json::object(), {}); }),
             ContainsSubstring("has 1 bytes, the manifest says 2"));
  CHECK_THROWS_AS(writer.shard_path("../x"), DataError);
}

TEST_CASE("a manifest with the right hash but wrong content is refused") {
  const auto parse = [](const CheckpointManifest& manifest, const json& state = json::object()) {
    return refusal([&] {
      json read_back;
      parse_manifest(print_manifest(manifest, state), "m", read_back);
    });
  };
  const auto with_pieces = [&](std::vector<TensorPiece> pieces, Shape shape = {4}) {
    return CheckpointManifest{
        1, {{"f", {"f", 1, ""}}}, {{"w", {DType::f32, std::move(shape), std::move(pieces)}}}};
  };
  CHECK(parse(with_pieces({{"f", "w", 0, 4}})) == "(no error)");
  CHECK_THAT(parse(with_pieces({{"f", "w", 0, 3}})), ContainsSubstring("pieces hold 3 of 4 rows"));
  CHECK_THAT(parse(with_pieces({})), ContainsSubstring("pieces hold 0 of 4 rows"));
  CHECK_THAT(parse(with_pieces({{"f", "w", 0, 5}})), ContainsSubstring("do not follow row 0 of 4"));
  CHECK_THAT(parse(with_pieces({{"f", "w", 0, 2}, {"f", "w", 1, 3}})),
             ContainsSubstring("do not follow row 2"));
  CHECK_THAT(parse(with_pieces({{"f", "w", INT64_MAX, INT64_MAX}})),
             ContainsSubstring("do not follow row 0"));
  CHECK_THAT(parse(with_pieces({{"f", "w", -1, 4}})), ContainsSubstring("`first_row` is -1"));
  CHECK_THAT(parse(with_pieces({{"g", "w", 0, 4}})), ContainsSubstring("file \"g\" is not part"));
  CHECK_THAT(parse(with_pieces({{"f", "w", 0, 4}}, {4, INT64_MAX})), ContainsSubstring("is too large"));
  CHECK_THAT(parse({1, {{"../f", {"../f", 1, ""}}}, {}}), ContainsSubstring("not allowed as a file name"));
  CHECK_THAT(parse({1, {{"/f", {"/f", 1, ""}}}, {}}), ContainsSubstring("not allowed as a file name"));
  CHECK_THAT(parse({1, {}, {}}, json::array()), ContainsSubstring("`state` is not an object"));
}

TEST_CASE("a file that cannot be opened is no reason to go back to an older checkpoint") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  save(folder.path(), 2);
  fs::rename(folder / "step-2/0.safetensors", folder / "elsewhere");
  fs::create_symlink(folder / "elsewhere", folder / "step-2/0.safetensors");
  CHECK_THROWS_AS(find_newest_valid_checkpoint(folder.path(), kQuiet), IoError);
}

TEST_CASE("only old checkpoints and folders of dead runs are removed, and never the newest") {
  const TemporaryFolder folder;
  for (const std::int64_t step : {1, 2, 10, 9}) save(folder.path(), step);
  for (const char* name : {"step-3.tmp-dead", "step-4.tmp-mine", "notes"})
    fs::create_directory(folder / name);
  write_text_file(folder / "step-3.tmp-dead" / "0.safetensors", "x");
  remove_old_checkpoints(folder.path(), 2, "mine", kQuiet);
  CHECK(names_in(folder.path()) ==
        std::set<std::string>{"latest", "notes", "step-10", "step-4.tmp-mine", "step-9"});
  remove_old_checkpoints(folder.path(), 1, "mine", kQuiet);
  CHECK(find_newest_valid_checkpoint(folder.path(), kQuiet)->step() == 10);
  CHECK_THROWS_AS(remove_old_checkpoints(folder.path(), 0, "mine", kQuiet), InternalError);
}

TEST_CASE("after a fallback the damaged step is set aside, and can be reached and saved again") {
  const TemporaryFolder folder;
  save(folder.path(), 1);
  save(folder.path(), 2);
  flip_bit(folder / "step-2/0.safetensors", 100);
  const auto newest = find_newest_valid_checkpoint(folder.path(), kQuiet);
  REQUIRE(newest);
  REQUIRE(newest->step() == 1);
  set_aside_newer_checkpoints(folder.path(), newest->step(), kQuiet);
  save(folder.path(), 2, "again");
  check_whole(open_checkpoint(folder / "step-2"));
  CHECK(names_in(folder.path()).size() == 4);
}

}  // namespace farskip
