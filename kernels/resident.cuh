// Rows of up to 16384 elements: one group of ceil(width / 512) warps per row, the row in registers from its one
// read to its one write, however many caps it has.
//
// Grid: any number of blocks; groups stride over the rows. Block: (32 * ceil(width / 512), groups).
// Every pointer and stride must be a multiple of 16 bytes and the width a multiple of E::V: then a warp's 16-byte
// loads cover 512 contiguous bytes and a quad lies wholly inside the row or wholly outside. Other rows take
// general.cuh.
//
// Staged = false (at most 8192 elements, 128 registers): for few rows, where latency counts. The row is loaded
// straight into registers, and the next cap's axis while this one's sum is under way.
// Staged = true (64 registers, so that two blocks of 8192 elements share a multiprocessor): for many rows. Those to
// come are on their way into shared memory while one is worked on: without registers, and without a barrier,
// because each thread copies and reads only its own 16-byte pieces.
#pragma once

#include "reduce.cuh"
#include "verdict.cuh"

namespace axiscap {

template <class E, bool Add, bool Norm, bool Staged>
class ResidentRows {
    typedef typename E::Bits Bits;

  public:
    AXISCAP_DEVICE ResidentRows(const CapArgs& args)
        : args_(args), start_(hw::thread() / WARP * SEGMENT + hw::thread() % WARP * E::V) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        float axis[VALUES];
        // Which cap's axis is in `axis`. With one cap for all rows it is loaded once, before the wait.
        u32 held = NONE;
        if (KEEPS_AXIS && args_.profile == nullptr && args_.count > 0) {
            load_axis(args_.first, axis);
            held = args_.first;
        }
        prefetch_tables();
        hw::wait_for_previous_kernel();

        const u32 step = hw::blocks() * hw::groups();
        u32 row = hw::block() * hw::groups() + hw::group();
        u32 stage = 0;
        if constexpr (Staged) {
#pragma unroll 1
            for (u32 s = 0; s < args_.stages; s++) fetch(row + s * step, s);
        }
        for (; row < args_.rows; row += step) {
            float h[VALUES];
            if constexpr (Staged) {
                take(stage, h);
                fetch(row + args_.stages * step, stage);
                stage = stage + 1 == args_.stages ? 0 : stage + 1;
            } else {
                load(row, h);
            }
            bool acted = apply_caps(row, h, axis, held);
            if constexpr (Norm) {
                // The axis is no longer needed when the weight takes its registers.
                load_weight(axis);
                held = NONE;
                float factor = norm_factor(args_, sum_(warp_sum(thread_dot<E>(h, h))));
                store_normed(row, h, axis, factor);
            }
            if (Add || acted) store(args_.h, args_.h_stride, row, h);
        }
    }

  private:
    static constexpr u32 NONE = ~0u;
    // Whether an axis stays in registers from row to row. With two staged inputs there are too few of them: the
    // axis then comes from L1 for each row, and again where the cap acts.
    static constexpr bool KEEPS_AXIS = !(Staged && Add);

    // Quad q of this thread starts at element start_ + q * QUAD_STEP. Addresses are taken once per row and stepped
    // by constants: that keeps them in few registers.
    AXISCAP_DEVICE bool inside(int q) const { return start_ + q * QUAD_STEP<E> < args_.width; }

    AXISCAP_DEVICE const float* axis_at(u32 cap) const {
        return args_.axes + static_cast<u64>(cap) * args_.axis_stride + start_;
    }
    AXISCAP_DEVICE void load_axis(u32 cap, float (&axis)[VALUES]) const { load_padded<E>(axis_at(cap), axis); }

    // Tables come out of device memory once per token: ask for them before waiting for the previous kernel.
    AXISCAP_DEVICE void prefetch_tables() const {
        if (args_.profile == nullptr && hw::thread() % 2 == 0) {
            // 32 floats are a 128-byte line, so that every other thread asks for one line of its 16 values.
#pragma unroll 1
            for (u32 k = 1; k < args_.count; k++) {
                hw::prefetch_table(args_.axes + static_cast<u64>(args_.first + k) * args_.axis_stride +
                                   hw::thread() * VALUES);
            }
        }
        if constexpr (Norm) {
            if (hw::thread() % 2 == 0 && hw::thread() * VALUES < args_.width) {
                hw::prefetch_table(args_.weight + hw::thread() * VALUES);
            }
        }
    }

    AXISCAP_DEVICE const Bits* at(const void* base, i64 stride, u32 row) const {
        return static_cast<const Bits*>(base) + row * stride + start_;
    }

    AXISCAP_DEVICE void load_rows(const void* base, i64 stride, u32 row, Quad (&raw)[E::QUADS]) const {
        const Bits* from = at(base, stride, row);
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            raw[q] = Quad{{0, 0, 0, 0}};
            if (inside(q)) raw[q] = hw::load_row_quad(from + q * QUAD_STEP<E>);
        }
    }

    AXISCAP_DEVICE void load(u32 row, float (&h)[VALUES]) const {
        Quad a[E::QUADS];
        if constexpr (Add) {
            // All loads are on their way before the first is needed.
            Quad b[E::QUADS];
            load_rows(args_.x, args_.x_stride, row, a);
            load_rows(args_.r, args_.r_stride, row, b);
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) {
                float x[E::V], r[E::V];
                E::unpack(a[q], x);
                E::unpack(b[q], r);
#pragma unroll
                for (int j = 0; j < E::V; j++) h[q * E::V + j] = hw::add(x[j], r[j]);
            }
        } else {
            load_rows(args_.h, args_.h_stride, row, a);
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) E::unpack(a[q], &h[q * E::V]);
        }
    }

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
        if (KEEPS_AXIS && run.count > 0 && held != run.first) load_axis(run.first, axis);
        for (u32 k = 0; k < run.count; k++) {
            u32 cap = run.first + k;
            CapParams params;
            float part;
            float next[VALUES];
            if constexpr (KEEPS_AXIS) {
                part = thread_dot<E>(h, axis);
            } else {
                part = thread_dot<E>(h, axis_at(cap));
            }
            if constexpr (!Staged) {
                params = load_params(args_, cap);
                if (k + 1 < run.count) load_axis(cap + 1, next);
            }
            float p = sum_(warp_sum(part));
            // Latency hides behind other rows here, but registers are short while the sum is under way.
            if constexpr (Staged) params = load_params(args_, cap);
            Verdict verdict = judge(p, params);
            if (verdict.acts) {
                acted = true;
                if constexpr (!KEEPS_AXIS) load_axis(cap, axis);
#pragma unroll
                for (int i = 0; i < VALUES; i++) h[i] = hw::fma(verdict.delta, axis[i], h[i]);
            }
            if (hw::thread() == 0) write_stat(args_, row, k, {p, verdict.after, verdict.flags});
            if (k + 1 < run.count) {
                if constexpr (!Staged) {
#pragma unroll
                    for (int i = 0; i < VALUES; i++) axis[i] = next[i];
                } else if constexpr (KEEPS_AXIS) {
                    load_axis(cap + 1, axis);
                }
            }
        }
        if (hw::thread() == 0) end_row(args_, row, run.count);
        if (KEEPS_AXIS && run.count > 0) held = run.first + run.count - 1;
        return acted;
    }

    AXISCAP_DEVICE void load_weight(float (&weight)[VALUES]) const {
        const float* from = args_.weight + start_;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
#pragma unroll
            for (int j = 0; j < E::V; j += 4) {
                Quad quad = Quad{{0, 0, 0, 0}};
                if (inside(q)) quad = hw::load_table_quad(from + q * QUAD_STEP<E> + j);
                F32::unpack(quad, &weight[q * E::V + j]);
            }
        }
    }

    AXISCAP_DEVICE void store(void* base, i64 stride, u32 row, const float (&values)[VALUES]) const {
        Bits* to = static_cast<Bits*>(base) + row * stride + start_;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            if (inside(q)) hw::store_row_quad(to + q * QUAD_STEP<E>, E::pack(&values[q * E::V]));
        }
    }

    AXISCAP_DEVICE void store_normed(u32 row, const float (&h)[VALUES], const float (&weight)[VALUES],
                                     float factor) const {
        Bits* to = static_cast<Bits*>(args_.y) + row * args_.y_stride + start_;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            float y[E::V];
#pragma unroll
            for (int j = 0; j < E::V; j++) y[j] = hw::mul(hw::mul(h[q * E::V + j], factor), weight[q * E::V + j]);
            if (inside(q)) hw::store_row_quad(to + q * QUAD_STEP<E>, E::pack(y));
        }
    }

    const CapArgs& args_;
    const u32 start_;  // this thread's first element
    typename Select<Staged, GroupSum<SlotsByShuffle>, GroupSum<SlotsInRegisters>>::Type sum_;
};

}  // namespace axiscap
