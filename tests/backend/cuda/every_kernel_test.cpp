// SPDX-License-Identifier: Apache-2.0
// Every op on the GPU, against the CPU kernels: in f32, and in bf16 on inputs rounded to it. One program run
// per test case (ctest): what a kernel that breaks the device takes with it is its family's remaining cases.
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>

#include "farskip/ops/ops.h"
#include "job.h"
#include "support/catch.h"
#include "support/skip.h"

namespace farskip::test {
namespace {

/// Runs jobs, prints every failure in one line and goes on, and a summary in the end.
class Session {
 public:
  explicit Session(bool low) : low_(low) {
    if (const std::string problem = why_no_cuda_device(); !problem.empty()) skip(problem);
    device_ = make_cuda_device();
  }

  void run(const std::vector<OpCase>& cases) {
    const auto start = std::chrono::steady_clock::now();
    for (const OpCase& c : cases) {
      if (lost_) break;
      for (const Job& job : jobs_of(c)) {
        if (lost_ || (low_ && !job.op->takes_low())) continue;
        run_job(job);
      }
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print("{} on {}: {} runs of {} ops, {} failures, {:.1f} s\n", low_ ? "bf16" : "f32", device_->name(),
               runs_, ops_.size(), failures_, seconds);
    std::fflush(stdout);
    CHECK(runs_ > 0);
    CHECK(failures_ == 0);
  }

 private:
  void fail(const Job& job, const std::string& what) {
    ++failures_;
    fmt::print("FAIL {} {}: {}\n", low_ ? "bf16" : "f32", job.text, what);
    std::fflush(stdout);
  }

  bool has_kernel(const Job& job, const Prepared& prepared) {
    const DType dtype = prepared.kernel_dtype();
    if (device_->kernels().contains(job.op->name, dtype, DeviceKind::cuda)) return true;
    if (missing_.insert(job.op->name).second) fail(job, fmt::format("no {} kernel", dtype_name(dtype)));
    return false;
  }

  void run_job(const Job& job) {
    try {
      const Prepared prepared = prepare(job, low_);
      if (!has_kernel(job, prepared)) return;
      ops_.insert(job.op->name);
      const GpuRun first = check(job, prepared, "", {}, -1);
      for (std::size_t i = 0; i < prepared.inputs.size(); ++i)
        if (prepared.inputs[i].view() && !same_bits(first.inputs[i], prepared.inputs[i]))
          fail(job, fmt::format("input {} was changed", i));
      const GpuRun again = run_on_gpu(*device_, *job.op, prepared);
      for (std::size_t o = 0; o < first.outputs.size(); ++o)
        if (repeats(job) && !same_bits(first.outputs[o], again.outputs[o]))
          fail(job, fmt::format("output {} has other bits in a second run", o));
      for (const InPlace& pair : job.op->in_place) check_in_place(job, prepared, pair);
      const Prepared longer = with_unused_rows(job, low_);
      if (!longer.inputs.empty())
        check(job, longer, " with rows past the count", {}, job.inputs[job.op->bounded[0]].shape()[0]);
    } catch (const std::exception& error) {
      fail(job, error.what());
      try {
        device_->synchronize();
      } catch (const std::exception&) {
        lost_ = true;
        fmt::print("the device is lost after this; the cases that follow were not run\n");
      }
    }
  }

  void check_in_place(const Job& job, const Prepared& prepared, const InPlace& pair) {
    if (pair.input >= prepared.inputs.size() || !prepared.inputs[pair.input].view() ||
        pair.output >= prepared.outputs.size())
      return;
    if (prepared.inputs[pair.input].dtype() != prepared.outputs[pair.output].dtype) return;
    if (pair.wide_only && prepared.outputs[pair.output].dtype == DType::bf16) return;
    check(job, prepared, fmt::format(" with output {} in input {}", pair.output, pair.input), {pair}, -1);
  }

  GpuRun check(const Job& job, const Prepared& prepared, const std::string& how,
               const std::vector<InPlace>& in_place, std::int64_t count) {
    ++runs_;
    GpuRun run = run_on_gpu(*device_, *job.op, prepared, in_place, count);
    if (!run.broken.empty()) fail(job, fmt::format("{}wrote past the end of {}", how, run.broken));
    for (std::size_t o = 0; o < prepared.outputs.size(); ++o) {
      const double bound = error_bound(job, prepared.outputs[o].dtype, low_);
      const HostTensor& expected = prepared.expected[o];
      const std::string different = difference(
          run.outputs[o], expected.dtype() == DType::bf16 ? convert_dtype(expected, DType::f32) : expected,
          bound, error_floor(job.op->name));
      if (!different.empty()) fail(job, fmt::format("output {}{}: {}", o, how, different));
    }
    return run;
  }

  static bool repeats(const Job& job) {
    return job.op->name != "attention_grad" || job.attributes.get<ops::Attention>().deterministic;
  }

  static bool same_bits(const HostTensor& a, const HostTensor& b) {
    return a.bytes().size() == b.bytes().size() &&
           std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0;
  }

  bool low_, lost_ = false;
  std::shared_ptr<Device> device_;
  int runs_ = 0, failures_ = 0;
  std::set<std::string> ops_, missing_;
};

/// Without a GPU no cases are made.
void run(std::vector<OpCase> (*cases)(), bool low) {
  Session session(low);
  session.run(cases());
}

TEST_CASE("every kernel of the CUDA backend has a case of its type") {
  std::set<std::pair<std::string, DType>> tested;
  const auto note = [&](const std::vector<OpCase>& cases, bool low) {
    for (const OpCase& c : cases)
      for (const Job& job : jobs_of(c))
        if (!low || job.op->takes_low()) tested.emplace(job.op->name, on_the_gpu(job, low).kernel_dtype());
  };
  note(all_op_cases(), false);
  note(all_op_cases(), true);
  note(cast_cases(), false);  // to bf16 and from it
  if (cuda_kernel_table().all().empty()) skip(why_no_cuda_device());
  for (const auto& [key, kernel] : cuda_kernel_table().all()) {
    const auto& [op, dtype, device] = key;
    if (op_table().at(op).collective) continue;  // tests/gpu
    INFO(dtype_name(dtype) << " kernel of " << op);
    CHECK(tested.contains({op, dtype}));
  }
}

TEST_CASE("f32 on the GPU is the CPU's: dense ops") {
  run(dense_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: row by row") {
  run(rowwise_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: attention") {
  run(attention_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: attention that need not repeat its bits") {
  run(unrepeatable_attention_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: routing") {
  run(routing_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: optimizer and casts") {
  run(optimizer_cases, false);
  run(cast_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: distillation") {
  run(distill_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: inference") {
  run(inference_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: sampling") {
  run(sampling_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: large distillation") {
  run(large_distill_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: large dense ops") {
  run(large_dense_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: large, row by row") {
  run(large_rowwise_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: large routing") {
  run(large_routing_cases, false);
}
TEST_CASE("f32 on the GPU is the CPU's: large optimizer") {
  run(large_optimizer_cases, false);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: dense ops") {
  run(dense_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: row by row") {
  run(rowwise_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: attention") {
  run(attention_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: attention that need not repeat its bits") {
  run(unrepeatable_attention_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: routing") {
  run(routing_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: distillation") {
  run(distill_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: inference") {
  run(inference_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: large distillation") {
  run(large_distill_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: large dense ops") {
  run(large_dense_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: large, row by row") {
  run(large_rowwise_cases, true);
}
TEST_CASE("bf16 on the GPU is f32 of the rounded inputs, rounded: large routing") {
  run(large_routing_cases, true);
}

}  // namespace
}  // namespace farskip::test
