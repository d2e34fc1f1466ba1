// SPDX-License-Identifier: Apache-2.0
#pragma once
// One run of one op on the GPU, and what the CPU says of it.

#include <string>
#include <vector>

#include "farskip/backend/device.h"
#include "op_case.h"
#include "ops/interpreter.h"

namespace farskip::test {

struct Job {
  std::string text;  // op, attributes, case
  const OpDef* op = nullptr;
  Attributes attributes;
  std::vector<HostTensor> inputs;  // f32 and integers; one without data: absent
};

/// The case itself and every node of its gradient, with the inputs that the CPU kernels computed for them;
/// each that can accumulate also with an accumulator.
std::vector<Job> jobs_of(const OpCase& c);

/// A job as the GPU gets it. In low precision the inputs that a bf16 graph keeps in bf16 are rounded;
/// `expected` is then what the f32 CPU kernel makes of the rounded inputs.
struct Prepared {
  Attributes attributes;
  std::vector<HostTensor> inputs;
  std::vector<TensorType> outputs;
  std::vector<HostTensor> expected;

  /// The type under which its kernel is registered.
  DType kernel_dtype() const;
};
Prepared prepare(const Job& job, bool low);
/// The same without what is expected.
Prepared on_the_gpu(const Job& job, bool low);

/// The same with some rows after the last of its bounded inputs (OpDef::bounded), full of NaN, which a kernel
/// that minds the count does not use. Empty inputs: the op has no bounded rows.
Prepared with_unused_rows(const Job& job, bool low);

/// Runs it: inputs, outputs and workspace lie in one piece of device memory, poisoned, with guards between.
struct GpuRun {
  std::vector<HostTensor> outputs;
  std::vector<HostTensor> inputs;  // after the run
  std::string broken;              // which guard was overwritten; empty: none
};
GpuRun run_on_gpu(Device& device, const OpDef& op, const Prepared& prepared,
                  const std::vector<InPlace>& in_place = {}, std::int64_t count = -1);

/// Empty where `actual` (whose first rows are compared) is `expected` within `bound` (an element's error
/// relative to its size plus the root mean square of the tensor; integers exactly; NaN agrees with NaN only);
/// else the worst element.
std::string difference(const HostTensor& actual, const HostTensor& expected, double bound, double floor = 0);
/// Largest error an output may have.
double error_bound(const Job& job, DType output, bool low);

/// For gradients that are differences of numbers of order one and may cancel to rounding errors; else 0.
double error_floor(const std::string& op);

/// Large, odd and skewed shapes of every family.
std::vector<OpCase> large_dense_cases();
std::vector<OpCase> large_rowwise_cases();
std::vector<OpCase> large_routing_cases();
std::vector<OpCase> large_optimizer_cases();
std::vector<OpCase> large_distill_cases();
/// Casts, and AdamW's compute copy.
std::vector<OpCase> cast_cases();
/// Attention whose gradient need not repeat its bits.
std::vector<OpCase> unrepeatable_attention_cases();

}  // namespace farskip::test
