// A GPU that runs one cluster of blocks at a time, with threads as fibers, shared memory and barriers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../args.cuh"
#include "fiber.hpp"

namespace axiscap {
namespace emulate {

// Launch shape: blocks x (threads, groups), dynamic shared memory per block, and blocks per cluster.
struct Launch {
    u32 blocks, threads, groups, shared_bytes, cluster;
};

// The most blocks of a cluster that every GPU with clusters can run.
constexpr u32 MAX_CLUSTER = 8;

// The order in which runnable clusters and threads run. Results must not depend on it. The first three
// schedules run every thread of a cluster in turn. EAGER runs each warp ahead of all others for as long as it can,
// which finds a missing barrier between two uses of the same memory.
enum Schedule : u32 { ASCENDING, DESCENDING, SCATTERED, EAGER, SCHEDULES };

// An operation that CUDA does not allow. Thrown in a fiber and reported by the launch.
struct Fault {
    std::string what;
};
[[noreturn]] void fault(const std::string& what);

struct Thread {
    u32 x = 0, y = 0, warp = 0;
    bool waited = false;
    u32 exchanges = 0;

    // How often the thread arrived at its cluster's barrier, and how often it passed it.
    u32 arrivals = 0, passages = 0;
    // Stores to the shared memory of the cluster's blocks since the last arrival.
    struct Remote {
        u32 rank;
        size_t at;
        float value;
    };
    std::vector<Remote> remote;

    // Outstanding copies. They are made when they are awaited, and their targets hold NaN until then.
    struct Copy {
        void* to;
        const void* from;
        bool inside;
    };
    std::vector<std::vector<Copy>> committed;
    std::vector<Copy> open;

    void copy(void* to, const void* from, bool inside) {
        std::memset(to, 0xff, 16);
        open.push_back({to, from, inside});
    }
    void commit() {
        committed.push_back(open);
        open.clear();
    }
    void await(size_t newer) {
        while (committed.size() > newer) {
            for (const Copy& c : committed.front()) {
                if (c.inside) std::memcpy(c.to, c.from, 16);
                else std::memset(c.to, 0, 16);
            }
            committed.erase(committed.begin());
        }
    }
};

class Machine {
  public:
    Launch launch{};

    // Runs the whole grid. Returns an empty string, or the first error.
    std::string run(void (*kernel)(const CapArgs&), const CapArgs& args, const Launch& launch, Schedule schedule);

    float shuffle_xor(float value, int mask) { return exchange(value)[(current_ & 31) ^ static_cast<u32>(mask)]; }
    float shuffle(float value, u32 from) { return exchange(value)[from % 32]; }
    u32 ballot(bool yes);
    void barrier(u32 id, u32 ids, u32 threads);
    void check_shared(const void* p, size_t bytes, size_t alignment) const;
    Thread& current() { return threads_[current_]; }

    u32 rank() const { return current_ / threads_per_block(); }
    u32 block() const { return cluster_ * launch.cluster + rank(); }
    unsigned char* shared_memory() { return blocks_[rank()].shared.data(); }
    void cluster_arrive(bool release);
    void cluster_wait();
    void store_shared_of(u32 rank, const float* p, float value);

  private:
    // A point where threads wait for each other: a warp's shuffle, or a named barrier.
    struct WaitPoint {
        std::vector<u32> waiting;
        u32 expected = 0;
    };

    // What the blocks of a cluster do not share.
    struct Block {
        std::vector<unsigned char> shared;
        std::map<u32, WaitPoint> barriers;
        u32 ended = 0;  // number of threads
    };

    u32 threads_per_block() const { return launch.threads * launch.groups; }
    void run_cluster(Schedule schedule);
    void end_thread();
    unsigned char* remote_place(u32 rank, size_t at);
    bool run_thread(u32 pick);
    void wait_for_all(WaitPoint& point, u32 expected);
    const float* exchange(float value);

    std::vector<Thread> threads_;
    std::vector<bool> ready_;
    u32 done_ = 0;
    Fibers fibers_;
    u32 current_ = 0;
    std::vector<WaitPoint> warps_;
    u32 cluster_ = 0;
    std::vector<Block> blocks_;
    // The cluster's barrier: all arrivals, and the threads that wait for more.
    u64 arrivals_ = 0;
    std::vector<u32> waiting_for_cluster_;
    std::vector<float> exchanged_[2];
    std::string fault_;
    void (*kernel_)(const CapArgs&) = nullptr;
    const CapArgs* args_ = nullptr;
    friend void start_thread();
};

Machine& machine();
inline Thread& self() { return machine().current(); }

inline void check_aligned(const void* p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fault("misaligned access of " + std::to_string(bytes) + " bytes");
}
inline void check_waited() {
    if (!self().waited) fault("a row was touched before the wait for the previous kernel");
}

struct Kernel {
    u32 max_threads, cluster;
    void (*run)(const CapArgs&);
};
std::map<std::string, Kernel>& kernels();
struct Registration {
    Registration(const char* name, u32 max_threads, u32 cluster, void (*run)(const CapArgs&)) {
        kernels()[name] = {max_threads, cluster, run};
    }
};

}  // namespace emulate
}  // namespace axiscap
