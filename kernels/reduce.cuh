// The fixed-order sum of docs/operation.md, in its order: lanes, thread, warp, slots.
#pragma once

#include "element.cuh"

namespace axiscap {

// Adds the upper half of x to the lower half until one value remains.
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

// Returns the thread's part of one segment of <a, b>: its lanes, halved to one value.
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

// Returns the same as thread_dot, with b read from a padded f32 vector one quad at a time, for kernels that
// lack the registers to hold b.
template <class E>
AXISCAP_DEVICE float thread_dot_by_quad(const float (&a)[VALUES], const float* b) {
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

// Sums over the 32 threads of the warp. Every thread gets the segment's sum.
AXISCAP_DEVICE float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = hw::add(x, hw::shuffle_xor(x, distance));
    return x;
}

// Does one step of warp_sum for 2 N values at once: at `distance`, a thread keeps the N values that its bit
// selects and gives the other N to its partner. Each addition is one of warp_sum's, but only the threads that
// need its result do it. Eight sums take nine shuffles instead of forty.
template <int N>
AXISCAP_DEVICE void fold(float* x, int distance) {
    const bool upper = (hw::thread() & distance) != 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float keep = upper ? x[k + N] : x[k], give = upper ? x[k] : x[k + N];
        x[k] = hw::add(keep, hw::shuffle_xor(give, distance));
    }
}

// The most values that one barrier sums.
constexpr u32 MAX_TOGETHER = 8;

// Returns in thread t of each warp the warp_sum of x[t / 4].
AXISCAP_DEVICE float warp_sum_each(float (&x)[MAX_TOGETHER]) {
    fold<4>(x, 16);
    fold<2>(x, 8);
    fold<1>(x, 4);
    float sum = hw::add(x[0], hw::shuffle_xor(x[0], 2));
    return hw::add(sum, hw::shuffle_xor(sum, 1));
}

constexpr u32 MAX_SLOTS = 32;
// Shared memory begins with two sets of slots per group.
constexpr u32 SLOT_BYTES = 2 * MAX_SLOTS * sizeof(float);
// In direct kernels two sets of MAX_TOGETHER values per warp follow.
constexpr u32 TOGETHER_BYTES = 2 * MAX_TOGETHER * sizeof(float);

// Halves the N quads first, first + stride, ... of the slots. The last addition joins the even and the odd
// half, therefore the tree can be walked depth first, in fewer than 4 N registers.
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

// Sums the slots in each thread, from broadcast reads. Has a shorter latency than SlotsByShuffle, but takes
// 12 registers. At most 16 warps.
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

// Sums the slots by shuffles: thread k takes slot k modulo the number of slots. Takes one register.
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

// Returns in thread 4 k of each warp the sum of the slots [warp][value] of value k. At most 16 warps.
AXISCAP_DEVICE float sum_slots_each(const float* set, u32 warps) {
    const u32 t = hw::thread() % WARP;
    // Each thread adds the slots t % 4, t % 4 + 4, ...; shuffles then add the four partial sums.
    auto slot = [&](u32 i) {
        u32 s = t % 4 + 4 * i;
        return s < warps ? hw::load_shared(set + s * MAX_TOGETHER + t / 4) : 0.0f;
    };
    float sum = slot(0);
    if (warps > 8) {
        sum = hw::add(hw::add(sum, slot(2)), hw::add(slot(1), slot(3)));
    } else if (warps > 4) {
        sum = hw::add(sum, slot(1));
    }
    if (warps > 2) sum = hw::add(sum, hw::shuffle_xor(sum, 2));
    if (warps > 1) sum = hw::add(sum, hw::shuffle_xor(sum, 1));
    return sum;
}

// Sums over the warps of a group, with one barrier per sum.
//
// Two sets of slots alternate. A thread that writes a set for sum i + 2 has passed the barrier of sum i + 1,
// and every thread reaches that barrier after it has read the set for sum i.
template <class Slots, u32 Groups>
class GroupSum {
  public:
    AXISCAP_DEVICE GroupSum() {
        // Slots without a segment are +0. The first sum's barrier orders these stores before any read.
        u32 t = hw::thread();
        if (t < MAX_SLOTS && t >= warps()) {
            hw::store_shared(slots() + t, 0.0f);
            hw::store_shared(slots() + MAX_SLOTS + t, 0.0f);
        }
    }

    // Returns the sum over the group's warps of `slot`, which is the same in all threads of a warp.
    AXISCAP_DEVICE float operator()(float slot) {
        if (warps() == 1) return slot;
        float* set = slots() + turn_ * MAX_SLOTS;
        turn_ ^= 1;
        u32 t = hw::thread();
        if (t % WARP == 0) hw::store_shared(set + t / WARP, slot);
        hw::barrier<Groups>();
        return Slots::sum(set, warps());
    }

    // Returns in thread 4 k of each warp the sum of x[k] over all threads of the group, with one barrier. For
    // one group per block, of at most 16 warps.
    AXISCAP_DEVICE float sum_each(float (&x)[MAX_TOGETHER]) {
        float sum = warp_sum_each(x);
        if (warps() == 1) return sum;
        // The layout [warp][value] has no bank conflicts, neither for the writes of a warp nor for its reads.
        float* set = slots() + 2 * MAX_SLOTS + turn_ * warps() * MAX_TOGETHER;
        turn_ ^= 1;
        u32 t = hw::thread() % WARP, warp = hw::thread() / WARP;
        if (t % 4 == 0) hw::store_shared(set + warp * MAX_TOGETHER + t / 4, sum);
        hw::barrier<Groups>();
        return sum_slots_each(set, warps());
    }

  private:
    AXISCAP_DEVICE u32 warps() const { return hw::threads() / WARP; }
    // Computed at each use. An address kept in a member would take registers that the row needs.
    AXISCAP_DEVICE float* slots() const {
        return reinterpret_cast<float*>(hw::shared_memory() + hw::group() * SLOT_BYTES);
    }

    u32 turn_ = 0;  // the set to write next, for both kinds of sums
};

}  // namespace axiscap
