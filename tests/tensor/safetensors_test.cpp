// SPDX-License-Identifier: Apache-2.0
#include "farskip/tensor/safetensors.h"

#include <cstring>
#include <numeric>

#include "base/environment.h"
#include "support/catch.h"
#include "support/support.h"
#include "tensor/safetensors_writer.h"

namespace farskip {
namespace {

using test::TemporaryFolder;

const std::vector<DType> kAllTypes{DType::f64,     DType::f32, DType::bf16, DType::f16,
                                   DType::f8_e4m3, DType::i64, DType::i32,  DType::i16,
                                   DType::i8,      DType::u16, DType::u8,   DType::boolean};

HostTensor patterned(DType dtype, const Shape& shape, int seed) {
  HostTensor tensor(dtype, shape);
  int i = seed;
  for (std::byte& b : tensor.bytes())
    b = static_cast<std::byte>((i++ * 37) & (dtype == DType::boolean ? 1 : 255));
  return tensor;
}

std::string little_endian(std::uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((n >> (8 * i)) & 0xff);
  return bytes;
}

/// A file from a header text and this many data bytes.
std::string file_bytes(const std::string& header, std::size_t data) {
  return little_endian(header.size()) + header + std::string(data, '\x01');
}

std::string error_of(const fs::path& path) {
  try {
    SafetensorsFile file(path);
  } catch (const UserError& error) {
    return error.what();
  }
  return "(loaded)";
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}";
}

std::string braced(const std::string& body) {
  return fmt::format("{{{}}}", body);
}

bool same_bytes(const HostTensor& a, const HostTensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end());
}

}  // namespace

TEST_CASE("every dtype and odd shape comes back bit for bit, whole, by rows and by bytes") {
  const TemporaryFolder folder;
  const std::vector<Shape> shapes{
      {}, {1}, {7}, {3, 5}, {0}, {0, 4}, {4, 0}, {2, 3, 5}, {1, 1, 1, 1, 1, 1, 1, 3}};
  std::map<std::string, HostTensor> tensors;
  int seed = 0;
  for (const DType dtype : kAllTypes)
    for (const Shape& shape : shapes)
      tensors.emplace(fmt::format("{}.{}", dtype_name(dtype), shape.text()), patterned(dtype, shape, ++seed));
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : tensors) views.emplace(name, tensor.view());
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"quote \" \n", "\xc3\xa9"}};
  const WrittenFile written = write_safetensors(folder / "a.safetensors", views, metadata);

  const SafetensorsFile file(folder / "a.safetensors");
  CHECK(file.size() == written.size);
  CHECK(file.hash() == written.hash);
  CHECK(hash_file(folder / "a.safetensors") == written.hash);
  CHECK(file.metadata() == metadata);
  REQUIRE(file.tensors().size() == tensors.size());
  CHECK(std::is_sorted(file.tensors().begin(), file.tensors().end(), NameLess{}));
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    CHECK(file.find(name).offset % dtype_size(tensor.dtype()) == 0);
    CHECK(same_bytes(file.read(name), tensor));
    const std::int64_t rows = file.find(name).num_rows();
    std::vector<std::byte> joined;
    for (std::int64_t row = 0; row < rows; ++row) {
      const HostTensor one = file.read_rows(name, row, 1);
      joined.insert(joined.end(), one.bytes().begin(), one.bytes().end());
    }
    CHECK(std::equal(joined.begin(), joined.end(), tensor.bytes().begin(), tensor.bytes().end()));
    if (tensor.bytes().size() > 2) {
      std::vector<std::byte> part(tensor.bytes().size() - 2);
      file.read_into(name, 1, part);
      CHECK(std::equal(part.begin(), part.end(), tensor.bytes().begin() + 1));
    }
  }
}

TEST_CASE("the same content gives the same bytes, whatever the order and the pieces") {
  const TemporaryFolder folder;
  const HostTensor a = patterned(DType::bf16, {3, 4}, 1), b = patterned(DType::f32, {5}, 2);
  write_safetensors(folder / "1", {{"a", a.view()}, {"b", b.view()}});
  SafetensorsWriter writer(folder / "2", {{"b", DType::f32, {5}}, {"a", DType::bf16, {3, 4}}});
  REQUIRE(writer.tensors()[0].name == "b");  // the wider dtype first
  for (const std::byte& one : b.bytes()) writer.write("b", {&one, 1});
  writer.write("a", std::as_const(a).bytes().first(7));
  writer.write("a", std::as_const(a).bytes().subspan(7));
  const WrittenFile written = writer.finish();
  CHECK(read_text_file(folder / "1") == read_text_file(folder / "2"));
  CHECK(written.hash == hash_file(folder / "1"));
}

TEST_CASE("the writer puts no file in place unless every byte came") {
  const TemporaryFolder folder;
  {
    SafetensorsWriter writer(folder / "x", {{"a", DType::u8, {4}}, {"b", DType::u8, {2}}});
    const std::vector<std::byte> bytes(5);
    CHECK_THROWS_AS(writer.write("b", std::span(bytes).first(2)), InternalError);
    CHECK_THROWS_AS(writer.write("a", bytes), InternalError);
    writer.write("a", std::span(bytes).first(4));
    CHECK_THROWS_AS(writer.finish(), InternalError);
  }
  CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("XXH3-128 agrees with the published values") {
  CHECK(hash_text("") == "99aa06d3014798d86001c324468d497f");
  Hasher pieces;
  for (const char c : std::string_view("FarSkip")) pieces.update(std::string_view(&c, 1));
  CHECK(pieces.hex() == hash_text("FarSkip"));
  CHECK(hash_text("FarSkip") != hash_text("FarSkiq"));
}

TEST_CASE("a hostile header is refused with a message that says what is wrong") {
  const std::string one = entry("a", "U8", "[1]", "[0,1]");
  const std::string deep(100'000, '[');
  struct Row {
    std::string bytes, message;
  };
  const std::vector<Row> rows{
      {"", "too short"},
      {"1234567", "too short"},
      {little_endian(0), "does not begin with '{'"},
      {little_endian(~std::uint64_t{0}) + "{}", "more than 100000000"},
      {little_endian(std::uint64_t{1} << 63) + "{}", "more than 100000000"},
      {little_endian(100'000'001) + "{}", "more than 100000000"},
      {little_endian(3) + "{}", "does not fit the file (10 bytes)"},
      {little_endian(100'000'000) + "{}", "does not fit the file"},
      {file_bytes(" {}", 0), "does not begin with '{'"},
      {file_bytes("[1]", 0), "does not begin with '{'"},
      {file_bytes("\xef\xbb\xbf{}", 0), "does not begin with '{'"},
      {file_bytes("{", 0), "not valid JSON"},
      {file_bytes("{}x", 0), "not valid JSON"},
      {file_bytes("{}{}", 0), "not valid JSON"},
      {file_bytes(std::string("{}\0", 3), 0), "NUL byte"},
      {file_bytes(braced(one + ","), 1), "not valid JSON"},
      {file_bytes(braced(entry("\xff", "U8", "[1]", "[0,1]")), 1), "ill-formed UTF-8"},
      {file_bytes(braced(entry("\xc0\xaf", "U8", "[1]", "[0,1]")), 1), "ill-formed UTF-8"},
      {file_bytes(braced(entry("\xed\xa0\x80", "U8", "[1]", "[0,1]")), 1), "ill-formed UTF-8"},
      {file_bytes(braced(one + "," + one), 1), "overlaps tensor"},
      {file_bytes(braced(one + "," + entry("a", "U8", "[1]", "[1,2]")), 2), "tensor \"a\" given twice"},
      {file_bytes("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "given twice"},
      {file_bytes("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0), "key \"k\" given twice"},
      {file_bytes("{\"__metadata__\":{\"k\":1}}", 0), "where a string belongs"},
      {file_bytes("{\"__metadata__\":[]}", 0), "where an object of strings belongs"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
       "key \"dtype\" given twice"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
       "key \"shape\" given twice"},
      {file_bytes("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "`dtype` is missing"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1), "`shape` is missing"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1), "`data_offsets` is missing"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1),
       "unknown key \"x\""},
      {file_bytes("{\"a\":3}", 0), "where an object with dtype"},
      {file_bytes("{\"a\":null}", 0), "where an object with dtype"},
      {file_bytes("{\"a\":" + deep, 0), "where an object with dtype"},
      {file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":" + deep, 0), "an array inside `shape`"},
      {file_bytes("{\"a\":{\"dtype\":{},\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
       "where the name of a dtype"},
      {file_bytes(braced(entry("a", "U7", "[1]", "[0,1]")), 1), "dtype \"U7\" is not supported"},
      {file_bytes(braced(entry("a", "u8", "[1]", "[0,1]")), 1), "dtype \"u8\" is not supported"},
      {file_bytes(braced(entry("a", "U64", "[1]", "[0,8]")), 8), "dtype \"U64\" is not supported"},
      {file_bytes(braced(entry("a", "U8", "[-1]", "[0,1]")), 1), "-1 in `shape`"},
      {file_bytes(braced(entry("a", "U8", "[1.0]", "[0,1]")), 1), "1.0 in `shape`"},
      {file_bytes(braced(entry("a", "U8", "[1e308]", "[0,1]")), 1), "1e308 in `shape`"},
      {file_bytes(braced(entry("a", "U8", "[1e999]", "[0,1]")), 1), "not valid JSON"},
      {file_bytes(braced(entry("a", "U8", "[18446744073709551616]", "[0,1]")), 1), "18446744073709551616 in"},
      {file_bytes(braced(entry("a", "U8", "[9223372036854775808]", "[0,1]")), 1), "9223372036854775808 in"},
      {file_bytes(braced(entry("a", "U8", "[\"1\"]", "[0,1]")), 1), "a string inside `shape`"},
      {file_bytes(braced(entry("a", "U8", "1", "[0,1]")), 1), "where the array `shape` belongs"},
      {file_bytes(braced(entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]")), 1), "more than 8 dims"},
      {file_bytes(braced(entry("a", "U8", "[4294967296,4294967296]", "[0,1]")), 1), "larger than any file"},
      {file_bytes(braced(entry("a", "F64", "[2305843009213693952]", "[0,0]")), 0), "larger than any file"},
      {file_bytes(braced(entry("a", "U8", "[0,4294967296,4294967296]", "[0,0]")), 0), "larger than any file"},
      {file_bytes(braced(entry("a", "F32", "[1]", "[0,3]")), 3), "span 3 bytes, but F32 [1] takes 4"},
      {file_bytes(braced(entry("a", "F32", "[1000000000000]", "[0,4000000000000]")), 4), "past the end"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[1,0]")), 1), "are reversed"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[0]")), 1), "has 1 numbers, 2 expected"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[0,1,2]")), 1), "more than 2 numbers"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[-1,0]")), 1), "-1 in `data_offsets`"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]")), 1),
       "past the end"},
      {file_bytes(braced(entry("a", "U8", "[1]", "[1,2]")), 2), "hole in the data: bytes 0 to 1"},
      {file_bytes(braced(one + "," + entry("b", "U8", "[1]", "[2,3]")), 3), "hole in the data: bytes 1 to 2"},
      {file_bytes(braced(entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]")), 3),
       "overlaps tensor \"a\""},
      {file_bytes(braced(entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[0]", "[1,1]")), 2),
       "overlaps tensor \"a\""},
      {file_bytes(braced(one), 0), "past the end of the data (0 bytes)"},
      {file_bytes(braced(one), 2), "1 trailing bytes"},
      {file_bytes("{}", 5), "5 trailing bytes"},
      {file_bytes(braced(entry("\\u0000\\u001b[2J", "U8", "[2]", "[0,1]")), 1), "\"\\x00\\x1b[2J\""},
  };
  const TemporaryFolder folder;
  for (const Row& row : rows) {
    write_text_file(folder / "x", row.bytes);
    const std::string message = error_of(folder / "x");
    INFO(printable(row.bytes, 200));
    CHECK_THAT(message, ContainsSubstring(row.message));
    CHECK_THAT(message, ContainsSubstring((folder / "x").string()));
    CHECK(message.size() < 1000);
  }
}

TEST_CASE("valid oddities load") {
  const TemporaryFolder folder;
  const std::vector<std::pair<std::string, std::size_t>> rows{
      {"{}", 0},
      {"{}      ", 0},
      {"{\"__metadata__\":{}}", 0},
      {braced(entry("", "U8", "[1]", "[0,1]")), 1},
      {braced(entry("s", "F64", "[]", "[0,8]")) + "   ", 8},
      {braced(entry("z", "F32", "[0]", "[0,0]") + "," + entry("y", "F32", "[3,0,2]", "[0,0]")), 0},
      {braced(entry("b", "U8", "[1]", "[1,2]") + "," + entry("z", "I16", "[0]", "[1,1]") + "," +
              entry("a", "U8", "[1]", "[0,1]")),
       2},
      {"{ \"\xf0\x9f\x98\x80/..\" : { \"data_offsets\" : [ 0 , 1 ], \"shape\" : [ 1 ], \"dtype\" : \"U8\" } "
       "}",
       1},
  };
  for (const auto& [header, data] : rows) {
    INFO(header);
    write_text_file(folder / "x", file_bytes(header, data));
    const SafetensorsFile file(folder / "x");
    for (const TensorInfo& info : file.tensors())
      CHECK(file.read(info.name).bytes().size() == info.num_bytes);
  }
}

TEST_CASE("a million names cost at most four times the file") {
  const TemporaryFolder folder;
  std::string header = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    if (i > 0) header += ',';
    header += entry(fmt::format("t{}", i), "U8", "[1]", fmt::format("[{},{}]", i, i + 1));
  }
  header += "}";
  const std::string bytes = file_bytes(header, 1'000'000);
  write_text_file(folder / "x", bytes);
  const std::uint64_t before = peak_resident_bytes();
  const SafetensorsFile file(folder / "x");
  CHECK(file.tensors().size() == 1'000'000);
  CHECK(peak_resident_bytes() - std::min(before, peak_resident_bytes()) <= 4 * bytes.size());
}

TEST_CASE("notes without end in a header are refused before they cost memory") {
  const TemporaryFolder folder;
  const auto with_notes = [&](int count) {
    std::string header = "{\"__metadata__\":{";
    for (int i = 0; i < count; ++i) header += fmt::format("{}\"{}\":\"\"", i > 0 ? "," : "", i);
    write_text_file(folder / "x", file_bytes(header + "}}", 0));
    return folder / "x";
  };
  CHECK(SafetensorsFile(with_notes(10'000)).metadata().size() == 10'000);
  CHECK_THROWS_WITH(SafetensorsFile(with_notes(10'001)), ContainsSubstring("more than 10000 entries"));
}

TEST_CASE("reading outside a tensor is refused") {
  const TemporaryFolder folder;
  const HostTensor tensor = patterned(DType::f32, {4, 3}, 1);
  write_safetensors(folder / "x", {{"a", tensor.view()}});
  const SafetensorsFile file(folder / "x");
  CHECK_THROWS_WITH(file.read("b"), ContainsSubstring("no tensor \"b\""));
  for (const auto& [first, num] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {-1, 1}, {0, 5}, {4, 1}, {5, 0}, {1, -1}, {2, INT64_MAX}, {INT64_MAX, INT64_MAX}})
    CHECK_THROWS_WITH(file.read_rows("a", first, num), ContainsSubstring("has 4 rows"));
  CHECK(file.read_rows("a", 4, 0).shape() == Shape{0, 3});
  std::vector<std::byte> buffer(4);
  CHECK_THROWS_AS(file.read_into("a", 45, buffer), DataError);
  CHECK_THROWS_AS(file.read_into("a", ~std::uint64_t{0}, buffer), DataError);
}

TEST_CASE("a file cut short after it was opened is an error, not a signal") {
  const TemporaryFolder folder;
  const HostTensor tensor = patterned(DType::f32, {4096}, 1);
  write_safetensors(folder / "x", {{"a", tensor.view()}});
  const SafetensorsFile file(folder / "x");
  fs::resize_file(folder / "x", 100);
  CHECK_THROWS_WITH(file.read("a"), ContainsSubstring("more expected"));
}

}  // namespace farskip
