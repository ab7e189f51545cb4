// The fixed-order sum of docs/operation.md: lanes, thread, warp, slots.
#pragma once

#include "element.cuh"

namespace axiscap {

// Adds the upper half of x to the lower until one value remains.
template <int N>
AXISCAP_DEVICE float halve(float* x) {
    if constexpr (N == 1) {
        return x[0];
    } else {
#pragma unroll
        for (int k = 0; k < N / 2; k++) x[k] = hw::add(x[k], x[k + N / 2]);
        return halve<N / 2>(x);
    }
}

// Lanes and the halving within a thread: the thread's share of one segment of <a, b>.
template <class E>
AXISCAP_DEVICE float thread_dot(const float (&a)[VALUES], const float (&b)[VALUES]) {
    float lane[E::V];
#pragma unroll
    for (int j = 0; j < E::V; j++) lane[j] = 0.0f;
#pragma unroll
    for (int q = 0; q < E::QUADS; q++) {
#pragma unroll
        for (int j = 0; j < E::V; j++) lane[j] = hw::fma(a[q * E::V + j], b[q * E::V + j], lane[j]);
    }
    return halve<E::V>(lane);
}

// The same with b from a padded f32 vector, a quad at a time: where there are no registers for all of it.
template <class E>
AXISCAP_DEVICE float streamed_dot(const float (&a)[VALUES], const float* b) {
    float lane[E::V];
#pragma unroll
    for (int j = 0; j < E::V; j++) lane[j] = 0.0f;
#pragma unroll
    for (int q = 0; q < E::QUADS; q++) {
        float quad[E::V];
        load_values<E::V>(b + q * QUAD_STEP<E>, quad);
#pragma unroll
        for (int j = 0; j < E::V; j++) lane[j] = hw::fma(a[q * E::V + j], quad[j], lane[j]);
    }
    return halve<E::V>(lane);
}

// Across the 32 threads; every thread gets the segment's sum.
AXISCAP_DEVICE float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = hw::add(x, hw::shuffle_xor(x, distance));
    return x;
}

// One of three halvings of several values at once: at `distance`, a thread keeps N of its 2 N values, those that its
// bit names, and gives its partner the others. Every addition is one of warp_sum's, made by only the threads that go on
// with it, so that eight sums take nine shuffles, not forty.
template <int N>
AXISCAP_DEVICE void fold(float* x, int distance) {
    const bool upper = (hw::thread() & distance) != 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float keep = upper ? x[k + N] : x[k], give = upper ? x[k] : x[k + N];
        x[k] = hw::add(keep, hw::shuffle_xor(give, distance));
    }
}

// Values that one barrier sums.
constexpr u32 MOST_TOGETHER = 8;

// warp_sum of eight values: each thread t of a warp gets that of x[t / 4].
AXISCAP_DEVICE float warp_sum_of_each(float (&x)[MOST_TOGETHER]) {
    fold<4>(x, 16);
    fold<2>(x, 8);
    fold<1>(x, 4);
    float sum = hw::add(x[0], hw::shuffle_xor(x[0], 2));
    return hw::add(sum, hw::shuffle_xor(sum, 1));
}

constexpr u32 MOST_SLOTS = 32;
// A launch's shared memory begins with the slots of its groups, two sets each.
constexpr u32 SLOT_BYTES = 2 * MOST_SLOTS * sizeof(float);
// In direct kernels two sets of MOST_TOGETHER per warp follow.
constexpr u32 TOGETHER_BYTES = 2 * MOST_TOGETHER * sizeof(float);

// Halves the N quads first, first + stride, ... of the slots. The last addition joins the even and the odd half, so
// that the tree can be walked depth first: a few registers, not 4 N.
template <int N>
AXISCAP_DEVICE void halve_quads(const float* slots, int first, int stride, float (&sum)[4]) {
    if constexpr (N == 1) {
        hw::load_shared(slots + 4 * first, sum);
    } else {
        float odd[4];
        halve_quads<N / 2>(slots, first, 2 * stride, sum);
        halve_quads<N / 2>(slots, first + stride, 2 * stride, odd);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j] = hw::add(sum[j], odd[j]);
    }
}

// Each thread adds all slots itself, from broadcast reads: shorter than by shuffles, but 12 registers. At most 16
// warps.
struct SlotsInRegisters {
    static AXISCAP_DEVICE float sum(const float* slots, u32 warps) {
        if (warps <= 2) return hw::add(hw::load_shared(slots), hw::load_shared(slots + 1));
        float x[4];
        if (warps <= 4) {
            halve_quads<1>(slots, 0, 1, x);
        } else if (warps <= 8) {
            halve_quads<2>(slots, 0, 1, x);
        } else {
            halve_quads<4>(slots, 0, 1, x);
        }
        return halve<4>(x);
    }
};

// Each thread takes one slot, threads k, k + S, ... the same: one register, for kernels that have none to spare.
struct SlotsByShuffle {
    static AXISCAP_DEVICE float sum(const float* slots, u32 warps) {
        u32 width = 1;
        while (width < warps) width *= 2;
        float x = hw::load_shared(slots + (hw::thread() & (width - 1)));
#pragma unroll 1
        for (u32 distance = width / 2; distance > 0; distance /= 2) {
            x = hw::add(x, hw::shuffle_xor(x, distance));
        }
        return x;
    }
};

// Sums over the warps of a group.
//
// Two sets of slots take turns: who writes a set for sum i + 2 has passed the barrier of sum i + 1, which every
// thread reaches only after it has read that set for sum i. So one barrier per sum is enough.
template <class Slots, u32 Groups>
class GroupSum {
  public:
    AXISCAP_DEVICE GroupSum() {
        // Slots without a segment are +0. The first barrier after this orders it before any read.
        u32 t = hw::thread();
        if (t < MOST_SLOTS && t >= warps()) {
            hw::store_shared(slots() + t, 0.0f);
            hw::store_shared(slots() + MOST_SLOTS + t, 0.0f);
        }
    }

    // The sum over the group's warps of `slot`, which is the same in all threads of a warp.
    AXISCAP_DEVICE float operator()(float slot) {
        if (warps() == 1) return slot;
        float* set = slots() + turn_ * MOST_SLOTS;
        turn_ ^= 1;
        u32 t = hw::thread();
        if (t % WARP == 0) hw::store_shared(set + t / WARP, slot);
        hw::barrier<Groups>();
        return Slots::sum(set, warps());
    }

    // The sums over all the group's threads of eight values, behind one barrier: thread 4 k of each warp gets that of
    // x[k]. One group per block, of at most 16 warps.
    AXISCAP_DEVICE float of_each(float (&x)[MOST_TOGETHER]) {
        float sum = warp_sum_of_each(x);
        if (warps() == 1) return sum;
        // [warp][value]: neither the writes of a warp nor its reads meet in a bank.
        float* set = slots() + 2 * MOST_SLOTS + turn_ * warps() * MOST_TOGETHER;
        turn_ ^= 1;
        u32 t = hw::thread() % WARP, warp = hw::thread() / WARP;
        if (t % 4 == 0) hw::store_shared(set + warp * MOST_TOGETHER + t / 4, sum);
        hw::barrier<Groups>();
        // Slots t % 4, t % 4 + 4, ... here, and what is left across the four threads.
        auto slot = [&](u32 i) {
            u32 s = t % 4 + 4 * i;
            return s < warps() ? hw::load_shared(set + s * MOST_TOGETHER + t / 4) : 0.0f;
        };
        sum = slot(0);
        if (warps() > 8) {
            sum = hw::add(hw::add(sum, slot(2)), hw::add(slot(1), slot(3)));
        } else if (warps() > 4) {
            sum = hw::add(sum, slot(1));
        }
        if (warps() > 2) sum = hw::add(sum, hw::shuffle_xor(sum, 2));
        return hw::add(sum, hw::shuffle_xor(sum, 1));
    }

  private:
    AXISCAP_DEVICE u32 warps() const { return hw::threads() / WARP; }
    // Computed where it is needed: an address held all the time is registers that the row needs.
    AXISCAP_DEVICE float* slots() const {
        return reinterpret_cast<float*>(hw::shared_memory() + hw::group() * SLOT_BYTES);
    }

    u32 turn_ = 0;  // the set to write next, of both kinds
};

}  // namespace axiscap
