// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "backend/cpu/machine.h"
#include "backend/cuda/info.h"
#include "base/environment.h"
#include "base/version.h"
#include "cli/command.h"
#include "comm/mpi.h"
#include "serve/http_server.h"

namespace farskip {
namespace {

nlohmann::ordered_json gpu_json(const cuda::Info& gpu) {
  nlohmann::ordered_json gpus = nlohmann::ordered_json::array();
  for (const cuda::GpuInfo& g : gpu.gpus)
    gpus.push_back({{"name", g.name},
                    {"architecture", g.architecture},
                    {"memory_bytes", g.memory_bytes},
                    {"multiprocessors", g.num_multiprocessors}});
  return {{"built", gpu.built},
          {"toolkit", gpu.toolkit},
          {"driver", gpu.driver},
          {"cublas", gpu.cublas},
          {"cudnn", gpu.cudnn},
          {"nccl", gpu.nccl},
          {"unrepeatable", gpu.unrepeatable},
          {"gpus", gpus},
          {"problem", gpu.problem}};
}

void print_gpus(const cuda::Info& gpu) {
  for (const cuda::GpuInfo& g : gpu.gpus)
    fmt::print("gpu              {}, {:.1f} GiB, architecture {}, {} multiprocessors\n", g.name,
               static_cast<double>(g.memory_bytes) / (1 << 30), g.architecture, g.num_multiprocessors);
  const auto or_none = [](const std::string& version) { return version.empty() ? "none" : version; };
  if (gpu.built)
    fmt::print("cuda             toolkit {}, driver {}, cuBLAS {}, cuDNN {}, NCCL {}\n", gpu.toolkit,
               gpu.driver.empty() ? "none" : "for CUDA " + gpu.driver, gpu.cublas, gpu.cudnn,
               or_none(gpu.nccl));
}

ExitCode run(const CommonOptions& common) {
  const MachineInfo machine = machine_info();
  const cpu::Measured measured = cpu::measure_machine();
  std::vector<std::string> advice;
  if (measured.threads < machine.cores)
    advice.push_back(fmt::format("OMP_NUM_THREADS allows {} of {} cores", measured.threads, machine.cores));
  std::vector<std::string> transports{"self"};
  if (!mpi_library().empty())
    transports.push_back("mpi");
  else
    advice.push_back(
        "MPI (Debian: libopenmpi-dev, openmpi-bin) was not found when this was built; without it, training "
        "runs "
        "on one rank");
  if (http_library().empty())
    advice.push_back(
        "cpp-httplib (Debian: libcpp-httplib-dev) was not found when this was built; without it, there is no "
        "farskip serve");
  const cuda::Info gpu = cuda::info();
  std::vector<std::string> devices{"cpu"};
  if (gpu.problem.empty())
    devices.emplace_back("cuda");
  else
    advice.push_back(gpu.problem);
  const nlohmann::ordered_json o{{"version", version()},
                                 {"commit", commit()},
                                 {"processor", machine.processor},
                                 {"cores", machine.cores},
                                 {"threads", measured.threads},
                                 {"memory_bytes", machine.memory_bytes},
                                 {"system", machine.system},
                                 {"instruction_set", cpu::instruction_set()},
                                 {"matmul_gflops", measured.matmul_gflops},
                                 {"copy_gb_per_second", measured.copy_gb_per_second},
                                 {"devices", devices},
                                 {"cuda", gpu_json(gpu)},
                                 {"transports", transports},
                                 {"mpi_library", mpi_library()},
                                 {"http_library", http_library()},
                                 {"advice", advice}};
  if (common.json) {
    print_json(o);
    return ExitCode::ok;
  }
  fmt::print("farskip          {} ({})\n", version(), commit());
  fmt::print("processor        {}, {} cores ({} threads used), {}\n", machine.processor, machine.cores,
             measured.threads, cpu::instruction_set());
  fmt::print("memory           {:.1f} GiB\n", static_cast<double>(machine.memory_bytes) / (1 << 30));
  fmt::print("system           {}\n", machine.system);
  fmt::print("matrix products  {:.0f} GFLOP/s (fp32, 1024 cubed)\n", measured.matmul_gflops);
  fmt::print("memory copy      {:.1f} GB/s\n", measured.copy_gb_per_second);
  print_gpus(gpu);
  fmt::print("devices          {}\n", fmt::join(devices, ", "));
  fmt::print("deterministic    {}\n",
             gpu.unrepeatable.empty()
                 ? "every kernel repeats its bits, whatever `deterministic` says"
                 : "`deterministic: false` makes a GPU's runs differ by " + gpu.unrepeatable);
  fmt::print("transports       {}{}\n", fmt::join(transports, ", "),
             mpi_library().empty() ? "" : " (" + mpi_library() + ")");
  if (!http_library().empty()) fmt::print("http             {}\n", http_library());
  for (const std::string& line : advice) fmt::print("advice           {}\n", line);
  return ExitCode::ok;
}

}  // namespace

void add_doctor(Subcommand& root) {
  root.add("doctor", "Show what this machine offers and what is missing").run(run);
}

}  // namespace farskip
