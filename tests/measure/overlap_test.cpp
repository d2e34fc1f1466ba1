// SPDX-License-Identifier: Apache-2.0
// What is computed from measured times.

#include "measure/overlap.h"

#include "support/catch.h"

namespace farskip {
namespace {

TEST_CASE(
    "times of which more is saved than can be hidden, or more lost than the transports took, say nothing") {
  DirectionOverlap d;
  d.blocking_seconds = 2.0;
  d.overlapped_seconds = 1.5;
  d.transport_seconds = 0.6;
  d.hideable_seconds = 0.5;
  d.exposed_seconds = 0.1;
  CHECK_FALSE(d.is_doubtful());
  d.overlapped_seconds = 1.47;  // eta 1.06, of a good measurement
  CHECK_FALSE(d.is_doubtful());
  d.overlapped_seconds = 1.4;
  CHECK(d.is_doubtful());
  d.overlapped_seconds = 1.5;
  d.exposed_seconds = 0.61;
  CHECK(d.is_doubtful());
  CHECK_FALSE(DirectionOverlap().is_doubtful());  // without communication
}

}  // namespace
}  // namespace farskip
