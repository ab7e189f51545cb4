// The direct path, for few rows of at most 8192 elements, where latency counts. A row and the axes of its
// first caps are loaded into registers. The row's projections on these axes are summed with one barrier.
//
// Grid: any number of blocks, which stride over the rows. Block: (32 * ceil(width / 512), 1). Data layout:
// resident.cuh.
//
// Improves on one barrier per cap (staged.cuh): as long as no cap acts, all caps project the same row, and
// one round trip through shared memory gives all projections. A cap that acts changes the row. The caps after
// it are then applied one by one, as docs/operation.md defines them.
#pragma once

#include "resident.cuh"

namespace axiscap {

// Number of caps whose axes are held in registers and projected together. An axis takes 16 registers per
// thread.
constexpr u32 TOGETHER = 5;
static_assert(TOGETHER <= MAX_TOGETHER, "one barrier sums at most MAX_TOGETHER values");

template <u32 K>
struct Index {
    static constexpr u32 value = K;
};
// Calls f(Index<0>), f(Index<1>), ... f(Index<N - 1>). An axis can only stay in registers if its index is a
// compile-time constant. The compiler unrolls a loop too late for that.
template <u32 N, class F>
AXISCAP_DEVICE void for_each_axis(F f) {
    if constexpr (N > 0) {
        for_each_axis<N - 1>(f);
        f(Index<N - 1>{});
    }
}

template <class E, bool Add, bool Norm>
class DirectRows : ResidentRows<E> {
    typedef ResidentRows<E> Base;
    typedef typename Base::Bits Bits;
    using Base::args_;

  public:
    AXISCAP_DEVICE DirectRows(const CapArgs& args) : Base(args) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        float axes[TOGETHER][VALUES];
        // If all rows have the same caps, the axes are loaded once, before the wait.
        bool loaded = args_.profile == nullptr;
        if (loaded) load_axes({args_.first, args_.count}, axes);
        Base::prefetch_axes(TOGETHER);
        if constexpr (Norm) Base::prefetch_weight();
        hw::wait_for_previous_kernel();

        for (u32 row = hw::block(); row < args_.rows; row += hw::blocks()) {
            float h[VALUES];
            Base::template load<Add, false>(row, h);
            CapRange caps = caps_of_row(args_, row);
            if (!loaded) load_axes(caps, axes);
            bool acted = apply_caps(row, caps, h, axes);
            loaded = args_.profile == nullptr && caps.count <= TOGETHER && !Norm;
            if constexpr (Norm) {
                // The weight overwrites the registers of the first axis.
                Base::load_weight(axes[0]);
                float factor = norm_factor(args_, sum_(warp_sum(thread_dot<E>(h, h))));
                Base::store_normed(row, h, axes[0], factor);
            }
            if (Add || acted) Base::store(args_.h, args_.h_stride, row, h);
            if (hw::thread() == 0) end_row(args_, row, caps.count);
        }
    }

  private:
    AXISCAP_DEVICE void load_axes(CapRange caps, float (&axes)[TOGETHER][VALUES]) const {
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value < caps.count) this->load_axis(caps.first + k.value, axes[k.value]);
        });
    }

    // Applies the caps of a row. Returns whether any of them changed the row.
    AXISCAP_DEVICE bool apply_caps(u32 row, CapRange caps, float (&h)[VALUES], float (&axes)[TOGETHER][VALUES]) {
        const u32 together = caps.count < TOGETHER ? caps.count : TOGETHER;
        u32 done = 0;
        bool acted = false;
        if (together > 1) done = apply_together(row, caps.first, together, h, axes, acted);
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value >= done && k.value < together) acted |= this->apply_one(row, caps.first, k.value, h, axes[k.value]);
        });
        if (caps.count > TOGETHER) {
            // The next cap's axis is loaded while this cap's sum is computed.
            Base::load_axis(caps.first + TOGETHER, axes[0]);
#pragma unroll 1
            for (u32 k = TOGETHER; k < caps.count; k++) {
                if (k + 1 < caps.count) Base::load_axis(caps.first + k + 1, axes[1]);
                acted |= apply_one(row, caps.first, k, h, axes[0]);
#pragma unroll
                for (int i = 0; i < VALUES; i++) axes[0][i] = axes[1][i];
            }
        }
        return acted;
    }

    // Projects the row on the axes of the caps `first` .. `first + count` with one barrier, and applies the
    // first cap that acts. Returns the number of caps done: all if none acts, otherwise those up to and
    // including the first that acts.
    AXISCAP_DEVICE u32 apply_together(u32 row, u32 first, u32 count, float (&h)[VALUES],
                                      const float (&axes)[TOGETHER][VALUES], bool& acted) {
        // Thread 4 k of each warp evaluates cap k.
        const u32 mine = hw::thread() % WARP / 4;
        const bool evaluates = hw::thread() % 4 == 0 && mine < count;
        CapParams params = {0.0f, 0.0f, 0.0f};
        if (evaluates) params = load_params(args_, first + mine);
        float parts[MAX_TOGETHER] = {};
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value < count) parts[k.value] = thread_dot<E>(h, axes[k.value]);
        });
        float p = sum_.sum_each(parts);
        CapStep step = clamp_projection(p, params);
        u32 acting = hw::ballot(evaluates && step.acts);
        u32 first_acting = hw::lowest_bit(acting);  // WARP if none acts
        if (hw::thread() < WARP && evaluates && hw::thread() <= first_acting) {
            write_stat(args_, row, mine, {p, step.after, step.flags});
        }
        if (acting == 0) return count;
        acted = true;
        float delta = hw::shuffle(step.delta, first_acting);
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value == first_acting / 4) move_along(h, delta, axes[k.value]);
        });
        return first_acting / 4 + 1;
    }

    // Applies cap k of the row, given its axis. Returns whether it acted.
    AXISCAP_DEVICE bool apply_one(u32 row, u32 first, u32 k, float (&h)[VALUES], const float (&axis)[VALUES]) {
        CapParams params = load_params(args_, first + k);
        float p = sum_(warp_sum(thread_dot<E>(h, axis)));
        CapStep step = clamp_projection(p, params);
        if (step.acts) move_along(h, step.delta, axis);
        if (hw::thread() == 0) write_stat(args_, row, k, {p, step.after, step.flags});
        return step.acts;
    }

    GroupSum<SlotsInRegisters, 1> sum_;
};

}  // namespace axiscap
