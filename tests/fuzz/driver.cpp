// SPDX-License-Identifier: Apache-2.0
// The main function of a fuzz target where there is no libFuzzer: every file of a corpus as it is, then
// changed copies of them, the same ones in each run and with every compiler.
//   fuzz_NAME CORPUS_FOLDER NUMBER_OF_CHANGED_COPIES
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

std::vector<Bytes> read_corpus(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return corpus;
}

/// Changes inputs at random. std::uniform_int_distribution differs between libraries, the engine does not.
class Mutator {
 public:
  explicit Mutator(const std::vector<Bytes>& corpus) : corpus_(corpus) {}

  Bytes next() {
    Bytes bytes = corpus_[below(corpus_.size())];
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) change(bytes);
    return bytes;
  }

 private:
  std::size_t below(std::size_t bound) {
    return bound == 0 ? 0 : static_cast<std::size_t>(random_() % bound);
  }

  void change(Bytes& bytes) {
    static const std::vector<std::string> kPieces{"{",
                                                  "}",
                                                  "[",
                                                  "]",
                                                  "\"",
                                                  ":",
                                                  ",",
                                                  "null",
                                                  "true",
                                                  "1e308",
                                                  "-1",
                                                  "0",
                                                  "\n",
                                                  "  ",
                                                  "- ",
                                                  "&a ",
                                                  "*a",
                                                  "!!str ",
                                                  "|",
                                                  "\\u0000",
                                                  "\\ud800",
                                                  "\xff",
                                                  "\xc3\x28",
                                                  "18446744073709551616",
                                                  "9223372036854775807",
                                                  "0.5",
                                                  "4294967297"};
    const std::size_t at = below(bytes.size() + 1);
    const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(7)) {
      case 0:
        if (at < bytes.size()) bytes[at] ^= static_cast<std::uint8_t>(1U << below(8));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<std::uint8_t>(random_());
        break;
      case 2: {
        const std::string& piece = kPieces[below(kPieces.size())];
        bytes.insert(place, piece.begin(), piece.end());
        break;
      }
      case 3:
        bytes.erase(place, place + static_cast<std::ptrdiff_t>(std::min(bytes.size() - at, 1 + below(16))));
        break;
      case 4: {  // a part of it again
        const Bytes part(place, place + static_cast<std::ptrdiff_t>(std::min(bytes.size() - at, below(64))));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size() + 1)), part.begin(),
                     part.end());
        break;
      }
      case 5: {  // the end of another one
        const Bytes& other = corpus_[below(corpus_.size())];
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)),
                     other.end());
        break;
      }
      default:
        bytes.resize(at);
    }
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER NUMBER_OF_CHANGED_COPIES\n", argv[0]);
    return 64;
  }
  const std::vector<Bytes> corpus = read_corpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no files\n", argv[1]);
    return 66;
  }
  for (const Bytes& bytes : corpus) LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  Mutator mutator(corpus);
  const unsigned long long copies = std::stoull(argv[2]);
  for (unsigned long long i = 0; i < copies; ++i) {
    const Bytes bytes = mutator.next();
    try {
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "changed copy %llu, written to finding.bin: %s\n", i, error.what());
      std::ofstream("finding.bin", std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
      return 1;
    }
  }
  std::printf("%zu inputs and %llu changed copies are read or refused\n", corpus.size(), copies);
  return 0;
}
