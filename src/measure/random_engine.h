// SPDX-License-Identifier: Apache-2.0
#pragma once
// What measurements run.

#include "farskip/engine/engine.h"

namespace farskip {

/// A training engine on weights of its own, those that a model of this seed begins with. Collective.
class RandomEngine {
 public:
  RandomEngine(const Model& model, const TrainEngineOptions& options, const Context& context,
               std::uint64_t seed);

  TrainEngine& operator*() { return engine_; }
  TrainEngine* operator->() { return &engine_; }
  const TrainEngine* operator->() const { return &engine_; }

 private:
  TrainEngine engine_;
};

}  // namespace farskip
