// SPDX-License-Identifier: Apache-2.0
// The .idx of a token file, beside a .bin whose size the first byte says.
#include "data/token_file.h"
#include "fuzz.h"

using namespace farskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0) return 0;
  static const fuzz::Folder folder;
  folder.write("tokens.bin", std::string(std::size_t{bytes[0]} * 4, '\1'));
  folder.write("tokens.idx", fuzz::as_text(bytes + 1, size - 1));
  fuzz::read_or_refuse([&] {
    const TokenFile file((folder.path() / "tokens").string());
    std::uint64_t tokens = 0;
    for (std::uint64_t d = 0; d < file.num_documents(); ++d) {
      tokens += file.document(d).size();
      if (d < file.num_tokens()) fuzz::require(file.document_of(d) < file.num_documents());
    }
    fuzz::require(tokens == file.num_tokens());
    file.check_token_range(1 << 20);
  });
  return 0;
}
