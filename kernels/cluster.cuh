// The path of clusters, for few rows of 8192 elements with at most one cap each, on GPUs of compute capability 9.0
// and later. The code is that of single.cuh, with eight blocks per row.
//
// Grid: one cluster of 8 blocks per row. Block: (64, 1). Data layout: resident.cuh, and the width is 8192. (The
// kernels' launch bounds are those of single.cuh. With 64 threads the compiler keeps fewer registers, and spills.)
//
// Improves on single.cuh by the multiprocessors that load and store a row: eight in place of one. A row of 8192
// elements takes one multiprocessor longer to load and store than the blocks need to exchange their sums. Shorter
// rows do not gain.
#pragma once

#include "single.cuh"

namespace axiscap {

// Each block has all slots of the row in its shared memory, and each warp stores its sum to all eight blocks. Every
// block then adds all slots, and gets the same bits.
struct ClusterOfRow {
    static constexpr u32 BLOCKS = 8;
    static constexpr u32 WARPS = 2;  // per block
    static constexpr u32 WIDTH = BLOCKS * WARPS * SEGMENT;
    static constexpr u32 SENDERS = BLOCKS;
    // Sixteen warps write all slots.
    static constexpr bool PADS = false;

    static AXISCAP_DEVICE u32 row() { return hw::block() / BLOCKS; }
    static AXISCAP_DEVICE u32 warp() { return hw::cluster_rank() * WARPS + hw::thread() / WARP; }
    static AXISCAP_DEVICE u32 thread() { return hw::cluster_rank() * WARPS * WARP + hw::thread(); }
    // A constant, which leaves out the division for other widths.
    static AXISCAP_DEVICE u32 width(const CapArgs&) { return WIDTH; }
    // The branch also keeps the compiler from moving the loads of the axis past the wait for the previous kernel,
    // which follows.
    static AXISCAP_DEVICE void check(const CapArgs& args) { hw::require(args.width == WIDTH); }

    // The first barrier of the cluster: no block stores to another one before that has started. The loads of the
    // row are on their way between its halves.
    static AXISCAP_DEVICE void start() { hw::cluster_arrive_started(); }
    static AXISCAP_DEVICE void await_start() { hw::cluster_wait(); }

    static AXISCAP_DEVICE void send(u32 block, float* slot, float sum) { hw::store_shared_of(block, slot, sum); }
    // The barrier of a sum. Its last wait also keeps each block until all that is stored to it has arrived. All
    // blocks of a cluster have the same row, take the same branches, and therefore meet at the same barriers.
    static AXISCAP_DEVICE void barrier() {
        hw::cluster_arrive();
        hw::cluster_wait();
    }
};

template <class E, bool Add, bool Norm>
using ClusterRows = SingleRows<E, Add, Norm, ClusterOfRow>;

}  // namespace axiscap
