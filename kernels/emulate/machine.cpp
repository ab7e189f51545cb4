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
    throw Fault{what + " (block " + std::to_string(machine().block) + ", thread " + std::to_string(t.x) + ", group " +
                std::to_string(t.y) + ")"};
}

// Runs the kernel as one thread. Exceptions must not leave the fiber.
void start_thread() {
    Machine& m = machine();
    m.fibers_.arrived();
    try {
        m.kernel_(*m.args_);
        if (!m.current().waited) fault("a thread ended without waiting for the previous kernel");
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
    for (u32 i = 0; i < launch.blocks && fault_.empty(); i++) {
        switch (schedule) {
            case ASCENDING: block = i; break;
            case DESCENDING: block = launch.blocks - 1 - i; break;
            default: block = (i + launch.blocks / 2) % launch.blocks; break;
        }
        run_block(schedule);
    }
    return fault_;
}

void Machine::run_block(Schedule schedule) {
    u32 count = launch.threads * launch.groups;
    shared.assign(launch.shared_bytes, 0xff);  // a float of such bytes is NaN
    threads_.assign(count, Thread{});
    for (u32 i = 0; i < count; i++) {
        threads_[i].x = i % launch.threads;
        threads_[i].y = i / launch.threads;
        threads_[i].warp = i / 32;
    }
    ready_.assign(count, true);
    warps_.assign((count + 31) / 32, WaitPoint{});
    barriers_.clear();
    for (auto& values : exchanged_) values.assign(count, 0.0f);
    fibers_.prepare(count, start_thread);

    done_ = 0;
    for (u32 round = 0; done_ < count && fault_.empty(); round++) {
        bool progress = false;
        if (schedule == EAGER) {
            u32 warps = count / 32;
            for (u32 w = 0; w < warps; w++) {
                u32 warp = block % 2 ? warps - 1 - w : w;
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
                // 7919 is prime and larger than any block. The multiples therefore visit every thread once.
                if (schedule == SCATTERED) pick = static_cast<u32>((static_cast<u64>(i) * 7919 + round * 131) % count);
                progress |= run_thread(pick);
            }
        }
        if (!progress && done_ < count && fault_.empty()) {
            fault_ = "a barrier or shuffle that not all its threads reach (block " + std::to_string(block) + ")";
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
    wait_for_all(barriers_[id], threads);
}

void Machine::check_shared(const void* p, size_t bytes, size_t alignment) const {
    uintptr_t at = reinterpret_cast<uintptr_t>(p), from = reinterpret_cast<uintptr_t>(shared.data());
    if (at < from || at + bytes > from + shared.size()) fault("access outside shared memory");
    // On a GPU the launch's shared memory is 16-byte aligned. Alignment is therefore counted from its start.
    if ((at - from) % alignment != 0) fault("misaligned access of shared memory");
}

}  // namespace emulate
}  // namespace axiscap
