// SPDX-License-Identifier: Apache-2.0
#pragma once
// One rank of many without the others: an instrument for measuring what a rank's kernels take, on a machine
// that has not that many ranks. What such a run computes is of no use; the sizes and shapes that it works on
// are those of the real job.

#include "farskip/comm/mesh.h"

namespace farskip {

/// Rank `rank` of a group of `size`, in which every other rank is a mirror: it is taken to hold the values
/// that this one holds, and to send this one what this one sends it.
/// - all_reduce, reduce_scatter: `size` times the own value (sum), the own value (max, min);
/// - all_gather: the own piece in the place of each rank, cut or filled with zero bytes where pieces differ;
/// - broadcast, barrier: nothing happens;
/// - row exchange: slab p holds the rows for rank p, as many of them as fit. So this rank gets as many rows
///   as it has, the mean over all ranks of the real job, whatever the router favours;
/// - row return: slab p goes back to where the rows for rank p came from: the inverse of the exchange.
/// Everything is done at its start and takes no time on a wire. Cannot be split: see make_mirror_mesh.
Communicator make_mirror_communicator(int size, int rank);

/// The mesh of a mirror at `position`: its three groups are mirrors of the sizes and ranks of a real mesh.
Mesh make_mirror_mesh(const MeshPosition& position);

}  // namespace farskip
