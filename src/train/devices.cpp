#include "farskip/train/devices.h"

namespace farskip {

DType compute_type(Precision precision) {
  return precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

std::string why_unsupported(DeviceChoice device, Precision precision) {
  const std::string no_gpu = device == DeviceChoice::cpu ? "" : why_no_cuda_device();
  if (device == DeviceChoice::cuda && !no_gpu.empty()) return "device cuda: " + no_gpu;
  if (precision != Precision::bf16) return {};
  if (device == DeviceChoice::cpu) return "precision: the CPU computes in fp32; use fp32, or device cuda";
  if (!no_gpu.empty())
    return "precision: bf16 needs a GPU, the CPU computes in fp32; use fp32. There is no GPU: " + no_gpu;
  return {};
}

std::shared_ptr<Device> open_device(DeviceChoice device, Precision precision, int num_ranks) {
  if (const std::string why = why_unsupported(device, precision); !why.empty()) throw UsageError(why);
  if (device == DeviceChoice::cpu) return make_cpu_device();
  const bool needs_gpu = device == DeviceChoice::cuda || precision == Precision::bf16;
  if (!needs_gpu && (num_ranks > 1 || !why_no_cuda_device().empty())) return make_cpu_device();
  std::shared_ptr<Device> gpu = make_cuda_device();
  refuse_ranks_on_gpu(*gpu, num_ranks);
  return gpu;
}

std::shared_ptr<Device> open_device(const RunConfig& config, int num_ranks) {
  return config.distill ? make_cpu_device() : open_device(config.device, config.precision, num_ranks);
}

void refuse_ranks_on_gpu(const Device& device, int num_ranks) {
  if (device.kind() == DeviceKind::cpu || num_ranks == 1) return;
  throw UsageError(fmt::format(
      "device: a job of {} ranks; this build runs on a GPU with one rank. Start one process, or use "
      "device cpu with precision fp32",
      num_ranks));
}

}  // namespace farskip
