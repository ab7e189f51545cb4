// Common base of single.cuh, cluster.cuh and direct.cuh (few rows), pairs.cuh and staged.cuh (many rows), for rows
// of at most 16384 elements. A group of ceil(width / 512) warps works on a row. The row is read once, stays in
// registers for all of its caps, and is written at most once.
//
// Data layout: every pointer and stride is a multiple of 16 bytes and the width is a multiple of E::V. A
// warp's 16-byte loads then cover 512 contiguous bytes, and a quad lies either inside the row or outside.
// Other rows take general.cuh.
#pragma once

#include "reduce.cuh"
#include "cap_step.cuh"

namespace axiscap {

template <class E>
class ResidentRows {
  protected:
    typedef typename E::Bits Bits;

    AXISCAP_DEVICE ResidentRows(const CapArgs& args) : ResidentRows(args, hw::thread() / WARP) {}
    // Takes the index of this warp in its row, where it differs from that in the block.
    AXISCAP_DEVICE ResidentRows(const CapArgs& args, u32 warp)
        : args_(args), start_(warp * SEGMENT + hw::thread() % WARP * E::V) {}

    // Quad q of this thread starts at element start_ + q * QUAD_STEP. Each row has one address, and quads are
    // constant offsets from it, which saves registers.
    AXISCAP_DEVICE bool inside(int q) const { return start_ + q * QUAD_STEP<E> < args_.width; }

    AXISCAP_DEVICE const float* axis_at(u32 cap) const {
        return args_.axes + static_cast<u64>(cap) * args_.axis_stride + start_;
    }
    AXISCAP_DEVICE void load_axis(u32 cap, float (&axis)[VALUES]) const { load_padded<E>(axis_at(cap), axis); }

    // Prefetches the axes of the caps from `from` on into L2, before the wait for the previous kernel. In a
    // decode they come from device memory once per token.
    AXISCAP_DEVICE void prefetch_axes(u32 from) const {
        if (args_.profile != nullptr || hw::thread() % 2 != 0) return;
        // A 128-byte line holds 32 floats, the values of two threads. Every other thread asks for one line.
#pragma unroll 1
        for (u32 k = from; k < args_.count; k++) {
            hw::prefetch_table(args_.axes + static_cast<u64>(args_.first + k) * args_.axis_stride +
                               hw::thread() * VALUES);
        }
    }
    AXISCAP_DEVICE void prefetch_weight() const {
        if (hw::thread() % 2 == 0 && hw::thread() * VALUES < args_.width) {
            hw::prefetch_table(args_.weight + hw::thread() * VALUES);
        }
    }

    AXISCAP_DEVICE const Bits* at(const void* base, i64 stride, u32 row) const {
        return static_cast<const Bits*>(base) + row * stride + start_;
    }

    // Loads this thread's values of a row, or of the sum of two. With `Whole` every quad is inside.
    template <bool Add, bool Whole>
    AXISCAP_DEVICE void load(u32 row, float (&h)[VALUES]) const {
        Quad a[E::QUADS];
        if constexpr (Add) {
            // All loads are issued before the first value is used.
            Quad b[E::QUADS];
            load_quads<Whole>(args_.x, args_.x_stride, row, a);
            load_quads<Whole>(args_.r, args_.r_stride, row, b);
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) {
                float x[E::V], r[E::V];
                E::unpack(a[q], x);
                E::unpack(b[q], r);
#pragma unroll
                for (int j = 0; j < E::V; j++) h[q * E::V + j] = hw::add(x[j], r[j]);
            }
        } else {
            load_quads<Whole>(args_.h, args_.h_stride, row, a);
#pragma unroll
            for (int q = 0; q < E::QUADS; q++) E::unpack(a[q], &h[q * E::V]);
        }
    }

    template <bool Whole>
    AXISCAP_DEVICE void load_quads(const void* base, i64 stride, u32 row, Quad (&raw)[E::QUADS]) const {
        const Bits* from = at(base, stride, row);
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            if constexpr (Whole) {
                raw[q] = hw::load_row_quad(from + q * QUAD_STEP<E>);
            } else {
                raw[q] = Quad{{0, 0, 0, 0}};
                if (inside(q)) raw[q] = hw::load_row_quad(from + q * QUAD_STEP<E>);
            }
        }
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
};

// Computes h += delta * axis.
AXISCAP_DEVICE void move_along(float (&h)[VALUES], float delta, const float (&axis)[VALUES]) {
#pragma unroll
    for (int i = 0; i < VALUES; i++) h[i] = hw::fma(delta, axis[i], h[i]);
}

}  // namespace axiscap
