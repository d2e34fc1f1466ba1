// SPDX-License-Identifier: Apache-2.0
#pragma once
// Checkpoints on disk: the commit protocol and the manifest, whatever is stored (docs/checkpoints.md).
//
// A folder of checkpoints holds `step-N` folders, each complete from the moment it has that name, the
// hint `latest`, and, while one is being written, `step-N.tmp-RUNID`. The caller holds the lock of the
// run directory, so there is one writer.

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/base/file.h"
#include "farskip/base/log.h"
#include "farskip/tensor/tensor.h"

namespace farskip {

class SafetensorsFile;

inline constexpr int kCheckpointVersion = 1;
inline constexpr const char* kLatestFile = "latest";

struct CheckpointFile {
  std::string name;  // one path component
  std::uint64_t size = 0;
  std::string hash;  // XXH3-128, hex
};

/// Rows first_row ... first_row + num_rows - 1 of a tensor, as tensor `name` of safetensors file `file`.
struct TensorPiece {
  std::string file, name;
  std::int64_t first_row = 0, num_rows = 0;
  std::string hash{};  // XXH3-128 of its bytes, hex; empty in older checkpoints
};

/// A whole tensor; its pieces, in order, cover all rows of dim 0 once (a scalar is one row).
struct CheckpointTensor {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<TensorPiece> pieces;
};

struct CheckpointManifest {
  std::int64_t step = 0;
  std::map<std::string, CheckpointFile> files;
  std::map<std::string, CheckpointTensor> tensors;
};

/// Text of manifest.json: one line with the hash of all that follows it, then the rest as JSON.
std::string print_manifest(const CheckpointManifest& manifest, const nlohmann::json& state);
/// Checks hash, version, names and that the pieces cover the tensors. Throws DataError.
CheckpointManifest parse_manifest(std::string_view text, std::string_view where, nlohmann::json& state);

/// `path` holds the files of the manifest, each a regular file of its size. Throws MissingInputError, IoError
/// or DataError naming the first that is not so. Returns the names of what else lies there, in order.
std::vector<std::string> check_checkpoint_files(const fs::path& path, const CheckpointManifest& manifest);

/// An identifier no other run has; part of the temporary folder's name.
std::string make_run_id();
/// N of a folder called exactly `step-N`; nothing for any other name.
std::optional<std::int64_t> parse_step_name(std::string_view name);

/// The highest N of the folders called step-N, whatever is in them; nothing where there are none.
std::optional<std::int64_t> newest_step(const fs::path& folder);

/// Before a run that will save in `folder`, which need not be there yet: throws IoError where nothing can be
/// written into it, or where something else has a name that a checkpoint would get.
void check_can_save(const fs::path& folder);

/// Writes one checkpoint. Every rank makes one with the same arguments, rank 0 first (a barrier between);
/// each writes its shards to shard_path(), and rank 0 alone adds their reports and commits. Unless commit()
/// got as far as the rename, rank 0's destructor removes the temporary folder and all in it.
/// Failpoints: ckpt.begin, ckpt.shard, ckpt.manifest, ckpt.rename, ckpt.latest.
class CheckpointWriter {
 public:
  /// Rank 0 creates the temporary folder (and `folder`). UsageError when step-N exists already.
  CheckpointWriter(const fs::path& folder, std::int64_t step, std::string run_id, int rank = 0);
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  /// Where to write the file of this name before the commit.
  fs::path shard_path(const std::string& name) const;
  /// A finished file of any rank.
  void add_file(CheckpointFile file);
  /// Checks every reported file's size, writes the manifest, syncs, renames to step-N, and updates `latest`.
  /// Returns the final folder. Throws IoError or DataError; previous checkpoints are as they were.
  fs::path commit(const nlohmann::json& state, std::map<std::string, CheckpointTensor> tensors);

 private:
  fs::path folder_, temporary_;
  int rank_;
  bool committed_ = false;
  CheckpointManifest manifest_;
};

/// How much open_checkpoint checks. layout: manifest, names, sizes and safetensors headers. hashes: also
/// every byte. Only hashes find a flipped bit or shards exchanged between two steps. used: also the files
/// without tensors; tensors are checked when they are read.
enum class Verify { layout, used, hashes };

/// A checkpoint that passed its checks. Reads are const and may come from several threads. A read compares
/// the hash of every piece that it takes rows from, over the bytes that it returns: it throws DataError
/// naming file and tensor where they differ.
class Checkpoint {
 public:
  const fs::path& path() const { return path_; }
  std::int64_t step() const { return manifest_.step; }
  const CheckpointManifest& manifest() const { return manifest_; }
  const nlohmann::json& state() const { return *state_; }
  /// What lies in the folder and is no part of the checkpoint; nothing of it is read.
  const std::vector<std::string>& strays() const { return strays_; }
  bool contains(const std::string& tensor) const { return manifest_.tensors.contains(tensor); }
  /// Whole tensor, or some rows of dim 0, put together from the pieces. DataError when not there.
  HostTensor read(const std::string& tensor) const;
  HostTensor read_rows(const std::string& tensor, std::int64_t first_row, std::int64_t num_rows) const;
  /// Compares one file's hash (for ranks that share the work); DataError naming the file.
  void verify_file(const std::string& name) const;

 private:
  friend Checkpoint open_checkpoint(const fs::path&, Verify);
  void check_pieces() const;
  void verify_files(Verify verify) const;
  void read_piece(const TensorPiece& piece, std::uint64_t offset, std::span<std::byte> destination) const;

  fs::path path_;
  CheckpointManifest manifest_;
  std::vector<std::string> strays_;
  std::shared_ptr<const nlohmann::json> state_;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> files_;
};

/// It has a manifest.
bool is_checkpoint(const fs::path& folder);
/// Throws DataError for a folder that is called `step-N` (also with what is set after it while it is written
/// or when it is set aside) and has no manifest: nothing in it can be trusted to be whole.
void refuse_bare_checkpoint(const fs::path& folder);

/// Opens the folder `step-N`. Throws MissingInputError, IoError or DataError naming the file and what is
/// wrong.
Checkpoint open_checkpoint(const fs::path& path, Verify verify = Verify::hashes);

/// Steps of the folders `step-N`, newest first; none where there is no such folder. A `step-N` that is a file
/// or a link is passed over with a warning, and so is a hint `latest` that is wrong.
std::vector<std::int64_t> list_checkpoints(const fs::path& folder, const Logger& logger);
/// Opens the first of `steps` that is valid; each one before it is reported with a warning. It and those are
/// taken from the list. IoError where one cannot be read, which says nothing of what is in it.
std::optional<Checkpoint> open_newest(const fs::path& folder, std::vector<std::int64_t>& steps,
                                      const Logger& logger, Verify verify);
/// DataError: none of the checkpoints of `folder` is whole.
[[noreturn]] void refuse_damaged(const fs::path& folder, std::size_t num_checkpoints);

/// The valid checkpoint of the highest step; each newer one that is damaged is reported with a warning.
/// Nothing when `folder` holds no checkpoint at all; DataError when it holds only damaged ones, since
/// starting afresh there must be the user's decision.
std::optional<Checkpoint> find_newest_valid_checkpoint(const fs::path& folder, const Logger& logger,
                                                       Verify verify = Verify::hashes);

/// Renames checkpoints newer than `step` to step-M.WHY-*: after a fallback, or where a run begins anew, so
/// that training can reach those steps again, which the writer would refuse to overwrite. Throws IoError.
void set_aside_newer_checkpoints(const fs::path& folder, std::int64_t step, const Logger& logger,
                                 std::string_view why = "damaged");

/// Removes all but the `keep` (>= 1) newest checkpoints, and temporary folders of runs other than `run_id`.
void remove_old_checkpoints(const fs::path& folder, std::int64_t keep, std::string_view run_id,
                            const Logger& logger);

}  // namespace farskip
