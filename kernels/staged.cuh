// Many rows of at most 16384 elements, with 64 registers per thread, so that two blocks of 8192 elements share a
// multiprocessor. The rows to come are on their way into shared memory while one is worked on: without registers, and
// without a barrier, because each thread copies and reads only its own 16-byte pieces.
//
// Grid: any number of blocks; groups stride over the rows. Block: (32 * ceil(width / 512), groups).
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
        // Which cap's axis is in `axis`. With one cap for all rows it is loaded once, before the wait.
        u32 held = NONE;
        if (KEEPS_AXIS && args_.profile == nullptr && args_.count > 0) {
            Base::load_axis(args_.first, axis);
            held = args_.first;
        }
        Base::prefetch_axes(1);
        if constexpr (Norm) Base::prefetch_weight();
        hw::wait_for_previous_kernel();

        const u32 step = hw::blocks() * hw::groups();
        u32 row = hw::block() * hw::groups() + hw::group();
        u32 stage = 0;
#pragma unroll 1
        for (u32 s = 0; s < args_.stages; s++) fetch(row + s * step, s);
        for (; row < args_.rows; row += step) {
            float h[VALUES];
            take(stage, h);
            fetch(row + args_.stages * step, stage);
            stage = stage + 1 == args_.stages ? 0 : stage + 1;
            bool acted = apply_caps(row, h, axis, held);
            if constexpr (Norm) {
                // The axis is no longer needed when the weight takes its registers.
                Base::load_weight(axis);
                held = NONE;
                float factor = norm_factor(args_, sum_(warp_sum(thread_dot<E>(h, h))));
                Base::store_normed(row, h, axis, factor);
            }
            if (Add || acted) Base::store(args_.h, args_.h_stride, row, h);
        }
    }

  private:
    static constexpr u32 NONE = ~0u;
    // Whether an axis stays in registers from row to row. With two staged inputs there are too few of them: the
    // axis then comes from L1 for each row, and again where the cap acts.
    static constexpr bool KEEPS_AXIS = !Add;

    // A stage is, per group, inputs x quads x threads pieces of 16 bytes: neighbouring threads use neighbouring
    // banks, and only the thread itself touches its pieces. Its quad q of an input is q * threads pieces on.
    AXISCAP_DEVICE unsigned char* pieces(u32 stage, u32 input) const {
        u32 index = ((stage * hw::groups() + hw::group()) * (Add ? 2 : 1) + input) * E::QUADS;
        return hw::shared_memory() + hw::groups() * SLOT_BYTES + (index * hw::threads() + hw::thread()) * sizeof(Quad);
    }

    AXISCAP_DEVICE void copy(const void* base, i64 stride, u32 row, unsigned char* to) const {
        const Bits* from = static_cast<const Bits*>(base) + row * stride;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            // Outside the row nothing is read, but the address still has to be one: the row's first element's.
            bool in = inside(q);
            hw::copy_async(to + q * hw::threads() * sizeof(Quad), from + (in ? start_ + q * QUAD_STEP<E> : 0), in);
        }
    }

    // Starts a row's way into a stage. Past the last row nothing is copied, but it still counts as a group of
    // copies, so that the stages keep their turns.
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

    // Returns whether any cap changed the row.
    AXISCAP_DEVICE bool apply_caps(u32 row, float (&h)[VALUES], float (&axis)[VALUES], u32& held) {
        CapRun run = caps_of_row(args_, row);
        bool acted = false;
        if (KEEPS_AXIS && run.count > 0 && held != run.first) Base::load_axis(run.first, axis);
        for (u32 k = 0; k < run.count; k++) {
            u32 cap = run.first + k;
            float part;
            if constexpr (KEEPS_AXIS) {
                part = thread_dot<E>(h, axis);
            } else {
                part = streamed_dot<E>(h, Base::axis_at(cap));
            }
            float p = sum_(warp_sum(part));
            // Latency hides behind other rows here, but registers are short while the sum is under way.
            Verdict verdict = judge(p, load_params(args_, cap));
            if (verdict.acts) {
                acted = true;
                if constexpr (!KEEPS_AXIS) Base::load_axis(cap, axis);
                step_along(h, verdict.delta, axis);
            }
            if (hw::thread() == 0) write_stat(args_, row, k, {p, verdict.after, verdict.flags});
            if (KEEPS_AXIS && k + 1 < run.count) Base::load_axis(cap + 1, axis);
        }
        if (hw::thread() == 0) end_row(args_, row, run.count);
        if (KEEPS_AXIS && run.count > 0) held = run.first + run.count - 1;
        return acted;
    }

    // Groups of a block that have more than one warp, and so meet: src/cuda/shape.rs.
    static constexpr u32 MOST_MEETING = 4;

    GroupSum<SlotsByShuffle, MOST_MEETING> sum_;
};

}  // namespace axiscap
