// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run says of itself before its first step.

#include "farskip/base/log.h"
#include "farskip/engine/engine.h"

namespace farskip {

void log_model(const ModelConfig& model, const TrainEngineOptions& options, const Context& context);
void log_memory(const MemoryReport& memory, const Logger& logger);
void log_routed_rows(const RoutedRowsPlan& rows, const Logger& logger);

}  // namespace farskip
