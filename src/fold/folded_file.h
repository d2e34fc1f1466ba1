// SPDX-License-Identifier: Apache-2.0
#pragma once
// The weights that a fold has changed, until the model is written: memory may not hold them.

#include <map>
#include <string>

#include "base/scratch_file.h"
#include "farskip/tensor/tensor.h"
#include "state/hub_sources.h"

namespace farskip {

class FoldedFile {
 public:
  /// On the disk of `folder`, in f32 or bf16: what the model will be written in.
  FoldedFile(const fs::path& folder, DType dtype) : file_(folder), dtype_(dtype) {}

  /// Whole, in f32, each parameter once. DataError for a value beyond the range of bf16; IoError.
  void add(const std::string& parameter, const HostTensor& weights);
  /// `rows` with these in place of those that they change. Both must outlive it.
  RowReader over(const RowReader& rows) const;

 private:
  ScratchFile file_;
  DType dtype_;
  std::map<std::string, std::uint64_t, std::less<>> offsets_;  // of their first bytes
};

}  // namespace farskip
