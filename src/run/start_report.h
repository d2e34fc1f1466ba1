// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run says of itself before its first step, and what it finds missing.

#include "farskip/base/log.h"
#include "farskip/engine/engine.h"

namespace farskip {

void log_model(const ModelConfig& model, const TrainEngineOptions& options, const Context& context);
void log_memory(const MemoryReport& memory, const Logger& logger);
/// IoError where a limit of the address space leaves less than first steps and saves take: libraries crash
/// where they find no memory for the kernels that they make at the first step.
void check_free_memory(const MemoryReport& memory);
void log_routed_rows(const RoutedRowsPlan& rows, const Logger& logger);

}  // namespace farskip
