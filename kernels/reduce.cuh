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

// Across the 32 threads; every thread gets the segment's sum.
AXISCAP_DEVICE float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = hw::add(x, hw::shuffle_xor(x, distance));
    return x;
}

constexpr u32 MOST_SLOTS = 32;

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

template <bool First, class A, class B>
struct Select {
    typedef A Type;
};
template <class A, class B>
struct Select<false, A, B> {
    typedef B Type;
};

// Sums over the warps of a group.
//
// Two sets of slots take turns: who writes a set for sum i + 2 has passed the barrier of sum i + 1, which every
// thread reaches only after it has read that set for sum i. So one barrier per sum is enough.
template <class Slots>
class GroupSum {
  public:
    // `slots`: shared memory of this group, 2 * MOST_SLOTS floats.
    AXISCAP_DEVICE GroupSum(float* slots) : slots_(slots), turn_(0) {
        // Slots without a segment are +0. The first barrier after this orders it before any read.
        u32 t = hw::thread();
        if (t < MOST_SLOTS && t >= warps()) {
            hw::store_shared(slots + t, 0.0f);
            hw::store_shared(slots + MOST_SLOTS + t, 0.0f);
        }
    }

    // The sum over the group's warps of `slot`, which is the same in all threads of a warp.
    AXISCAP_DEVICE float operator()(float slot) {
        if (warps() == 1) return slot;
        float* slots = slots_ + turn_;
        turn_ ^= MOST_SLOTS;
        u32 t = hw::thread();
        if (t % WARP == 0) hw::store_shared(slots + t / WARP, slot);
        hw::barrier(hw::group(), hw::threads());
        return Slots::sum(slots, warps());
    }

  private:
    AXISCAP_DEVICE u32 warps() const { return hw::threads() / WARP; }

    float* slots_;
    u32 turn_;  // offset of the set to write next
};

}  // namespace axiscap
