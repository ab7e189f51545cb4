// The path for many rows with two to eight caps each, in place: the same caps for all rows, and rows of at
// most 8192 elements. The axes stay in shared memory, and a group caps two rows at a time.
//
// Grid: any number of blocks. Groups stride over the rows. Block: (32 * ceil(width / 512), groups). Data
// layout: resident.cuh.
//
// Improves on staged.cuh where a row has several caps: there the axes of each row come from L2, which takes
// longer than the row itself. Here an axis is read from shared memory, once for two rows.
#pragma once

#include "resident.cuh"

namespace axiscap {

template <class E>
class PairedRows : ResidentRows<E> {
    typedef ResidentRows<E> Base;
    typedef typename Base::Bits Bits;
    using Base::args_;
    using Base::inside;
    using Base::start_;

  public:
    AXISCAP_DEVICE PairedRows(const CapArgs& args) : Base(args) {}

    AXISCAP_DEVICE void run() {
        hw::allow_next_kernel();
        pad_slots();
        copy_axes();
        hw::wait_for_previous_kernel();

        const u32 groups = hw::blocks() * hw::groups();  // of the grid
        u32 row = hw::block() * hw::groups() + hw::group();
        fetch(row, row + groups);
        hw::await_copies<0>();
        // Every thread reads the axes that others copied.
        hw::block_barrier();

        // Thread 4 k of each warp evaluates cap k.
        const u32 mine = hw::thread() % WARP / 4;
        const bool evaluates = hw::thread() % 4 == 0 && mine < args_.count;
        CapParams params = {0.0f, 0.0f, 0.0f};
        if (evaluates) params = load_params(args_, args_.first + mine);
#pragma unroll 1
        for (; row < args_.rows; row += 2 * groups) {
            Pair pair = {row, row + groups, row + groups < args_.rows};
            hw::await_copies<0>();
            float a[VALUES], b[VALUES];
            take(0, a);
            take(1, b);
            fetch(row + 2 * groups, row + 3 * groups);
            apply_caps(pair, params, evaluates, a, b);
        }
    }

  private:
    // The rows of a pair. The second one may be past the end. Its values are then those of an earlier row, or
    // none, and are not used.
    struct Pair {
        u32 first, second;
        bool two;
    };

    // A group's shared memory: [2 turns][2 rows][32] slots of single sums, then [2 turns][2 rows][warps][8]
    // slots of sums together.
    AXISCAP_DEVICE u32 warps() const { return hw::threads() / WARP; }
    AXISCAP_DEVICE u32 group_floats() const { return 4 * MAX_SLOTS + 4 * MAX_TOGETHER * warps(); }
    AXISCAP_DEVICE float* floats() const { return reinterpret_cast<float*>(hw::shared_memory()); }
    AXISCAP_DEVICE float* slots() const { return floats() + hw::group() * group_floats(); }
    AXISCAP_DEVICE float* axes() const { return floats() + hw::groups() * group_floats(); }
    AXISCAP_DEVICE unsigned char* pieces(u32 input) const {
        u32 index = (hw::group() * 2 + input) * E::QUADS;
        return reinterpret_cast<unsigned char*>(axes() + args_.count * args_.axis_stride) +
               (index * hw::threads() + hw::thread()) * sizeof(Quad);
    }

    AXISCAP_DEVICE void pad_slots() const {
        const u32 t = hw::thread();
        if (t < warps() || t >= MAX_SLOTS) return;
#pragma unroll
        for (int set = 0; set < 4; set++) hw::store_shared(slots() + set * MAX_SLOTS + t, 0.0f);
    }

    AXISCAP_DEVICE void copy_axes() const {
        const float* from = args_.axes + static_cast<u64>(args_.first) * args_.axis_stride;
        const u32 all = hw::threads() * hw::groups(), me = hw::group() * hw::threads() + hw::thread();
#pragma unroll 1
        for (u32 i = 4 * me; i < args_.count * args_.axis_stride; i += 4 * all) {
            hw::copy_table_async(axes() + i, from + i);
        }
        hw::commit_copies();
    }

    // Starts the copies of two rows. Rows past the last one are left out.
    AXISCAP_DEVICE void fetch(u32 first, u32 second) const {
        fetch_row(first, 0);
        fetch_row(second, 1);
        hw::commit_copies();
    }

    AXISCAP_DEVICE void fetch_row(u32 row, u32 input) const {
        if (row >= args_.rows) return;
        const Bits* from = static_cast<const Bits*>(args_.h) + row * args_.h_stride;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            // As in staged.cuh: a copy outside the row reads no byte.
            bool in = inside(q);
            hw::copy_async(pieces(input) + q * hw::threads() * sizeof(Quad),
                           from + (in ? start_ + q * QUAD_STEP<E> : 0), in);
        }
    }

    AXISCAP_DEVICE void take(u32 input, float (&h)[VALUES]) const {
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
            E::unpack(hw::load_shared_quad(pieces(input) + q * hw::threads() * sizeof(Quad)), &h[q * E::V]);
        }
    }

    AXISCAP_DEVICE void load_axis(u32 k, float (&axis)[VALUES]) const {
        const float* from = axes() + k * args_.axis_stride + start_;
#pragma unroll
        for (int q = 0; q < E::QUADS; q++) {
#pragma unroll
            for (int j = 0; j < E::V; j += 4) {
                F32::unpack(hw::load_shared_quad(from + q * QUAD_STEP<E> + j), &axis[q * E::V + j]);
            }
        }
    }

    AXISCAP_DEVICE void apply_caps(const Pair& pair, const CapParams& params, bool evaluates, float (&a)[VALUES],
                                   float (&b)[VALUES]) {
        // Both rows' projections on all axes, with one barrier. They hold up to the first cap that acts.
        float p, q;
        project_together(a, b, p, q);
        CapStep first = clamp_projection(p, params), second = clamp_projection(q, params);
        const u32 lane = hw::thread() % WARP;
        const u32 acting = hw::lowest_bit(hw::ballot(evaluates && first.acts));  // WARP if none acts
        const u32 other = hw::lowest_bit(hw::ballot(evaluates && second.acts && pair.two));
        if (hw::thread() < WARP && evaluates) {
            if (lane <= acting) write_stat(args_, pair.first, lane / 4, {p, first.after, first.flags});
            if (pair.two && lane <= other) write_stat(args_, pair.second, lane / 4, {q, second.after, second.flags});
        }
        if (acting < WARP || other < WARP) {
            const float delta = hw::shuffle(first.delta, acting), other_delta = hw::shuffle(second.delta, other);
            apply_from(pair, params, acting / 4, other / 4, delta, other_delta, a, b);
            if (acting < WARP) Base::store(args_.h, args_.h_stride, pair.first, a);
            if (other < WARP) Base::store(args_.h, args_.h_stride, pair.second, b);
        }
        if (hw::thread() == 0) {
            end_row(args_, pair.first, args_.count);
            if (pair.two) end_row(args_, pair.second, args_.count);
        }
    }

    // Returns in thread 4 k of each warp the projections of both rows on axis k.
    AXISCAP_DEVICE void project_together(const float (&a)[VALUES], const float (&b)[VALUES], float& p, float& q) {
        float parts[MAX_TOGETHER] = {}, others[MAX_TOGETHER] = {};
#pragma unroll
        for (u32 k = 0; k < MAX_TOGETHER; k++) {
            if (k < args_.count) {
                float axis[VALUES];
                load_axis(k, axis);
                parts[k] = thread_dot<E>(a, axis);
                others[k] = thread_dot<E>(b, axis);
            }
        }
        p = warp_sum_each(parts), q = warp_sum_each(others);
        float* set = slots() + 4 * MAX_SLOTS + 2 * turn_ * MAX_TOGETHER * warps();
        float* second = set + MAX_TOGETHER * warps();
        turn_ ^= 1;
        const u32 lane = hw::thread() % WARP, at = hw::thread() / WARP * MAX_TOGETHER + lane / 4;
        if (lane % 4 == 0) {
            hw::store_shared(set + at, p);
            hw::store_shared(second + at, q);
        }
        hw::barrier<MAX_GROUPS>();
        p = sum_slots_each(set, warps());
        q = sum_slots_each(second, warps());
    }

    // Applies the caps from the first that acts on one of the rows. `acting` and `other` are these caps of the
    // two rows, or past the last cap, and the deltas are their steps.
    AXISCAP_DEVICE void apply_from(const Pair& pair, const CapParams& params, u32 acting, u32 other, float delta,
                                   float other_delta, float (&a)[VALUES], float (&b)[VALUES]) {
        const u32 begin = acting < other ? acting : other;
#pragma unroll 1
        for (u32 k = begin; k < args_.count; k++) {
            float axis[VALUES];
            load_axis(k, axis);
            bool moves = k == acting, other_moves = k == other;
            if (k > begin) {
                float p, q;
                project(a, b, axis, p, q);
                CapParams own = {hw::shuffle(params.lo, 4 * k), hw::shuffle(params.hi, 4 * k),
                                 hw::shuffle(params.strength, 4 * k)};
                CapStep first = clamp_projection(p, own), second = clamp_projection(q, own);
                if (k > acting) {
                    moves = first.acts, delta = first.delta;
                    if (hw::thread() == 0) write_stat(args_, pair.first, k, {p, first.after, first.flags});
                }
                if (k > other) {
                    other_moves = second.acts, other_delta = second.delta;
                    if (hw::thread() == 0) write_stat(args_, pair.second, k, {q, second.after, second.flags});
                }
            }
            if (moves) move_along(a, delta, axis);
            if (other_moves) move_along(b, other_delta, axis);
        }
    }

    // Returns in every thread the projections of both rows on one axis, with one barrier.
    AXISCAP_DEVICE void project(const float (&a)[VALUES], const float (&b)[VALUES], const float (&axis)[VALUES],
                                float& p, float& q) {
        float parts[2] = {thread_dot<E>(a, axis), thread_dot<E>(b, axis)};
        // The lower half of the warp sums the first row, the upper half the second.
        fold<1>(parts, WARP / 2);
        float sum = parts[0];
#pragma unroll
        for (int distance = WARP / 4; distance > 0; distance /= 2) {
            sum = hw::add(sum, hw::shuffle_xor(sum, distance));
        }
        float* set = slots() + 2 * turn_ * MAX_SLOTS;
        turn_ ^= 1;
        const u32 lane = hw::thread() % WARP, half = lane / (WARP / 2);
        if (lane % (WARP / 2) == 0) hw::store_shared(set + half * MAX_SLOTS + hw::thread() / WARP, sum);
        hw::barrier<MAX_GROUPS>();
        // At most 16 warps: half a warp sums the slots of a row.
        u32 width = 1;
        while (width < warps()) width *= 2;
        float x = hw::load_shared(set + half * MAX_SLOTS + (lane & (width - 1)));
#pragma unroll 1
        for (u32 distance = width / 2; distance > 0; distance /= 2) x = hw::add(x, hw::shuffle_xor(x, distance));
        p = hw::shuffle(x, 0);
        q = hw::shuffle(x, WARP / 2);
    }

    // The most groups of more than one warp that a block has (src/cuda/launch/kernel.rs). Each takes a
    // barrier.
    static constexpr u32 MAX_GROUPS = 4;

    u32 turn_ = 0;  // the set to write next, for both kinds of sums
};

}  // namespace axiscap
