// The single path, for rows of whole segments with at most one cap each. It is the usual launch of a decode: one
// cap per block, one row per sequence.
//
// Grid: one block per row. Block: (32 * width / 512, 1), at most 16 warps. Data layout: resident.cuh, and the
// width is a multiple of 512.
//
// Improves on direct.cuh by code that is a fifth as long, with the norm a third. A launch of one row executes
// each instruction once, so fetching instructions takes a large part of its time. Therefore there are no bounds
// checks, the slots are summed without branches, and the norm's two sums go through the same instructions.
//
// Many long rows without a norm take this path too, if they are f32 or sums of two. Two blocks of 8192 elements are
// resident on a multiprocessor, and when a row is done, the hardware starts the block of another one. The axis comes
// from L1. That reads and writes rows 6 % faster than staged.cuh, whose blocks stay and copy rows ahead.
#pragma once

#include "resident.cuh"

namespace axiscap {

// Who works on a row: here a block. cluster.cuh has the other way.
struct BlockOfRow {
    // The number of threads that pass a warp's sum on.
    static constexpr u32 SENDERS = 1;
    static constexpr bool PADS = true;

    static AXISCAP_DEVICE u32 row() { return hw::block(); }
    static AXISCAP_DEVICE u32 warp() { return hw::thread() / WARP; }
    static AXISCAP_DEVICE u32 thread() { return hw::thread(); }
    static AXISCAP_DEVICE u32 width(const CapArgs& args) { return args.width; }
    static AXISCAP_DEVICE void check(const CapArgs&) {}
    static AXISCAP_DEVICE void start() {}
    static AXISCAP_DEVICE void await_start() {}
    static AXISCAP_DEVICE void send(u32, float* slot, float sum) { hw::store_shared(slot, sum); }
    static AXISCAP_DEVICE void barrier() { hw::barrier<1>(); }
};

template <class E, bool Add, bool Norm, class Workers = BlockOfRow>
class SingleRows : ResidentRows<E> {
    typedef ResidentRows<E> Base;
    typedef typename Base::Bits Bits;
    using Base::args_;
    using Base::at;
    using Base::start_;

  public:
    AXISCAP_DEVICE SingleRows(const CapArgs& args) : Base(args, Workers::warp()) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        Workers::start();
        float axis[VALUES], weight[VALUES];
        CapParams params = {0.0f, 0.0f, 0.0f};
        CapRange caps = {args_.first, args_.count};
        // The cap of profile 1, which is also that of all rows if they name no profile.
        if (EARLY || args_.profile == nullptr) load_cap(caps, axis, params);
        const ProfileEnds ends(args_);
        if constexpr (Norm) load_padded<E>(args_.weight + start_, weight);
        if constexpr (Workers::PADS) pad_slots();
        Workers::check(args_);
        hw::wait_for_previous_kernel();

        const u32 row = Workers::row();
        float h[VALUES];
        Base::template load<Add, true>(row, h);
        if (args_.profile != nullptr) {
            const u32 profile = profile_of_row(args_, row);
            if (profile != 1) caps = ends.caps(args_, profile);
            if (profile != 1 || !EARLY) load_cap(caps, axis, params);
        }
        if (!EARLY && caps.count > 0) params = load_params(args_, caps.first);
        Workers::await_start();
        if constexpr (Norm) {
            const float squares = cap_and_square(row, caps, params, h, axis);
            const float factor = norm_factor(Workers::width(args_), args_.eps, squares);
            Bits* to = const_cast<Bits*>(at(args_.y, args_.y_stride, row));
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) {
                float y[E::V];
#pragma unroll
                for (int j = 0; j < E::V; j++) {
                    y[j] = hw::mul(hw::mul(h[q * E::V + j], factor), weight[q * E::V + j]);
                }
                hw::store_row_quad(to + q * QUAD_STEP<E>, E::pack(y));
            }
        } else {
            cap(row, caps, params, h, axis);
        }
        if (Workers::thread() == 0) end_row(args_, row, caps.count);
    }

  private:
    // A set holds the slots of two sums: the projection and the sum of squares. A row needs two sets at most.
    static constexpr u32 SLOTS = 16;
    static constexpr u32 SET = 2 * SLOTS;
    static_assert(2 * SET * sizeof(float) <= SLOT_BYTES, "the slots of src/cuda/launch/shape.rs");

    // Whether the cap of profile 1 is loaded before the row's profile is known, and bounds with the axis. With two
    // inputs in 64 registers there are too few of them.
    static constexpr bool EARLY = Norm || !Add;

    AXISCAP_DEVICE float* slots() const { return reinterpret_cast<float*>(hw::shared_memory()); }

    // Fills the slots that no warp writes. Those of docs/operation.md are +0. The others are -0, and adding
    // -0 changes no value, not even the sign of a zero. The sum of 16 slots therefore has the bits of the sum
    // of fewer. The barrier of the first sum orders these stores before any read.
    AXISCAP_DEVICE void pad_slots() const {
        const u32 t = hw::thread(), warps = hw::threads() / WARP;
        if (t < warps || t >= SLOTS) return;
        u32 halved = 1;
        while (halved < warps) halved *= 2;
        const float pad = t < halved ? 0.0f : -0.0f;
#pragma unroll
        for (u32 set = 0; set < (Norm ? 4 : 1); set++) hw::store_shared(slots() + set * SLOTS + t, pad);
    }

    AXISCAP_DEVICE static float sum_of_slots(const float* slots) {
        float x[4];
        halve_quads<SLOTS / 4>(slots, 0, 1, x);
        return halve<4>(x);
    }

    AXISCAP_DEVICE void load_cap(CapRange caps, float (&axis)[VALUES], CapParams& params) const {
        if (caps.count == 0) return;
        Base::load_axis(caps.first, axis);
        if (EARLY) params = load_params(args_, caps.first);
    }

    AXISCAP_DEVICE void store(u32 row, const float (&h)[VALUES]) const {
        Bits* to = const_cast<Bits*>(at(args_.h, args_.h_stride, row));
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) hw::store_row_quad(to + q * QUAD_STEP<E>, E::pack(&h[q * E::V]));
    }

    // Caps the row and stores it if it changed, or is new.
    AXISCAP_DEVICE void cap(u32 row, CapRange caps, const CapParams& params, float (&h)[VALUES],
                            const float (&axis)[VALUES]) const {
        bool acts = false;
        if (caps.count > 0) {
            float part = warp_sum(thread_dot<E>(h, axis));
            const u32 t = hw::thread() % WARP;
            if (t < Workers::SENDERS) Workers::send(t, slots() + Workers::warp(), part);
            Workers::barrier();
            acts = step(row, sum_of_slots(slots()), params, h, axis);
        }
        if (Add || acts) store(row, h);
    }

    // Caps the row, stores it if it changed or is new, and returns its sum of squares. One barrier gives the
    // projection and the sum of squares. If the cap acts, the second sum is that of the changed row, and a
    // second pass through the same instructions gives it.
    AXISCAP_DEVICE float cap_and_square(u32 row, CapRange caps, const CapParams& params, float (&h)[VALUES],
                                        const float (&axis)[VALUES]) const {
        const u32 t = hw::thread() % WARP;
        float* set = slots();
        for (;;) {
            float parts[2] = {caps.count > 0 ? thread_dot<E>(h, axis) : 0.0f, thread_dot<E>(h, h)};
            // The lower half of the warp sums the projection, the upper half the squares.
            fold<1>(parts, WARP / 2);
            float sum = parts[0];
#pragma unroll
            for (int distance = WARP / 4; distance > 0; distance /= 2) {
                sum = hw::add(sum, hw::shuffle_xor(sum, distance));
            }
            static_assert(SLOTS == WARP / 2, "thread 16 writes to the slots of the second sum");
            if (t % SLOTS < Workers::SENDERS) {
                // A single sender is thread 0 or 16.
                const u32 of_sum = Workers::SENDERS == 1 ? t : t / SLOTS * SLOTS;
                Workers::send(t % SLOTS, set + of_sum + Workers::warp(), sum);
            }
            Workers::barrier();
            const float squares = sum_of_slots(set + SLOTS);
            const bool again = set != slots();
            if (again) return squares;
            const bool acts = caps.count > 0 && step(row, sum_of_slots(set), params, h, axis);
            if (Add || acts) store(row, h);
            if (!acts) return squares;
            set += SET;
        }
    }

    // Applies the cap, given the row's projection. Returns whether it acted.
    AXISCAP_DEVICE bool step(u32 row, float p, const CapParams& params, float (&h)[VALUES],
                             const float (&axis)[VALUES]) const {
        CapStep step = clamp_projection(p, params);
        if (step.acts) move_along(h, step.delta, axis);
        if (Workers::thread() == 0) write_stat(args_, row, 0, {p, step.after, step.flags});
        return step.acts;
    }
};

}  // namespace axiscap
