// SPDX-License-Identifier: Apache-2.0
#include "data/text_stream.h"

#include <zlib.h>

#include <algorithm>
#include <new>
#include <vector>

#include "farskip/base/error.h"

namespace farskip {

struct TextStream::Inflater {
  Inflater() {
    constexpr int gzip_only = 16 + MAX_WBITS;
    if (::inflateInit2(&z, gzip_only) != Z_OK) throw std::bad_alloc();
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() { ::inflateEnd(&z); }

  z_stream z{};
  bool inside_member = false;
  std::vector<std::byte> packed = std::vector<std::byte>(std::size_t{1} << 18);
};

TextStream::TextStream(const fs::path& path, bool gzip)
    : file_(path), inflater_(gzip ? std::make_unique<Inflater>() : nullptr) {}

TextStream::~TextStream() = default;

std::size_t TextStream::read(std::span<char> buffer) {
  if (inflater_) return read_packed(buffer);
  const std::size_t count = std::min<std::uint64_t>(buffer.size(), file_.size() - consumed_);
  file_.read_at(consumed_, std::as_writable_bytes(buffer.first(count)));
  consumed_ += count;
  return count;
}

std::span<const std::byte> TextStream::next_packed() {
  const std::size_t count = std::min<std::uint64_t>(inflater_->packed.size(), file_.size() - consumed_);
  const std::span<std::byte> piece = std::span(inflater_->packed).first(count);
  file_.read_at(consumed_, piece);
  consumed_ += count;
  return piece;
}

// A file may be several compressed ones, one after the other.
std::size_t TextStream::read_packed(std::span<char> buffer) {
  z_stream& z = inflater_->z;
  z.next_out = reinterpret_cast<Bytef*>(buffer.data());
  z.avail_out = static_cast<uInt>(std::min<std::size_t>(buffer.size(), 1U << 30));
  const uInt wanted = z.avail_out;
  while (z.avail_out > 0) {
    if (z.avail_in == 0) {
      const std::span<const std::byte> piece = next_packed();
      z.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(piece.data()));  // zlib only reads it
      z.avail_in = static_cast<uInt>(piece.size());
    }
    if (z.avail_in == 0) {
      if (inflater_->inside_member)
        throw DataError(
            fmt::format("{}: the gzip data is cut off after {} bytes", path().string(), file_.size()));
      break;
    }
    inflater_->inside_member = true;
    const int status = ::inflate(&z, Z_NO_FLUSH);
    if (status == Z_STREAM_END) {
      inflater_->inside_member = false;
      ::inflateReset(&z);
    } else if (status != Z_OK) {
      throw DataError(fmt::format("{}: not gzip data, or damaged, near byte {} ({})", path().string(),
                                  consumed_ - z.avail_in, z.msg == nullptr ? "no reason given" : z.msg));
    }
  }
  return wanted - z.avail_out;
}

std::string read_rest(TextStream& stream) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  std::string text;
  for (;;) {
    const std::size_t before = text.size(), wanted = std::max(kPiece, before);
    text.resize(before + wanted);
    const std::size_t count = stream.read({text.data() + before, wanted});
    text.resize(before + count);
    if (text.size() > kMaxDocumentBytes)
      throw DataError(
          fmt::format("{}: longer than {} bytes, the largest document; divide it, or put one "
                      "document a line into a .jsonl file",
                      stream.path().string(), kMaxDocumentBytes));
    if (count < wanted) return text;
  }
}

bool LineReader::next(std::string_view& line) {
  line_start_ += line_length_;
  begin_ += line_length_;
  std::size_t end = buffer_.find('\n', begin_);
  while (end == std::string::npos && !ended_) {
    const std::size_t searched = buffer_.size() - begin_;
    refill();
    end = buffer_.find('\n', begin_ + searched);
  }
  const bool last = end == std::string::npos;
  if (last && begin_ == buffer_.size()) return false;
  line_length_ = (last ? buffer_.size() : end + 1) - begin_;
  line = std::string_view(buffer_).substr(begin_, line_length_ - (last ? 0 : 1));
  return true;
}

void LineReader::refill() {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  buffer_.erase(0, begin_);
  begin_ = 0;
  if (buffer_.size() > kMaxDocumentBytes)
    throw DataError(fmt::format("{}: the line at byte {} is longer than {} bytes", stream_.path().string(),
                                line_start_, kMaxDocumentBytes));
  const std::size_t old_size = buffer_.size(), wanted = std::max(kPiece, old_size);
  buffer_.resize(old_size + wanted);
  const std::size_t count = stream_.read({buffer_.data() + old_size, wanted});
  buffer_.resize(old_size + count);
  ended_ = count < wanted;
}

}  // namespace farskip
