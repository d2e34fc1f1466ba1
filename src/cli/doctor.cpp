// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/machine.h"
#include "backend/cuda/info.h"
#include "base/environment.h"
#include "base/version.h"
#include "cli/record.h"
#include "comm/mpi.h"
#include "serve/http_server.h"

namespace farskip {
namespace {

Record gpu_record(const cuda::Info& gpu) {
  Record gpus = Record::array();
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

std::string or_none(const std::string& text) {
  return text.empty() ? "none" : text;
}

void print_machine(const Record& o) {
  print_line(o, "farskip          {version} ({commit})");
  print_line(o, "processor        {processor}, {cores} cores ({threads} threads used), {instruction_set}");
  print_line(o, "memory           {memory_bytes|GiB:.1f} GiB");
  print_line(o, "system           {system}");
  print_line(o, "matrix products  {matmul_gflops:.0f} GFLOP/s (fp32, 1024 cubed)");
  print_line(o, "memory copy      {copy_gb_per_second:.1f} GB/s");
}

void print_gpus(Record gpu) {
  print_lines(
      gpu["gpus"],
      "gpu              {name}, {memory_bytes|GiB:.1f} GiB, architecture {architecture}, {multiprocessors} "
      "multiprocessors");
  if (!gpu["built"].get<bool>()) return;
  gpu["nccl"] = or_none(gpu["nccl"]);
  if (gpu["driver"] != "") gpu["driver"] = "for CUDA " + gpu["driver"].get<std::string>();
  gpu["driver"] = or_none(gpu["driver"]);
  print_line(
      gpu,
      "cuda             toolkit {toolkit}, driver {driver}, cuBLAS {cublas}, cuDNN {cudnn}, NCCL {nccl}");
}

/// Lists, and what may be missing, are sentences that no form makes.
void print_parts(const Record& o) {
  const auto list = [&](const char* field) {
    return fmt::format("{}", fmt::join(o[field].get<std::vector<std::string>>(), ", "));
  };
  const auto text = [&](const Record& value) { return value.get<std::string>(); };
  fmt::print("devices          {}\n", list("devices"));
  const std::string unrepeatable = text(o["cuda"]["unrepeatable"]), mpi = text(o["mpi_library"]),
                    http = text(o["http_library"]);
  fmt::print("deterministic    {}\n",
             unrepeatable.empty() ? "every kernel repeats its bits, whatever `deterministic` says"
                                  : "`deterministic: false` makes a GPU's runs differ by " + unrepeatable);
  fmt::print("transports       {}{}\n", list("transports"), mpi.empty() ? "" : " (" + mpi + ")");
  if (!http.empty()) fmt::print("http             {}\n", http);
  for (const Record& line : o["advice"]) fmt::print("advice           {}\n", text(line));
}

void print_text(const Record& o) {
  print_machine(o);
  print_gpus(o["cuda"]);
  print_parts(o);
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
  const Record o{{"version", version()},
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
                 {"cuda", gpu_record(gpu)},
                 {"transports", transports},
                 {"mpi_library", mpi_library()},
                 {"http_library", http_library()},
                 {"advice", advice}};
  print_result(o, print_text, common);
  return ExitCode::ok;
}

}  // namespace

void add_doctor(Subcommand& root) {
  root.add("doctor", "Show what this machine offers and what is missing").run(run);
}

}  // namespace farskip
