// SPDX-License-Identifier: Apache-2.0
// What a teacher said, on disk, and when the teacher itself is in memory.
#include "distill/kept_teacher.h"

#include <algorithm>
#include <cmath>

#include "distill/distill_objective.h"
#include "measure/measure.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

TeacherRecord make_record(std::int32_t first) {
  return {{first, 2, 3, 4}, {100, 4096, 7, 65535}, {-1.5F, -2.5F}, {-0.5F, -3.0F}};
}
const TeacherCacheIdentity kIdentity{"hash", 2, 2, 9, 1.0};

std::string key_of(std::int32_t token) {
  return TeacherCache::key_of(std::vector<std::int32_t>{token, 1}, std::vector<std::int32_t>{1, -1}, {});
}

TEST_CASE("a rank finds its own records at once, and those of others after it has looked") {
  const test::TemporaryFolder folder;
  TeacherCache mine(folder / "kept", kIdentity, 0, kQuiet), theirs(folder / "kept", kIdentity, 1, kQuiet);
  mine.add(key_of(5), make_record(5));
  mine.add(key_of(6), make_record(6));
  mine.add(key_of(5), make_record(8));  // known already
  CHECK(mine.size() == 2);
  CHECK(mine.find(key_of(6))->indices == make_record(6).indices);
  CHECK(mine.find(key_of(5))->indices == make_record(5).indices);
  CHECK_FALSE(theirs.find(key_of(5)));
  theirs.add(key_of(7), make_record(7));
  theirs.refresh();
  for (const std::int32_t token : {5, 6, 7}) {
    const auto record = theirs.find(key_of(token));
    REQUIRE(record);
    CHECK(record->indices == make_record(token).indices);
    CHECK(record->levels == make_record(token).levels);
    CHECK(record->log_tail == make_record(token).log_tail);
    CHECK(record->target_log_prob == make_record(token).target_log_prob);
  }
  mine.add(key_of(4), make_record(4));
  theirs.refresh();
  CHECK(theirs.find(key_of(4)));
  mine.refresh();
  CHECK(mine.size() == 4);
}

TEST_CASE("a record that is being written is not there until it is whole") {
  const test::TemporaryFolder folder;
  {
    TeacherCache writer(folder / "kept", kIdentity, 0, kQuiet);
    writer.add(key_of(1), make_record(1));
  }
  fs::path file;
  for (const auto& entry : fs::directory_iterator(folder / "kept"))
    if (entry.path().extension() == ".bin") file = entry.path();
  const std::string whole = read_text_file(file);
  write_text_file(file, whole.substr(0, whole.size() - 1));
  TeacherCache reader(folder / "kept", kIdentity, 0, kQuiet);
  CHECK(reader.size() == 0);
  write_text_file(file, whole);
  reader.refresh();
  CHECK(reader.size() == 1);
  CHECK(reader.find(key_of(1)));
}

TEST_CASE("what is kept is as exact at a high temperature: logits are rounded, not log-probabilities") {
  constexpr std::size_t vocabulary = 50, top_k = 5;
  for (const double temperature : {0.5, 1.0, 8.0, 1000.0}) {
    CAPTURE(temperature);
    double sum = 0;
    std::vector<double> exact;  // logits from 0 to -9.8
    for (std::size_t i = 0; i < vocabulary; ++i) {
      exact.push_back(-0.2 * static_cast<double>(i) / temperature);
      sum += std::exp(exact.back());
    }
    double tail = 0;
    std::vector<float> log_probs;
    for (std::size_t i = 0; i < vocabulary; ++i) {
      exact[i] -= std::log(sum);
      if (i < top_k)
        log_probs.push_back(static_cast<float>(exact[i]));
      else
        tail += std::exp(exact[i]);
    }
    const TeacherRecord record{{0, 1, 2, 3, 4},
                               TeacherRecord::round(log_probs, top_k, temperature),
                               {static_cast<float>(std::log(tail))},
                               {0.0F}};
    std::vector<float> kept(top_k), kept_tail(1);
    record.distributions(temperature, kept, kept_tail);
    double mass = std::exp(static_cast<double>(kept_tail[0]));
    for (std::size_t k = 0; k < top_k; ++k) {
      CHECK(std::abs(static_cast<double>(kept[k]) - exact[k]) * temperature < 2.0 / 2048);
      mass += std::exp(static_cast<double>(kept[k]));
    }
    CHECK(std::abs(mass - 1) < 1e-6);
  }
}

TEST_CASE("a record that is damaged is passed over, and another of the same sequence takes its place") {
  const test::TemporaryFolder folder;
  fs::path file;
  {
    TeacherCache writer(folder / "kept", kIdentity, 0, kQuiet);
    writer.add(key_of(1), make_record(1));
    writer.add(key_of(2), make_record(2));
    for (const auto& entry : fs::directory_iterator(folder / "kept"))
      if (entry.path().extension() == ".bin") file = entry.path();
  }
  std::string bytes = read_text_file(file);
  bytes[40] = static_cast<char>(bytes[40] ^ 1);
  write_text_file(file, bytes);
  TeacherCache cache(folder / "kept", kIdentity, 0, kQuiet);
  CHECK_FALSE(cache.find(key_of(1)));
  CHECK(cache.find(key_of(2)));
  cache.add(key_of(1), make_record(1));
  CHECK(cache.find(key_of(1))->indices == make_record(1).indices);
  TeacherCache later(folder / "kept", kIdentity, 1, kQuiet);  // whichever of the two it comes across first
  CHECK(later.find(key_of(1))->indices == make_record(1).indices);
  CHECK(later.size() == 2);
}

TEST_CASE("a record of a token outside the vocabulary is never used") {
  const test::TemporaryFolder folder;
  TeacherCache cache(folder / "kept", kIdentity, 0, kQuiet);
  for (const std::int32_t wrong : {-1, 9}) {
    cache.add(key_of(wrong), make_record(wrong));
    CHECK_FALSE(cache.find(key_of(wrong)));
  }
}

TEST_CASE(
    "records are never taken for another teacher's, whatever became of the file that says whose they are") {
  const test::TemporaryFolder folder;
  {
    TeacherCache writer(folder / "kept", kIdentity, 0, kQuiet);
    writer.add(key_of(1), make_record(1));
  }
  TeacherCacheIdentity other = kIdentity;
  other.teacher = "another";
  fs::remove(folder / "kept" / "teacher.txt");
  for (const TeacherCacheIdentity& identity : {kIdentity, other})
    CHECK_THROWS_WITH(TeacherCache(folder / "kept", identity, 0, kQuiet),
                      ContainsSubstring("and no teacher.txt") && ContainsSubstring("Move the folder away"));
  // Under the other's name, the records themselves say that they are not its own.
  write_text_file(folder / "kept" / "teacher.txt", other.text());
  CHECK_FALSE(TeacherCache(folder / "kept", other, 0, kQuiet).find(key_of(1)));
  write_text_file(folder / "kept" / "teacher.txt", kIdentity.text());
  CHECK(TeacherCache(folder / "kept", kIdentity, 0, kQuiet).find(key_of(1)));
}

TEST_CASE("a folder of another teacher or form is refused, with each difference on a line") {
  const test::TemporaryFolder folder;
  { const TeacherCache cache(folder / "kept", kIdentity, 0, kQuiet); }
  TeacherCacheIdentity other = kIdentity;
  other.top_k = 3;
  other.temperature = 2.0;
  CHECK_THROWS_WITH(TeacherCache(folder / "kept", other, 0, kQuiet),
                    ContainsSubstring("\n  temperature: folder 1, this run 2") &&
                        ContainsSubstring("\n  top_k: folder 2, this run 3") && !ContainsSubstring("\\x0a") &&
                        !ContainsSubstring("vocab_size"));
  write_text_file(folder / "kept" / "teacher.txt", "format: 1\nteacher: ha");
  CHECK_THROWS_WITH(TeacherCache(folder / "kept", kIdentity, 0, kQuiet), ContainsSubstring("is damaged"));
}

/// A run whose teacher's outputs are kept.
RunConfig make_config(const fs::path& kept) {
  RunConfig config;
  config.train.micro_batch = 2;
  config.train.sequence_length = 16;
  config.distill.emplace();
  config.distill->teacher = (test::fixtures() / "deepseek_v2").string();
  config.distill->cache = {kept.string(), 5};
  return config;
}

TEST_CASE("the teacher is in memory while something is missing, and goes when it is not asked for long") {
  const test::TemporaryFolder folder;
  const RunConfig config = make_config(folder / "kept");
  const std::int64_t vocabulary = read_hub_config(config.distill->teacher).vocab_size;
  KeptTeacher kept(config, vocabulary, test::quiet_context());
  const auto complete = [&](std::uint64_t number) {
    std::vector<Batch> batches{random_batch(1, number, 32, vocabulary)};
    kept.complete(batches);
    return batches[0].objective_inputs;
  };
  const auto same = [](const std::map<std::string, HostTensor>& a,
                       const std::map<std::string, HostTensor>& b) {
    return a.size() == 4 && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
             const auto mine = entry.second.bytes(), theirs = b.at(entry.first).bytes();
             return std::equal(mine.begin(), mine.end(), theirs.begin(), theirs.end());
           });
  };
  CHECK_FALSE(kept.holds_teacher());
  const auto said = complete(0);
  CHECK(kept.holds_teacher());
  int steps = 0;
  while (kept.holds_teacher() && steps < 1000) {
    CHECK(same(complete(0), said));
    ++steps;
  }
  CHECK(steps > 10);
  CHECK(steps < 1000);
  complete(1);  // loaded again
  CHECK(kept.holds_teacher());
  CHECK(same(complete(0), said));

  KeptTeacher again(config, vocabulary, test::quiet_context());
  std::vector<Batch> batches{random_batch(1, 0, 32, vocabulary)};
  again.complete(batches);
  CHECK(same(batches[0].objective_inputs, said));
  CHECK_FALSE(again.holds_teacher());
  CHECK(again.engine().loss(batches[0], 16).loss_sum > 0);
  CHECK(again.holds_teacher());
}

}  // namespace
}  // namespace farskip
