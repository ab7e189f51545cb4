// The general path: fallback for any width, stride and alignment. It has the lane map of resident.cuh, but is
// slower.
//
// One group of min(ceil(width / 512), 32) warps works on a row. Warp w sums the segments w, w + 32, ... of
// the row. A row may be too long for registers, therefore each step reads the original row from memory and
// repeats the caps that acted so far. This keeps the row in f32 from the first cap to the one store at the
// end.
//
// Grid: any number of blocks, which stride over the rows. Block: (32 * warps, 1). Shared memory: the slots of
// reduce.cuh, then MAX_STEPS pairs of (delta, cap).
#pragma once

#include "reduce.cuh"
#include "cap_step.cuh"

namespace axiscap {

// Capacity of the list of steps in shared memory: the most caps that may act on one row. Mirrored by
// MAX_STEPS in src/op.rs.
constexpr u32 MAX_STEPS = 1024;

template <class E, bool Add, bool Norm>
class GeneralRows {
    typedef typename E::Bits Bits;

  public:
    AXISCAP_DEVICE GeneralRows(const CapArgs& args)
        : args_(args),
          first_segment_(hw::thread() / WARP),
          steps_(reinterpret_cast<float*>(hw::shared_memory() + SLOT_BYTES)) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        hw::wait_for_previous_kernel();
        for (u32 row = hw::block(); row < args_.rows; row += hw::blocks()) {
            acted_ = 0;
            apply_caps(row);
            finish(row);
            // Other threads may still read the list of steps that the next row overwrites. With one warp the
            // next sum has no barrier to separate the two.
            hw::barrier<1>();
        }
    }

  private:
    AXISCAP_DEVICE u32 segments() const { return (args_.width + SEGMENT - 1) / SEGMENT; }

    // Returns this thread's first element of a segment.
    AXISCAP_DEVICE u32 start(u32 segment) const { return segment * SEGMENT + hw::thread() % WARP * E::V; }

    // Calls f(segment) for each of this warp's segments, ascending.
    template <class F>
    AXISCAP_DEVICE void each_segment(F f) const {
        for (u32 s = first_segment_; s < segments(); s += MAX_SLOTS) f(s);
    }

    // Returns the slot of this warp: the sums of its segments, added in ascending order.
    template <class F>
    AXISCAP_DEVICE float slot(F thread_part) const {
        float slot = 0.0f;
        bool first = true;
        each_segment([&](u32 s) {
            float x = warp_sum(thread_part(s));
            slot = first ? x : hw::add(slot, x);
            first = false;
        });
        return slot;
    }

    AXISCAP_DEVICE void load_quad(const Bits* row, u32 e, float* values) const {
        if (args_.wide) {
            Quad raw = Quad{{0, 0, 0, 0}};
            if (e < args_.width) raw = hw::load_row_quad(row + e);
            E::unpack(raw, values);
        } else {
#pragma unroll
            for (int j = 0; j < E::V; j++) {
                values[j] = e + j < args_.width ? E::widen(hw::load_row(row + e + j)) : 0.0f;
            }
        }
    }

    AXISCAP_DEVICE const float* axis(u32 cap) const {
        return args_.axes + static_cast<u64>(cap) * args_.axis_stride;
    }

    // Loads the values e .. e + V of the row as they are after the caps that acted so far.
    AXISCAP_DEVICE void load(u32 row, u32 e, float* h) const {
        if constexpr (Add) {
            float r[E::V];
            load_quad(static_cast<const Bits*>(args_.x) + row * args_.x_stride, e, h);
            load_quad(static_cast<const Bits*>(args_.r) + row * args_.r_stride, e, r);
#pragma unroll
            for (int j = 0; j < E::V; j++) h[j] = hw::add(h[j], r[j]);
        } else {
            load_quad(static_cast<const Bits*>(args_.h) + row * args_.h_stride, e, h);
        }
#pragma unroll 1
        for (u32 i = 0; i < acted_; i++) {
            float delta = hw::load_shared(steps_ + 2 * i);
            float v[E::V];
            load_values<E::V>(axis(hw::to_bits(hw::load_shared(steps_ + 2 * i + 1))) + e, v);
#pragma unroll
            for (int j = 0; j < E::V; j++) h[j] = hw::fma(delta, v[j], h[j]);
        }
    }

    // Loads this thread's values of a segment.
    AXISCAP_DEVICE void load_segment(u32 row, u32 segment, float (&h)[VALUES]) const {
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) load(row, start(segment) + q * QUAD_STEP<E>, &h[q * E::V]);
    }

    AXISCAP_DEVICE void apply_caps(u32 row) {
        CapRange caps = caps_of_row(args_, row);
        for (u32 k = 0; k < caps.count; k++) {
            u32 cap = caps.first + k;
            float p = sum_(slot([&](u32 segment) {
                float h[VALUES], v[VALUES];
                load_segment(row, segment, h);
                load_padded<E>(axis(cap) + start(segment), v);
                return thread_dot<E>(h, v);
            }));
            CapStep step = clamp_projection(p, load_params(args_, cap));
            if (step.acts) {
                if (hw::thread() == 0) {
                    hw::store_shared(steps_ + 2 * acted_, step.delta);
                    hw::store_shared(steps_ + 2 * acted_ + 1, hw::from_bits(cap));
                }
                acted_++;
                hw::barrier<1>();
            }
            if (hw::thread() == 0) write_stat(args_, row, k, {p, step.after, step.flags});
        }
        if (hw::thread() == 0) end_row(args_, row, caps.count);
    }

    AXISCAP_DEVICE void store_quad(void* base, i64 stride, u32 row, u32 e, const float* values) const {
        Bits* to = static_cast<Bits*>(base) + row * stride + e;
        if (args_.wide) {
            if (e < args_.width) hw::store_row_quad(to, E::pack(values));
        } else {
#pragma unroll
            for (int j = 0; j < E::V; j++) {
                if (e + j < args_.width) hw::store_row(to + j, E::narrow(values[j]));
            }
        }
    }

    AXISCAP_DEVICE float weight(u32 e) const { return e < args_.width ? hw::load_table(args_.weight + e) : 0.0f; }

    AXISCAP_DEVICE void finish(u32 row) {
        float factor = 0.0f;
        if constexpr (Norm) {
            factor = norm_factor(args_, sum_(slot([&](u32 segment) {
                float h[VALUES];
                load_segment(row, segment, h);
                return thread_dot<E>(h, h);
            })));
        }
        if (!Add && !Norm && acted_ == 0) return;
        each_segment([&](u32 segment) {
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) {
                u32 e = start(segment) + q * QUAD_STEP<E>;
                float h[E::V];
                load(row, e, h);
                if (Add || acted_ != 0) store_quad(args_.h, args_.h_stride, row, e, h);
                if constexpr (Norm) {
#pragma unroll
                    for (int j = 0; j < E::V; j++) h[j] = hw::mul(hw::mul(h[j], factor), weight(e + j));
                    store_quad(args_.y, args_.y_stride, row, e, h);
                }
            }
        });
    }

    const CapArgs& args_;
    const u32 first_segment_;
    float* const steps_;  // in shared memory: the caps that acted on this row, in order
    u32 acted_ = 0;
    GroupSum<SlotsByShuffle, 1> sum_;
};

}  // namespace axiscap
