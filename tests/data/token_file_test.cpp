// SPDX-License-Identifier: Apache-2.0
#include "data/token_file.h"

#include <cstring>
#include <fstream>
#include <numeric>

#include "farskip/base/error.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;

namespace {

struct Index {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  std::uint64_t version = 1;
  std::uint8_t code = 8;
  std::vector<std::int32_t> lengths{3, 0, 2};
  std::vector<std::int64_t> pointers{0, 6, 6};
  std::vector<std::int64_t> documents{0, 1, 3};
  std::uint64_t num_sequences = 3, num_documents = 3;
  std::string tail;
};

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string serialize(const Index& index) {
  std::string out = index.magic;
  put(out, index.version);
  put(out, index.code);
  put(out, index.num_sequences);
  put(out, index.num_documents);
  for (const auto v : index.lengths) put(out, v);
  for (const auto v : index.pointers) put(out, v);
  for (const auto v : index.documents) put(out, v);
  return out + index.tail;
}

template <class T>
void write_pair(const std::filesystem::path& prefix, const Index& index, const std::vector<T>& tokens) {
  std::ofstream(prefix.string() + ".idx", std::ios::binary) << serialize(index);
  std::ofstream bin(prefix.string() + ".bin", std::ios::binary);
  bin.write(reinterpret_cast<const char*>(tokens.data()),
            static_cast<std::streamsize>(tokens.size() * sizeof(T)));
}

std::vector<std::int32_t> read_all(const TokenFile& file) {
  std::vector<std::int32_t> tokens(file.num_tokens());
  file.read(0, tokens.size(), tokens.data());
  return tokens;
}

using Ids = std::vector<std::int32_t>;

}  // namespace

TEST_CASE("A token file written by Megatron's format elsewhere reads whole") {
  const TokenFile file((test::fixtures() / "deepseek_v2" / "tokens").string());
  CHECK(file.type() == TokenType::u16);
  CHECK(file.num_documents() == 1);
  CHECK(file.num_tokens() == 2561);
  CHECK(file.document(0) == read_all(file));
}

TEST_CASE("Documents written come back, in every element type") {
  const test::TemporaryFolder folder;
  const auto type = GENERATE(TokenType::u8, TokenType::u16, TokenType::i32, TokenType::i64);
  const std::vector<Ids> documents{{1, 2, 3}, {}, {255}, {0, 7, 9, 200}, {}};
  TokenFileWriter writer((folder / "t").string(), type);
  for (const auto& document : documents) writer.add_document(document);
  CHECK_FALSE(std::filesystem::exists(folder / "t.idx"));
  writer.commit();
  const TokenFile file((folder / "t").string());
  CHECK(file.type() == type);
  REQUIRE(file.num_documents() == documents.size());
  CHECK(file.num_tokens() == 8);
  for (std::size_t i = 0; i < documents.size(); ++i) CHECK(file.document(i) == documents[i]);
  CHECK(read_all(file) == Ids{1, 2, 3, 255, 0, 7, 9, 200});
  CHECK(file.document_of(2) == 0);
  CHECK(file.document_of(3) == 2);
  CHECK(file.document_of(4) == 3);
}

TEST_CASE("A writer that is not committed leaves nothing behind") {
  const test::TemporaryFolder folder;
  {
    TokenFileWriter writer((folder / "t").string(), TokenType::u16);
    writer.add_document(Ids{1, 2});
  }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("A prefix that is a device, a folder's or of files that cannot be created is refused at once") {
  const test::TemporaryFolder folder;
  const auto open = [](const std::string& prefix) { TokenFileWriter(prefix, TokenType::u16); };
  CHECK_THROWS_WITH(open("/dev/full"), ContainsSubstring("is a device or pipe"));
  CHECK_FALSE(std::filesystem::exists("/dev/full.bin"));
  CHECK_THROWS_AS(open(folder.path().string() + "/"), UsageError);
  CHECK_THROWS_AS(open((folder / "..").string()), UsageError);
  CHECK_THROWS_AS(open((folder / "none/t").string()), IoError);
  std::filesystem::create_directory(folder / "t.idx");
  CHECK_THROWS_WITH(open((folder / "t").string()), ContainsSubstring("t.idx: is a folder"));
  open((folder / "t.idx").string());  // t.idx.bin and t.idx.idx beside a folder
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("A large document passes through the writer's buffer unharmed") {
  const test::TemporaryFolder folder;
  Ids tokens(3'000'001);
  std::iota(tokens.begin(), tokens.end(), 0);
  TokenFileWriter writer((folder / "t").string(), TokenType::i32);
  writer.add_document(tokens);
  writer.commit();
  CHECK(read_all(TokenFile((folder / "t").string())) == tokens);
}

TEST_CASE("The writer refuses an id that its element type cannot hold") {
  const test::TemporaryFolder folder;
  TokenFileWriter writer((folder / "t").string(), TokenType::u16);
  writer.add_document(Ids{65535});
  CHECK_THROWS_WITH(writer.add_document(Ids{1, 65536}), ContainsSubstring("65536 at document 1, position 1"));
  CHECK_THROWS_WITH(writer.add_document(Ids{-1}), ContainsSubstring("token id -1"));
  CHECK(token_type_for(65536) == TokenType::u16);
  CHECK(token_type_for(65537) == TokenType::i32);
}

TEST_CASE("Sequences may lie anywhere in the .bin and share a document") {
  const test::TemporaryFolder folder;
  Index index;
  index.lengths = {2, 3, 1};
  index.pointers = {8, 0, 2};
  index.documents = {0, 2, 3};
  write_pair<std::uint16_t>(folder / "t", index, {10, 11, 12, 13, 14, 15});
  const TokenFile file((folder / "t").string());
  CHECK(read_all(file) == Ids{14, 15, 10, 11, 12, 11});
  CHECK(file.document(0) == Ids{14, 15, 10, 11, 12});
  Ids middle(3);
  file.read(1, 3, middle.data());
  CHECK(middle == Ids{15, 10, 11});
}

TEST_CASE("A broken index is refused with its reason") {
  const test::TemporaryFolder folder;
  Index index;
  std::string reason;
  SECTION("sound") {}
  SECTION("magic") {
    index.magic[0] = 'X', reason = "MMIDIDX";
  }
  SECTION("version") {
    index.version = 2, reason = "index version 2";
  }
  SECTION("float elements") {
    index.code = 7, reason = "type code 7";
  }
  SECTION("unknown elements") {
    index.code = 99, reason = "type code 99";
  }
  SECTION("too many sequences") {
    index.num_sequences = 5, reason = "do not fit";
  }
  SECTION("absurdly many sequences") {
    index.num_sequences = ~std::uint64_t{0}, reason = "do not fit";
  }
  SECTION("absurdly many documents") {
    index.num_documents = std::uint64_t{1} << 61, reason = "do not fit";
  }
  SECTION("too few documents") {
    index.num_documents = 2, reason = "8 bytes follow";
  }
  SECTION("trailing bytes") {
    index.tail = "x", reason = "1 bytes follow";
  }
  SECTION("negative length") {
    index.lengths[1] = -1, reason = "sequence 1 has length -1";
  }
  SECTION("pointer past the end") {
    index.pointers[2] = 8, reason = "sequence 2 (4 bytes at byte 8)";
  }
  SECTION("negative pointer") {
    index.pointers[0] = -2, reason = "sequence 0";
  }
  SECTION("pointer that overflows") {
    index.pointers[0] = INT64_MAX, reason = "sequence 0";
  }
  SECTION("length past the end") {
    index.lengths[0] = INT32_MAX, reason = "sequence 0";
  }
  SECTION("documents not from 0") {
    index.documents[0] = 1, reason = "begins with 1";
  }
  SECTION("documents go back") {
    index.documents = {0, 4, 3}, reason = "entry 2 is 3";
  }
  SECTION("documents end early") {
    index.documents[2] = 2, reason = "ends at sequence 2";
  }
  SECTION("no documents") {
    index.documents.clear();
    index.num_documents = 0;
    reason = "is empty";
  }
  write_pair<std::uint16_t>(folder / "t", index, {1, 2, 3, 4, 5});
  const std::string prefix = (folder / "t").string();
  if (reason.empty()) {
    CHECK(read_all(TokenFile(prefix)) == Ids{1, 2, 3, 4, 5});
  } else {
    CHECK_THROWS_AS(TokenFile(prefix), DataError);
    CHECK_THROWS_WITH(TokenFile(prefix), ContainsSubstring(reason) && ContainsSubstring("t.idx"));
  }
}

TEST_CASE("An index cut at any byte, or with any byte changed, is refused or reads in bounds") {
  const test::TemporaryFolder folder;
  const std::string prefix = (folder / "t").string();
  const std::string whole = serialize(Index{});
  write_pair<std::uint16_t>(prefix, Index{}, {1, 2, 3, 4, 5});
  const auto write_idx = [&](const std::string& text) {
    std::ofstream(prefix + ".idx", std::ios::binary) << text;
  };
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_idx(whole.substr(0, size));
    REQUIRE_THROWS_AS(TokenFile(prefix), DataError);
  }
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (const char value : {'\0', '\1', '\x7f', '\x80', '\xff'}) {
      std::string changed = whole;
      changed[at] = value;
      write_idx(changed);
      try {
        read_all(TokenFile(prefix));
      } catch (const DataError&) {
      }
    }
}

TEST_CASE("A missing half of the pair is missing input") {
  const test::TemporaryFolder folder;
  CHECK_THROWS_AS(TokenFile((folder / "none").string()), MissingInputError);
  std::ofstream(folder / "half.bin") << "";
  CHECK_THROWS_AS(TokenFile((folder / "half").string()), MissingInputError);
  for (const char* name : {"half.bin", "half.idx"})
    CHECK_THROWS_WITH(TokenFile((folder / name).string()),
                      ContainsSubstring("one file of a pair; name the prefix"));
}

TEST_CASE("An id outside the vocabulary is named with file, document, position and range") {
  const test::TemporaryFolder folder;
  Index index;
  index.code = 4;
  index.pointers = {0, 12, 12};
  write_pair<std::int32_t>(folder / "t", index, {1, 2, 3, 4, 100});
  const std::string prefix = (folder / "t").string();
  const auto message = [](const auto& action) -> std::string {
    try {
      action();
    } catch (const DataError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  const std::string scanned = message([&] { TokenFile(prefix).check_token_range(50); });
  CHECK_THAT(scanned, ContainsSubstring("t.bin: token id 100 at document 1, position 1 is not in [0, 50)"));
  CHECK(message([&] { read_all(TokenFile(prefix, 50)); }) == scanned);
  CHECK_THROWS_AS(TokenFile(prefix).check_token_range(100), DataError);
  CHECK_NOTHROW(TokenFile(prefix).check_token_range(101));
  Ids first(4);
  TokenFile(prefix, 50).read(0, 4, first.data());
  CHECK(first == Ids{1, 2, 3, 4});

  write_pair<std::int32_t>(folder / "n", index, {1, -2, 3, 4, 5});
  CHECK_THROWS_WITH(read_all(TokenFile((folder / "n").string())),
                    ContainsSubstring("id -2 at document 0, position 1"));
  index.code = 5;
  index.pointers = {0, 24, 24};
  write_pair<std::int64_t>(folder / "l", index, {1, 2, 3, 4, std::int64_t{1} << 32});
  CHECK_THROWS_WITH(read_all(TokenFile((folder / "l").string())), ContainsSubstring("4294967296"));
}
