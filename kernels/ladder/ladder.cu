// The way from the naive kernel to the production one, a step at a time: f32 rows, in place, the first cap only.
//
// Read from top to bottom, then ../direct.cuh. Every step computes the same operation and is run by
// tests/emulator/ladder.rs; only the last one adds in the definition's order, so that only it must agree with the
// CPU to the bit. The figures are bytes and dependent steps, counted, not measured.
#include "../reduce.cuh"
#include "../verdict.cuh"

namespace axiscap {
namespace ladder {

AXISCAP_DEVICE float* row_of(const CapArgs& args, u32 row) { return static_cast<float*>(args.h) + row * args.h_stride; }
AXISCAP_DEVICE float get(const float* p) { return hw::from_bits(hw::load_row(reinterpret_cast<const u32*>(p))); }
AXISCAP_DEVICE void put(float* p, float value) { hw::store_row(reinterpret_cast<u32*>(p), hw::to_bits(value)); }

}  // namespace ladder
}  // namespace axiscap

// Step 1. One thread per row, as one would write it for a CPU. Block: 32 threads, a row each.
//
// Neighbouring threads read addresses a whole row apart: each 4-byte load moves a 32-byte sector, of which the next
// loads use the rest only if it is still cached. One row of decode keeps one thread of the GPU busy, with `width`
// dependent additions: some 16 us for 8192.
AXISCAP_KERNEL(axiscap_ladder_1_thread_per_row, 1024) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    u32 row = hw::block() * hw::threads() + hw::thread();
    if (row >= args.rows) return;
    float* h = ladder::row_of(args, row);
    float p = 0.0f;
    for (u32 i = 0; i < args.width; i++) p = hw::fma(ladder::get(h + i), hw::load_table(args.axes + i), p);
    Verdict verdict = judge(p, load_params(args, 0));
    if (!verdict.acts) return;
    for (u32 i = 0; i < args.width; i++) {
        ladder::put(h + i, hw::fma(verdict.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 2. One warp per row. Neighbouring threads read neighbouring values: every byte of a sector is used, and the
// row is 32 chains of width / 32 additions, joined by five shuffles. Block: 32 threads, one row.
AXISCAP_KERNEL(axiscap_ladder_2_warp_per_row, 1024) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    u32 row = hw::block();
    if (row >= args.rows) return;
    float* h = ladder::row_of(args, row);
    float p = 0.0f;
    for (u32 i = hw::thread(); i < args.width; i += WARP) {
        p = hw::fma(ladder::get(h + i), hw::load_table(args.axes + i), p);
    }
    Verdict verdict = judge(warp_sum(p), load_params(args, 0));
    if (!verdict.acts) return;
    for (u32 i = hw::thread(); i < args.width; i += WARP) {
        ladder::put(h + i, hw::fma(verdict.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 3. One block per row: one row of decode is now spread over all four schedulers of a multiprocessor. The warps
// meet in shared memory, at one barrier. Block: a multiple of 32 threads, one row.
//
// The row is still read twice (the second time from L1, if it is still there), and an add in f32 per 4 bytes loaded
// keeps the load units busier than they need be.
AXISCAP_KERNEL(axiscap_ladder_3_block_per_row, 1024) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    u32 row = hw::block();
    if (row >= args.rows) return;
    GroupSum<SlotsByShuffle, 1> sum;
    float* h = ladder::row_of(args, row);
    float p = 0.0f;
    for (u32 i = hw::thread(); i < args.width; i += hw::threads()) {
        p = hw::fma(ladder::get(h + i), hw::load_table(args.axes + i), p);
    }
    Verdict verdict = judge(sum(warp_sum(p)), load_params(args, 0));
    if (!verdict.acts) return;
    for (u32 i = hw::thread(); i < args.width; i += hw::threads()) {
        ladder::put(h + i, hw::fma(verdict.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 4. 16 bytes per load, and the row stays in registers from its one read to its one write: four loads per
// thread are on their way at once, the barrier is the only wait in between, and the lane map is now the
// definition's. Block: 32 * ceil(width / 512) threads, one row; a width that is a multiple of 4.
//
// What is left for ../direct.cuh and ../staged.cuh: several caps, the other row types, addition and norm in the same
// pass; for few rows the axes of several caps loaded before the previous kernel has ended, their sums behind one
// barrier, and slots added from broadcast reads; for many rows the next ones copied to shared memory while one is worked on.
AXISCAP_KERNEL(axiscap_ladder_4_row_in_registers, 1024) {
    using namespace axiscap;
    u32 start = hw::thread() / WARP * SEGMENT + hw::thread() % WARP * F32::V;
    float axis[VALUES];
    load_padded<F32>(args.axes + start, axis);
    hw::wait_for_previous_kernel();
    u32 row = hw::block();
    if (row >= args.rows) return;
    GroupSum<SlotsByShuffle, 1> sum;
    float* from = ladder::row_of(args, row) + start;
    float h[VALUES];
#pragma unroll
    for (int q = 0; q < F32::QUADS; q++) {
        Quad quad = Quad{{0, 0, 0, 0}};
        if (start + q * QUAD_STEP<F32> < args.width) quad = hw::load_row_quad(from + q * QUAD_STEP<F32>);
        F32::unpack(quad, &h[q * F32::V]);
    }
    Verdict verdict = judge(sum(warp_sum(thread_dot<F32>(h, axis))), load_params(args, 0));
    if (!verdict.acts) return;
#pragma unroll
    for (int i = 0; i < VALUES; i++) h[i] = hw::fma(verdict.delta, axis[i], h[i]);
#pragma unroll
    for (int q = 0; q < F32::QUADS; q++) {
        if (start + q * QUAD_STEP<F32> < args.width) {
            hw::store_row_quad(from + q * QUAD_STEP<F32>, F32::pack(&h[q * F32::V]));
        }
    }
}
