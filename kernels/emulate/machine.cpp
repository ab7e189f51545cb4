#include "machine.hpp"

#include <algorithm>

namespace axiscap {
namespace emulate {

Machine& machine() {
    static thread_local Machine instance;
    return instance;
}

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

void fault(const std::string& what) {
    const Thread& t = self();
    throw Fault{what + " (block " + std::to_string(machine().block()) + ", thread " + std::to_string(t.x) + ", group " +
                std::to_string(t.y) + ")"};
}

// Runs the kernel as one thread. Exceptions must not leave the fiber.
void start_thread() {
    Machine& m = machine();
    m.fibers_.arrived();
    try {
        m.kernel_(*m.args_);
        m.end_thread();
    } catch (const Fault& f) {
        if (m.fault_.empty()) m.fault_ = f.what;
    }
    m.fibers_.finish();
}

std::string Machine::run(void (*kernel)(const CapArgs&), const CapArgs& args, const Launch& shape, Schedule schedule) {
    launch = shape;
    kernel_ = kernel;
    args_ = &args;
    fault_.clear();
    if (launch.cluster == 0 || launch.cluster > MAX_CLUSTER) return "a cluster of " + std::to_string(launch.cluster);
    if (launch.blocks % launch.cluster != 0) return "a grid that is no multiple of its cluster";
    u32 clusters = launch.blocks / launch.cluster;
    for (u32 i = 0; i < clusters && fault_.empty(); i++) {
        switch (schedule) {
            case ASCENDING: cluster_ = i; break;
            case DESCENDING: cluster_ = clusters - 1 - i; break;
            default: cluster_ = (i + clusters / 2) % clusters; break;
        }
        run_cluster(schedule);
    }
    return fault_;
}

// The threads of the cluster's blocks are numbered in one sequence.
void Machine::run_cluster(Schedule schedule) {
    u32 per_block = threads_per_block(), count = launch.cluster * per_block;
    blocks_.assign(launch.cluster, Block{});
    for (Block& block : blocks_) block.shared.assign(launch.shared_bytes, 0xff);  // a float of such bytes is NaN
    threads_.assign(count, Thread{});
    for (u32 i = 0; i < count; i++) {
        threads_[i].x = i % per_block % launch.threads;
        threads_[i].y = i % per_block / launch.threads;
        threads_[i].warp = i / 32;
    }
    arrivals_ = 0;
    waiting_for_cluster_.clear();
    ready_.assign(count, true);
    warps_.assign((count + 31) / 32, WaitPoint{});
    for (auto& values : exchanged_) values.assign(count, 0.0f);
    fibers_.prepare(count, start_thread);

    done_ = 0;
    for (u32 round = 0; done_ < count && fault_.empty(); round++) {
        bool progress = false;
        if (schedule == EAGER) {
            u32 warps = count / 32;
            for (u32 w = 0; w < warps; w++) {
                u32 warp = cluster_ % 2 ? warps - 1 - w : w;
                for (bool moved = true; moved && fault_.empty();) {
                    moved = false;
                    for (u32 lane = 0; lane < 32; lane++) moved |= run_thread(warp * 32 + lane);
                    progress |= moved;
                }
            }
        } else {
            for (u32 i = 0; i < count; i++) {
                u32 pick = i;
                if (schedule == DESCENDING) pick = count - 1 - i;
                // 7919 is prime and no divisor of a cluster's size. The multiples therefore visit every thread once.
                if (schedule == SCATTERED) pick = static_cast<u32>((static_cast<u64>(i) * 7919 + round * 131) % count);
                progress |= run_thread(pick);
            }
        }
        if (!progress && done_ < count && fault_.empty()) {
            fault_ = "a barrier or shuffle that not all its threads reach (block " +
                     std::to_string(cluster_ * launch.cluster) + ")";
        }
    }
}

// Runs a thread until it waits or ends. Returns false if it is waiting or has ended.
bool Machine::run_thread(u32 pick) {
    if (!ready_[pick] || fibers_.over(pick) || !fault_.empty()) return false;
    current_ = pick;
    fibers_.enter(pick);
    if (fibers_.over(pick)) done_++;
    return true;
}

void Machine::wait_for_all(WaitPoint& point, u32 expected) {
    if (!point.waiting.empty() && point.expected != expected) fault("two sizes for one barrier");
    point.expected = expected;
    u32 me = current_;
    if (point.waiting.size() + 1 < expected) {
        point.waiting.push_back(me);
        ready_[me] = false;
        fibers_.leave();
        current_ = me;
    } else {
        for (u32 other : point.waiting) ready_[other] = true;
        point.waiting.clear();
    }
}

// Returns the values of the 32 threads of the warp, after all of them have called.
const float* Machine::exchange(float value) {
    u32 me = current_;
    // Two buffers alternate. A thread that writes one for exchange i + 2 has passed exchange i + 1, and every
    // thread arrives there after it has read the buffer for exchange i.
    std::vector<float>& values = exchanged_[threads_[me].exchanges++ % 2];
    values[me] = value;
    wait_for_all(warps_[threads_[me].warp], 32);
    return &values[me & ~31u];
}

u32 Machine::ballot(bool yes) {
    const float* votes = exchange(yes ? 1.0f : 0.0f);
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; lane++) bits |= static_cast<u32>(votes[lane] != 0.0f) << lane;
    return bits;
}

// Checks that the group has a barrier, because on a GPU a group without one would wait for another group's
// threads.
void Machine::barrier(u32 id, u32 ids, u32 threads) {
    if (id >= ids) fault("barrier " + std::to_string(id) + " of " + std::to_string(ids));
    if (threads % 32 != 0 || threads > launch.threads * launch.groups) fault("a barrier of " + std::to_string(threads));
    wait_for_all(blocks_[rank()].barriers[id], threads);
}

// Checks what a thread must have done before it ends.
void Machine::end_thread() {
    Thread& me = current();
    if (!me.waited) fault("a thread ended without waiting for the previous kernel");
    if (me.arrivals != me.passages) fault("a thread ended between the halves of its cluster's barrier");
    // Without a barrier nothing keeps the other block until the store has arrived.
    if (!me.remote.empty()) fault("a thread ended after a store to another block, without a barrier of the cluster");
    blocks_[rank()].ended++;
}

// The barrier of the cluster: passage n needs n arrivals of every thread.
void Machine::cluster_arrive(bool release) {
    Thread& me = current();
    if (me.arrivals != me.passages) fault("a second arrival at the cluster's barrier, without a wait");
    if (release) {
        for (const Thread::Remote& store : me.remote) {
            std::memcpy(remote_place(store.rank, store.at), &store.value, sizeof(float));
        }
        me.remote.clear();
    }
    me.arrivals++;
    arrivals_++;
    if (arrivals_ % threads_.size() == 0) {
        for (u32 other : waiting_for_cluster_) ready_[other] = true;
        waiting_for_cluster_.clear();
    }
}

void Machine::cluster_wait() {
    u32 me = current_;
    if (threads_[me].arrivals == threads_[me].passages) fault("a wait at the cluster's barrier, without an arrival");
    if (arrivals_ < static_cast<u64>(threads_[me].arrivals) * threads_.size()) {
        waiting_for_cluster_.push_back(me);
        ready_[me] = false;
        fibers_.leave();
        current_ = me;
    }
    threads_[me].passages++;
}

// The place in the shared memory of a block that has started and not ended.
unsigned char* Machine::remote_place(u32 rank, size_t at) {
    if (rank >= launch.cluster) fault("a store to block " + std::to_string(rank) + " of a cluster");
    // A thread that passed the cluster's barrier knows that all blocks have started.
    if (current().passages == 0) fault("a store to a block that may not have started");
    if (blocks_[rank].ended == threads_per_block()) fault("a store to a block that has ended");
    return blocks_[rank].shared.data() + at;
}

void Machine::store_shared_of(u32 rank, const float* p, float value) {
    check_shared(p, 4, 4);
    size_t at = static_cast<size_t>(reinterpret_cast<const unsigned char*>(p) - shared_memory());
    std::memset(remote_place(rank, at), 0xff, sizeof(float));
    current().remote.push_back({rank, at, value});
}

void Machine::check_shared(const void* p, size_t bytes, size_t alignment) const {
    const std::vector<unsigned char>& shared = blocks_[rank()].shared;
    uintptr_t at = reinterpret_cast<uintptr_t>(p), from = reinterpret_cast<uintptr_t>(shared.data());
    if (at < from || at + bytes > from + shared.size()) fault("access outside shared memory");
    // On a GPU the launch's shared memory is 16-byte aligned. Alignment is therefore counted from its start.
    if ((at - from) % alignment != 0) fault("misaligned access of shared memory");
}

}  // namespace emulate
}  // namespace axiscap
