// SPDX-License-Identifier: Apache-2.0
#include "farskip/backend/device.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <vector>

#include "backend/cpu/parallel.h"
#include "base/memory.h"

namespace farskip {
namespace {

class CpuTimeMarks final : public TimeMarks {
 public:
  explicit CpuTimeMarks(std::size_t count) : marks_(count) {}
  void set(std::size_t mark) override { marks_[mark] = Clock::now(); }
  double seconds(std::size_t from, std::size_t to) override {
    return std::chrono::duration<double>(marks_[to] - marks_[from]).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> marks_;
};

class CpuDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::cpu; }
  std::string name() const override { return "cpu"; }
  const KernelTable& kernels() const override { return cpu_kernel_table(); }
  DeviceMemory memory() const override {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return {page * static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)),
            page * static_cast<std::size_t>(::sysconf(_SC_AVPHYS_PAGES))};
  }

  std::shared_ptr<std::byte[]> allocate(std::size_t bytes) override { return allocate_memory(bytes); }
  void copy_in(void* device, const void* host, std::size_t bytes) override {
    copy_within(device, host, bytes);
  }
  void copy_out(std::span<const CopyOut> parts) override {
    for (const CopyOut& part : parts) copy_within(part.host, part.device, part.bytes);
  }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    if (to != from && bytes > 0) std::memcpy(to, from, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override {
    if (bytes > 0) std::memset(device, 0, bytes);
  }
  void fill_normal(const TensorView& to, const NormalNumbers& numbers) override {
    FARSKIP_CHECK(to.dtype == DType::f32 || to.dtype == DType::bf16, "normal numbers as {}",
                  dtype_name(to.dtype));
    if (numbers.row_length > 0) {
      for (std::int64_t row = 0; row < to.num_elements() / numbers.row_length; ++row)
        fill_normal(
            {to.as<std::byte>() + static_cast<std::size_t>(row * numbers.row_length) * dtype_size(to.dtype),
             to.dtype, Shape{numbers.row_length}},
            {.seed = numbers.seed,
             .stream = numbers.stream,
             .first = numbers.first + static_cast<std::uint64_t>(row * numbers.row_stride),
             .stddev = numbers.stddev});
      return;
    }
    constexpr std::int64_t tile = 1 << 14;
    cpu::parallel_ranges(to.num_elements(), tile, [&](std::int64_t begin, std::int64_t end) {
      const std::uint64_t first = numbers.first + static_cast<std::uint64_t>(begin);
      const auto count = static_cast<std::size_t>(end - begin);
      std::array<float, tile> exact;
      const std::span<float> out(to.dtype == DType::f32 ? to.as<float>() + begin : exact.data(), count);
      farskip::fill_normal(numbers.seed, numbers.stream, first, 0.0, numbers.stddev, out);
      if (to.dtype == DType::bf16)
        for (std::size_t i = 0; i < count; ++i)
          to.as<std::uint16_t>()[begin + static_cast<std::int64_t>(i)] = f32_to_bf16(exact[i]);
    });
  }
  void synchronize() override {}
  std::unique_ptr<TimeMarks> make_time_marks(std::size_t count) override {
    return std::make_unique<CpuTimeMarks>(count);
  }
};

}  // namespace

std::shared_ptr<Device> make_cpu_device() {
  return std::make_shared<CpuDevice>();
}

}  // namespace farskip
