// Kernels that misuse clusters, each in one way. tests/emulator checks that the emulator reports each of them.
#pragma once

#include "../cluster.cuh"

namespace axiscap {
namespace emulate {

inline float* slot() { return reinterpret_cast<float*>(hw::shared_memory()); }
inline u32 neighbour() { return (hw::cluster_rank() + 1) % 2; }

}  // namespace emulate
}  // namespace axiscap

// A correct one: each block gives a value to the other and stores what it gets to h.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_correct, 64, 2) {
    using namespace axiscap;
    hw::cluster_arrive_started();
    hw::wait_for_previous_kernel();
    hw::cluster_wait();
    if (hw::thread() == 0) hw::store_shared_of(emulate::neighbour(), emulate::slot(), 1.0f + hw::block());
    hw::cluster_arrive();
    hw::cluster_wait();
    if (hw::thread() == 0) hw::store_row(static_cast<float*>(args.h) + hw::block(), hw::load_shared(emulate::slot()));
}

// Stores to a block that may not have started.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_store_too_early, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    if (hw::thread() == 0) hw::store_shared_of(emulate::neighbour(), emulate::slot(), 1.0f);
    hw::cluster_arrive();
    hw::cluster_wait();
}

// Stores after the last barrier: the other block may have ended.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_store_too_late, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    if (hw::thread() == 0 && hw::cluster_rank() == 0) hw::store_shared_of(1, emulate::slot(), 1.0f);
}

// Ends a block while another one goes on to a further barrier.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_unequal_barriers, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    if (hw::cluster_rank() == 0) return;
    hw::cluster_arrive();
    hw::cluster_wait();
}

// Stores to a block that has ended: the storing one goes on alone.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_store_to_ended, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    if (hw::cluster_rank() == 0) return;
    // In each schedule block 0 ends while the threads of this block meet a few times.
    for (int i = 0; i < 8; i++) hw::block_barrier();
    if (hw::thread() == 63) hw::store_shared_of(0, emulate::slot(), 1.0f);
    hw::cluster_arrive();
    hw::cluster_wait();
}

// Leaves out one thread's arrival.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_missing_thread, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    if (hw::block() == 0 && hw::thread() == 5) return;
    hw::cluster_arrive();
    hw::cluster_wait();
}

// Ends between the halves of the barrier.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_half_a_barrier, 64, 2) {
    axiscap::hw::wait_for_previous_kernel();
    axiscap::hw::cluster_arrive();
}

// Arrives twice, and waits without an arrival.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_two_arrivals, 64, 2) {
    axiscap::hw::wait_for_previous_kernel();
    axiscap::hw::cluster_arrive();
    axiscap::hw::cluster_arrive();
}
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_no_arrival, 64, 2) {
    axiscap::hw::wait_for_previous_kernel();
    axiscap::hw::cluster_wait();
}

// Stores to a block that is none of the cluster's, outside shared memory, and at an odd address.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_wrong_rank, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    hw::store_shared_of(2, emulate::slot(), 1.0f);
}
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_wrong_place, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    hw::store_shared_of(0, emulate::slot() + 64, 1.0f);
}
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_misaligned, 64, 2) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    hw::cluster_arrive();
    hw::cluster_wait();
    hw::store_shared_of(0, reinterpret_cast<float*>(hw::shared_memory() + 2), 1.0f);
}

// Reads what another block stores after a barrier that orders no writes.
AXISCAP_CLUSTER_KERNEL(axiscap_cluster_unordered, 64, 2) {
    using namespace axiscap;
    hw::cluster_arrive_started();
    hw::wait_for_previous_kernel();
    hw::cluster_wait();
    if (hw::thread() == 0) hw::store_shared_of(emulate::neighbour(), emulate::slot(), 1.0f);
    hw::cluster_arrive_started();
    hw::cluster_wait();
    if (hw::thread() == 0) hw::store_row(static_cast<float*>(args.h) + hw::block(), hw::load_shared(emulate::slot()));
    hw::cluster_arrive();
    hw::cluster_wait();
}
