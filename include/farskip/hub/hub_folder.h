// SPDX-License-Identifier: Apache-2.0
#pragma once
// Model folders in hub layout that we write, and the hashes by which they are read again.

#include "farskip/hub/companions.h"
#include "farskip/state/weights.h"

namespace farskip {

/// Writes config.json, the weights among `states` as model.safetensors, the companions and
/// model.manifest.json. UsageError where the folder holds one of them, or a run; IoError where that cannot be
/// seen, or a file cannot be written. DataError, before anything is written, naming a weight that is not
/// finite. A failure leaves nothing behind.
void write_hub_folder(const fs::path& folder, const ModelConfig& config, const States& states, DType dtype,
                      const Companions& companions);

/// Compares size and hash of every file that model.manifest.json lists; nothing where there is none.
/// DataError naming the first file that differs, MissingInputError for one that is gone.
void verify_hub_folder(const fs::path& folder);

}  // namespace farskip
