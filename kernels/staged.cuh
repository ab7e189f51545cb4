// The staged path, for many rows of at most 16384 elements. The next 1 to 3 rows are copied to shared memory
// while one is capped.
//
// Grid: any number of blocks. Groups stride over the rows. Block: (32 * ceil(width / 512), groups). Data
// layout: resident.cuh.
//
// Improves on direct.cuh where bandwidth counts: asynchronous copies take no registers, and 64 registers per
// thread let two blocks of 8192 elements share a multiprocessor. Staging needs no barrier, because each
// thread copies and reads only its own 16-byte pieces.
#pragma once

#include "resident.cuh"

namespace axiscap {

template <class E, bool Add, bool Norm>
class StagedRows : ResidentRows<E> {
    typedef ResidentRows<E> Base;
    typedef typename Base::Bits Bits;
    using Base::args_;
    using Base::at;
    using Base::inside;
    using Base::start_;

  public:
    AXISCAP_DEVICE StagedRows(const CapArgs& args) : Base(args) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        float axis[VALUES];
        // The cap whose axis is in `axis`. If all rows have one cap, its axis is loaded once, before the
        // wait.
        u32 loaded = NONE;
        if (KEEPS_AXIS && args_.profile == nullptr && args_.count > 0) {
            Base::load_axis(args_.first, axis);
            loaded = args_.first;
        }
        Base::prefetch_axes(1);
        if constexpr (Norm) Base::prefetch_weight();
        hw::wait_for_previous_kernel();

        const u32 groups = hw::blocks() * hw::groups();  // of the grid
        u32 row = hw::block() * hw::groups() + hw::group();
        u32 stage = 0;
#pragma unroll 1
        for (u32 s = 0; s < args_.stages; s++) fetch(row + s * groups, s);
        // The next row's profile is loaded while this row is capped. Each row would wait for its own.
        u32 next_profile = row < args_.rows ? profile_of_row(args_, row) : 0;
        for (; row < args_.rows; row += groups) {
            float h[VALUES];
            take(stage, h);
            fetch(row + args_.stages * groups, stage);
            stage = stage + 1 == args_.stages ? 0 : stage + 1;
            const u32 profile = next_profile;
            if (row + groups < args_.rows) next_profile = profile_of_row(args_, row + groups);
            bool acted = apply_caps(row, profile, h, axis, loaded);
            if constexpr (Norm) {
                // The weight overwrites the registers of the axis.
                Base::load_weight(axis);
                loaded = NONE;
                float factor = norm_factor(args_, sum_(warp_sum(thread_dot<E>(h, h))));
                Base::store_normed(row, h, axis, factor);
            }
            if (Add || acted) Base::store(args_.h, args_.h_stride, row, h);
        }
    }

  private:
    static constexpr u32 NONE = ~0u;
    // Whether an axis stays in registers from row to row. With two staged inputs there are too few registers.
    // The axis then comes from L1 for each row, and again if the cap acts.
    static constexpr bool KEEPS_AXIS = !Add;

    // Returns this thread's first piece of an input in a stage. Per group, a stage holds inputs x quads x
    // threads pieces of 16 bytes, and quad q of an input lies q * threads pieces further. Neighbouring
    // threads use neighbouring banks, and each thread accesses only its own pieces.
    AXISCAP_DEVICE unsigned char* pieces(u32 stage, u32 input) const {
        u32 index = ((stage * hw::groups() + hw::group()) * (Add ? 2 : 1) + input) * E::QUADS;
        return hw::shared_memory() + hw::groups() * SLOT_BYTES + (index * hw::threads() + hw::thread()) * sizeof(Quad);
    }

    AXISCAP_DEVICE void copy(const void* base, i64 stride, u32 row, unsigned char* to) const {
        const Bits* from = static_cast<const Bits*>(base) + row * stride;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            // A copy outside the row reads no byte, but its address must be valid. It gets that of the first
            // element.
            bool in = inside(q);
            hw::copy_async(to + q * hw::threads() * sizeof(Quad), from + (in ? start_ + q * QUAD_STEP<E> : 0), in);
        }
    }

    // Starts the copy of a row to a stage. A row past the last one gives an empty group of copies, which
    // keeps the count of outstanding groups in step with the stages.
    AXISCAP_DEVICE void fetch(u32 row, u32 stage) const {
        if (row < args_.rows) {
            if constexpr (Add) {
                copy(args_.x, args_.x_stride, row, pieces(stage, 0));
                copy(args_.r, args_.r_stride, row, pieces(stage, 1));
            } else {
                copy(args_.h, args_.h_stride, row, pieces(stage, 0));
            }
        }
        hw::commit_copies();
    }

    // Waits for the oldest stage and loads its row into registers.
    AXISCAP_DEVICE void take(u32 stage, float (&h)[VALUES]) const {
        switch (args_.stages) {
            case 1: hw::await_copies<0>(); break;
            case 2: hw::await_copies<1>(); break;
            default: hw::await_copies<2>(); break;
        }
        const unsigned char* from = pieces(stage, 0);
        const unsigned char* second = pieces(stage, 1);
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            E::unpack(hw::load_shared_quad(from + q * hw::threads() * sizeof(Quad)), &h[q * E::V]);
            if constexpr (Add) {
                float r[E::V];
                E::unpack(hw::load_shared_quad(second + q * hw::threads() * sizeof(Quad)), r);
#pragma unroll
                for (int j = 0; j < E::V; j++) h[q * E::V + j] = hw::add(h[q * E::V + j], r[j]);
            }
        }
    }

    // Applies the caps of a row. Returns whether any of them changed the row.
    AXISCAP_DEVICE bool apply_caps(u32 row, u32 profile, float (&h)[VALUES], float (&axis)[VALUES], u32& loaded) {
        CapRange caps = caps_of_profile(args_, profile);
        bool acted = false;
        if (KEEPS_AXIS && caps.count > 0 && loaded != caps.first) Base::load_axis(caps.first, axis);
        for (u32 k = 0; k < caps.count; k++) {
            u32 cap = caps.first + k;
            float part;
            if constexpr (KEEPS_AXIS) {
                part = thread_dot<E>(h, axis);
            } else {
                part = thread_dot_by_quad<E>(h, Base::axis_at(cap));
            }
            float p = sum_(warp_sum(part));
            // The bounds are loaded after the sum, which needs the registers. Other rows hide the latency of
            // the load.
            CapStep step = clamp_projection(p, load_params(args_, cap));
            if (step.acts) {
                acted = true;
                if constexpr (!KEEPS_AXIS) Base::load_axis(cap, axis);
                move_along(h, step.delta, axis);
            }
            if (hw::thread() == 0) write_stat(args_, row, k, {p, step.after, step.flags});
            if (KEEPS_AXIS && k + 1 < caps.count) Base::load_axis(cap + 1, axis);
        }
        if (hw::thread() == 0) end_row(args_, row, caps.count);
        if (KEEPS_AXIS && caps.count > 0) loaded = caps.first + caps.count - 1;
        return acted;
    }

    // The most groups of more than one warp that a block has (src/cuda/launch/kernel.rs). Each takes a
    // barrier.
    static constexpr u32 MAX_GROUPS = 4;

    GroupSum<SlotsByShuffle, MAX_GROUPS> sum_;
};

}  // namespace axiscap
