// The steps from the naive kernel to the production one, for f32 rows, in place, with the first cap only.
//
// Read from top to bottom, then ../direct.cuh. tests/emulator/ladder.rs runs every step. Only step 4 adds in
// the order of docs/operation.md, therefore only step 4 must agree with the CPU to the bit. Bytes and
// dependent steps are counted.
#include "../reduce.cuh"
#include "../cap_step.cuh"

namespace axiscap {
namespace ladder {

AXISCAP_DEVICE float* row_of(const CapArgs& args, u32 row) { return static_cast<float*>(args.h) + row * args.h_stride; }
AXISCAP_DEVICE float get(const float* p) { return hw::from_bits(hw::load_row(reinterpret_cast<const u32*>(p))); }
AXISCAP_DEVICE void put(float* p, float value) { hw::store_row(reinterpret_cast<u32*>(p), hw::to_bits(value)); }

}  // namespace ladder
}  // namespace axiscap

// Step 1. One thread per row, as on a CPU. Grid: ceil(rows / 32) blocks. Block: 32 threads, one row each.
//
// Neighbouring threads read addresses a whole row apart. Each 4-byte load moves a 32-byte sector, and the
// next loads use the rest of the sector only if it is still cached. One row of decode is one thread with
// `width` dependent additions.
AXISCAP_KERNEL(axiscap_ladder_1_thread_per_row, 1024) {
    using namespace axiscap;
    hw::wait_for_previous_kernel();
    u32 row = hw::block() * hw::threads() + hw::thread();
    if (row >= args.rows) return;
    float* h = ladder::row_of(args, row);
    float p = 0.0f;
    for (u32 i = 0; i < args.width; i++) p = hw::fma(ladder::get(h + i), hw::load_table(args.axes + i), p);
    CapStep step = clamp_projection(p, load_params(args, 0));
    if (!step.acts) return;
    for (u32 i = 0; i < args.width; i++) {
        ladder::put(h + i, hw::fma(step.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 2. One warp per row. Grid: one block per row. Block: 32 threads.
//
// Improves on step 1: neighbouring threads read neighbouring values, which uses every byte of a sector. A row
// is 32 chains of width / 32 additions, joined by five shuffles.
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
    CapStep step = clamp_projection(warp_sum(p), load_params(args, 0));
    if (!step.acts) return;
    for (u32 i = hw::thread(); i < args.width; i += WARP) {
        ladder::put(h + i, hw::fma(step.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 3. One block per row. Grid: one block per row. Block: a multiple of 32 threads.
//
// Improves on step 2: one row of decode uses all four schedulers of a multiprocessor. The warps exchange
// their sums through shared memory, with one barrier. The row is still read twice, and each load moves only 4
// bytes.
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
    CapStep step = clamp_projection(sum(warp_sum(p)), load_params(args, 0));
    if (!step.acts) return;
    for (u32 i = hw::thread(); i < args.width; i += hw::threads()) {
        ladder::put(h + i, hw::fma(step.delta, hw::load_table(args.axes + i), ladder::get(h + i)));
    }
}

// Step 4. The row in registers. Grid: one block per row. Block: 32 * ceil(width / 512) threads. The width is
// a multiple of 4.
//
// Improves on step 3: a load moves 16 bytes, four loads per thread are outstanding at once, and the row is
// read once. The lane map is that of docs/operation.md.
//
// ../direct.cuh and ../staged.cuh add several caps, the other element types, and addition and norm in the
// same pass. For few rows, direct.cuh loads the axes of several caps before the previous kernel ends and sums
// them with one barrier. For many rows, staged.cuh copies the next rows to shared memory while one is capped.
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
    CapStep step = clamp_projection(sum(warp_sum(thread_dot<F32>(h, axis))), load_params(args, 0));
    if (!step.acts) return;
#pragma unroll
    for (int i = 0; i < VALUES; i++) h[i] = hw::fma(step.delta, axis[i], h[i]);
#pragma unroll
    for (int q = 0; q < F32::QUADS; q++) {
        if (start + q * QUAD_STEP<F32> < args.width) {
            hw::store_row_quad(from + q * QUAD_STEP<F32>, F32::pack(&h[q * F32::V]));
        }
    }
}
