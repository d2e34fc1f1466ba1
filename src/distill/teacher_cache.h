// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a teacher said of each training sequence, on disk: its largest log-probabilities, rounded, and the
// mass of the rest. docs/distillation.md has the format.

#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/base/log.h"

namespace farskip {

/// What all records of a folder have in common. Any other value makes them worthless.
struct TeacherCacheIdentity {
  std::string teacher;  // hash of its configuration and weights
  std::int64_t sequence_length = 0, top_k = 0, vocab_size = 0;
  double temperature = 1.0;
  std::string text() const;
};

/// Of one sequence.
struct TeacherRecord {
  std::vector<std::int32_t> indices;  // [S * K], by descending probability
  /// [S * K]: by how much a logit is below its token's largest, in steps of 1/2048, at most 32. Logits are
  /// not divided by the temperature: a loss multiplies the square of the rounding by the square of that.
  std::vector<std::uint16_t> levels;
  std::vector<float> log_tail, target_log_prob;  // [S]

  /// Levels of log-probabilities [S * K] at a temperature.
  static std::vector<std::uint16_t> round(std::span<const float> log_probs, std::size_t top_k,
                                          double temperature);
  /// log_probs [S * K] and log_tail [S] of the distributions that the record stands for: the kept tokens
  /// share what the tail leaves.
  void distributions(double temperature, std::span<float> log_probs, std::span<float> log_tail) const;
};

/// A folder of records, found by a hash of the sequence's content, so that they serve any order, batch size
/// and number of ranks. Each rank of each run appends to a file of its own; what others appended is there
/// after refresh(). A record that is cut short (a run was killed) is not there, and neither is one that turns
/// out to be damaged or unreadable, which the log says.
class TeacherCache {
 public:
  /// Rank 0 first, then the others: it makes the folder. UsageError naming both values where the folder is of
  /// another teacher or shape, DataError where it does not say of which.
  TeacherCache(fs::path folder, TeacherCacheIdentity identity, int rank, Logger logger);
  TeacherCache(const TeacherCache&) = delete;
  TeacherCache& operator=(const TeacherCache&) = delete;
  ~TeacherCache();

  /// Content of a sequence as a key.
  static std::string key_of(std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
                            std::span<const std::int32_t> document_start);
  /// nullopt: not kept, as far as is known.
  std::optional<TeacherRecord> find(const std::string& key);
  /// Looks for records that came since the last look, of this or any other run.
  void refresh();
  /// Nothing happens where the key is known.
  void add(const std::string& key, const TeacherRecord& record);
  std::size_t size() const { return places_.size(); }

 private:
  struct Place {
    const fs::path* file;
    std::uint64_t offset;
  };
  void check_identity(int rank) const;
  void refuse_orphans() const;
  std::size_t record_bytes() const;
  TeacherRecord read(const std::string& key, const Place& place) const;

  fs::path folder_;
  TeacherCacheIdentity identity_;
  std::map<fs::path, std::uint64_t> known_bytes_;               // by file of another rank or run
  std::unordered_map<std::string, std::vector<Place>> places_;  // several runs may have asked
  Logger logger_;
  fs::path own_path_;
  std::uint64_t own_bytes_ = 0;
  int descriptor_ = -1;
};

}  // namespace farskip
