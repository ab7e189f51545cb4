// Few rows of at most 8192 elements, where latency counts: each row is loaded straight into registers, and so are the
// axes of its first caps, which are projected on the row as it came behind one barrier.
//
// Most caps leave most rows alone. Then the projections of all caps are those of the same row, and one round trip
// through shared memory gives them all. A cap that acts changes the row: those behind it are then taken one after the
// other, as the definition has them.
//
// Grid: any number of blocks, which stride over the rows. Block: (32 * ceil(width / 512), 1).
#pragma once

#include "resident.cuh"

namespace axiscap {

// Caps whose axes stay in registers, 16 per thread each.
constexpr u32 TOGETHER = 5;
static_assert(TOGETHER <= MOST_TOGETHER, "what one barrier can sum");

template <u32 K>
struct Index {
    static constexpr u32 value = K;
};
// f(Index<0>), f(Index<1>), ...: an axis is only in registers if its number is known when the code is compiled, and an
// unrolled loop becomes that too late for the compiler.
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
    using Base::at;
    using Base::inside;
    using Base::start_;

  public:
    AXISCAP_DEVICE DirectRows(const CapArgs& args) : Base(args) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        float axes[TOGETHER][VALUES];
        // Where all rows have the same caps their axes are loaded once, before the wait.
        bool held = args_.profile == nullptr;
        if (held) load_axes({args_.first, args_.count}, axes);
        Base::prefetch_axes(TOGETHER);
        if constexpr (Norm) Base::prefetch_weight();
        hw::wait_for_previous_kernel();

        for (u32 row = hw::block(); row < args_.rows; row += hw::blocks()) {
            float h[VALUES];
            load(row, h);
            CapRun run = caps_of_row(args_, row);
            if (!held) load_axes(run, axes);
            bool acted = apply_caps(row, run, h, axes);
            held = args_.profile == nullptr && run.count <= TOGETHER && !Norm;
            if constexpr (Norm) {
                // The weight takes the registers of an axis.
                Base::load_weight(axes[0]);
                float factor = norm_factor(args_, sum_(warp_sum(thread_dot<E>(h, h))));
                Base::store_normed(row, h, axes[0], factor);
            }
            if (Add || acted) Base::store(args_.h, args_.h_stride, row, h);
            if (hw::thread() == 0) end_row(args_, row, run.count);
        }
    }

  private:
    AXISCAP_DEVICE void load_axes(CapRun run, float (&axes)[TOGETHER][VALUES]) const {
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value < run.count) this->load_axis(run.first + k.value, axes[k.value]);
        });
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

    // Returns whether any cap changed the row.
    AXISCAP_DEVICE bool apply_caps(u32 row, CapRun run, float (&h)[VALUES], float (&axes)[TOGETHER][VALUES]) {
        const u32 together = run.count < TOGETHER ? run.count : TOGETHER;
        u32 done = 0;
        bool acted = false;
        if (together > 1) done = apply_together(row, run.first, together, h, axes, acted);
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value >= done && k.value < together) acted |= this->apply_one(row, run.first, k.value, h, axes[k.value]);
        });
        if (run.count > TOGETHER) {
            // The next cap's axis loads while this one's sum is under way.
            Base::load_axis(run.first + TOGETHER, axes[0]);
#pragma unroll 1
            for (u32 k = TOGETHER; k < run.count; k++) {
                if (k + 1 < run.count) Base::load_axis(run.first + k + 1, axes[1]);
                acted |= apply_one(row, run.first, k, h, axes[0]);
#pragma unroll
                for (int i = 0; i < VALUES; i++) axes[0][i] = axes[1][i];
            }
        }
        return acted;
    }

    // The caps `first` .. `first + count` on the row as it came. Returns how many of them are done with: all, if none
    // acts, else those up to the first that acts.
    AXISCAP_DEVICE u32 apply_together(u32 row, u32 first, u32 count, float (&h)[VALUES],
                                      const float (&axes)[TOGETHER][VALUES], bool& acted) {
        // Thread 4 k of each warp judges cap k.
        const u32 mine = hw::thread() % WARP / 4;
        const bool judges = hw::thread() % 4 == 0 && mine < count;
        CapParams params = {0.0f, 0.0f, 0.0f};
        if (judges) params = load_params(args_, first + mine);
        float parts[MOST_TOGETHER] = {};
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value < count) parts[k.value] = thread_dot<E>(h, axes[k.value]);
        });
        float p = sum_.of_each(parts);
        Verdict verdict = judge(p, params);
        u32 acting = hw::ballot(judges && verdict.acts);
        u32 actor = hw::lowest_bit(acting);  // WARP where none acts
        if (hw::thread() < WARP && judges && hw::thread() <= actor) {
            write_stat(args_, row, mine, {p, verdict.after, verdict.flags});
        }
        if (acting == 0) return count;
        acted = true;
        float delta = hw::shuffle(verdict.delta, actor);
        for_each_axis<TOGETHER>([&](auto k) {
            if (k.value == actor / 4) step_along(h, delta, axes[k.value]);
        });
        return actor / 4 + 1;
    }

    // Cap k of the row, with its axis. Returns whether it acted.
    AXISCAP_DEVICE bool apply_one(u32 row, u32 first, u32 k, float (&h)[VALUES], const float (&axis)[VALUES]) {
        CapParams params = load_params(args_, first + k);
        float p = sum_(warp_sum(thread_dot<E>(h, axis)));
        Verdict verdict = judge(p, params);
        if (verdict.acts) step_along(h, verdict.delta, axis);
        if (hw::thread() == 0) write_stat(args_, row, k, {p, verdict.after, verdict.flags});
        return verdict.acts;
    }

    GroupSum<SlotsInRegisters, 1> sum_;
};

}  // namespace axiscap
