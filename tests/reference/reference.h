// SPDX-License-Identifier: Apache-2.0
#pragma once
// A second opinion on every forward op: naive double-precision loops written from the formulas in
// farskip/ops/ops.h, not from the kernels they judge. Slow on purpose; only tests link it.

#include "farskip/backend/kernel.h"

namespace farskip {

/// Registers every forward op under DType::f64. Where the op's f32 tensors are f32, a reference kernel
/// takes and gives f64; i32 tensors stay i32. Keys that the table already has (clip_factor, which the CPU
/// backend also lists under f64) are left alone, so a table may hold the CPU kernels first and these
/// after. sort_by_expert and order_by_expert, which have no floating-point tensor, are listed under f64 as
/// well as under i32. Ops that move data between ranks have none: tests/distributed judges them.
void register_reference_kernels(KernelTable& table);

namespace reference {

void register_dense(KernelTable& table);      // embedding, elementwise, matmul, grouped_matmul, columns, loss
void register_rowwise(KernelTable& table);    // rms_norm, rope, swiglu
void register_attention(KernelTable& table);  // attention, mla_key_value
void register_routing(KernelTable& table);    // router, dispatch, rows on their way
void register_optimizer(KernelTable& table);  // sum_of_squares, find_fault, clip_factor, adamw, muon, …
void register_distill(KernelTable& table);    // losses of a student beside its teacher
void register_inference(KernelTable& table);  // ops on a cache
void register_sampling(KernelTable& table);   // the next token

/// Element of an input that no product reads: in a graph such tables are f32 whatever the type of the rest.
double table_value(const TensorView& table, std::int64_t i);

/// Adds `run` as the f64 kernel of `op` unless the table has one.
void add_reference(KernelTable& table, std::string_view op, void (*run)(const KernelCall&));

}  // namespace reference
}  // namespace farskip
