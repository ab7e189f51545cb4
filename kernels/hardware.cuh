// The operations that the kernels need from the hardware. This is the only file with inline PTX.
//
// Under nvcc each function is one or two instructions. Any other compiler gets the emulator's version
// (emulate/hardware.hpp), which runs the same kernel source on a CPU and checks it.
//
// Arithmetic is written as intrinsics (add, mul, fma, div, reciprocal, sqrt), each rounded once, to nearest
// even. No compiler flag can contract or reassociate them.
#pragma once

#include "args.cuh"

#ifndef __CUDACC__
#include "emulate/hardware.hpp"
#else

#define AXISCAP_DEVICE __device__ __forceinline__
// Defines a kernel whose blocks have at most `threads` threads. 512 threads leave 128 registers per thread,
// 1024 leave 64 (src/cuda/launch/kernel.rs).
#define AXISCAP_KERNEL(name, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ axiscap::CapArgs args)
// Defines a kernel of which at least `blocks` blocks are resident on a multiprocessor at a time.
#define AXISCAP_RESIDENT_KERNEL(name, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ axiscap::CapArgs args)
// Defines a kernel whose blocks form clusters of `blocks`. The kernel says so itself, because the compiler otherwise
// adds a second way for launches without clusters at each barrier of the cluster.
#if __CUDA_ARCH__ >= 900
#define AXISCAP_CLUSTER_KERNEL(name, threads, blocks) \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads) \
        name(const __grid_constant__ axiscap::CapArgs args)
#else
#define AXISCAP_CLUSTER_KERNEL(name, threads, blocks) AXISCAP_KERNEL(name, threads)
#endif

namespace axiscap {

struct alignas(16) Quad {
    u32 w[4];
};

namespace hw {

AXISCAP_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
AXISCAP_DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
AXISCAP_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
AXISCAP_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
AXISCAP_DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
AXISCAP_DEVICE float reciprocal(float a) { return __frcp_rn(a); }
AXISCAP_DEVICE float sqrt(float a) { return __fsqrt_rn(a); }
AXISCAP_DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
AXISCAP_DEVICE u32 to_bits(float value) { return __float_as_uint(value); }

// A thread block consists of groups (y) of whole warps (x). Each group works on one row at a time.
AXISCAP_DEVICE u32 thread() { return threadIdx.x; }
AXISCAP_DEVICE u32 threads() { return blockDim.x; }
AXISCAP_DEVICE u32 group() { return threadIdx.y; }
AXISCAP_DEVICE u32 groups() { return blockDim.y; }
AXISCAP_DEVICE u32 block() { return blockIdx.x; }
AXISCAP_DEVICE u32 blocks() { return gridDim.x; }

AXISCAP_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
AXISCAP_DEVICE float shuffle(float value, u32 from) { return __shfl_sync(0xffffffffu, value, from); }
// Returns the votes of the warp's threads, one bit per thread.
AXISCAP_DEVICE u32 ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
// Returns the index of the lowest set bit, or 32 if there is none.
AXISCAP_DEVICE u32 lowest_bit(u32 bits) { return bits == 0 ? 32 : __ffs(bits) - 1; }

// Waits until all threads of this thread's group have arrived. Shared memory written before is visible after.
// `Groups` is the most groups of a block that use barriers.
//
// The barrier is named by an immediate. A barrier named by a register would reserve all sixteen for each
// block, which limits the number of resident blocks.
template <u32 Groups>
AXISCAP_DEVICE void barrier() {
    static_assert(Groups == 1 || Groups == 4, "the cases below");
    if constexpr (Groups == 1) {
        __syncthreads();
    } else {
        // Predicates, because nvcc compiles a switch to an indirect branch, which every row would execute.
        asm volatile(
            "{ .reg .pred mine;\n"
            "setp.eq.u32 mine, %0, 0; @mine bar.sync 0, %1;\n"
            "setp.eq.u32 mine, %0, 1; @mine bar.sync 1, %1;\n"
            "setp.eq.u32 mine, %0, 2; @mine bar.sync 2, %1;\n"
            "setp.eq.u32 mine, %0, 3; @mine bar.sync 3, %1; }" ::"r"(group()),
            "r"(threads())
            : "memory");
    }
}

// Waits until all threads of the block have arrived.
AXISCAP_DEVICE void block_barrier() { __syncthreads(); }

// Ends the launch with an error if the host's plan does not hold.
AXISCAP_DEVICE void require(bool holds) {
    if (!holds) __trap();
}

// Returns the launch's dynamic shared memory. The kernels have no static shared memory.
AXISCAP_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}
AXISCAP_DEVICE float load_shared(const float* p) { return *p; }
AXISCAP_DEVICE void load_shared(const float* p, float (&values)[4]) {
    float4 quad = *reinterpret_cast<const float4*>(p);
    values[0] = quad.x, values[1] = quad.y, values[2] = quad.z, values[3] = quad.w;
}
// Volatile, because the compiler would otherwise load all quads of a stage before the first addition, and
// spill.
AXISCAP_DEVICE Quad load_shared_quad(const void* p) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(p));
    Quad q;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.w[0]), "=r"(q.w[1]), "=r"(q.w[2]), "=r"(q.w[3])
                 : "r"(address)
                 : "memory");
    return q;
}
AXISCAP_DEVICE void store_shared(float* p, float value) { *p = value; }

// Clusters, on sm_90 and later: consecutive blocks, as many as the kernel says, that run at the same time and can
// write to each other's shared memory. Earlier GPUs have none. Kernels for clusters trap there, and no launch plan
// names them.
//
// Returns the index of this block in its cluster.
AXISCAP_DEVICE u32 cluster_rank() {
    u32 rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
// The barrier of the cluster, in two halves: every thread of all blocks arrives and then waits, in turns. A thread
// passes `cluster_wait` when all have arrived. What a thread wrote before `cluster_arrive` is visible after.
AXISCAP_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
    __trap();
#endif
}
// Arrives without ordering any write, which takes a fence. It says only that this block has started. A block has
// no shared memory before it starts, therefore nothing may be stored to it before this barrier.
AXISCAP_DEVICE void cluster_arrive_started() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
    __trap();
#endif
}
AXISCAP_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Stores to the shared memory of block `rank` of the cluster, at the place that p has in this block's. That block
// must not end before the store has arrived there, which a barrier of the cluster makes sure.
AXISCAP_DEVICE void store_shared_of(u32 rank, float* p, float value) {
#if __CUDA_ARCH__ >= 900
    u32 address = static_cast<u32>(__cvta_generic_to_shared(p));
    asm volatile(
        "{ .reg .u32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "st.shared::cluster.f32 [there], %2; }" ::"r"(address),
        "r"(rank), "f"(value)
        : "memory");
#endif
}

// Rows are read by coherent loads. With programmatic dependent launch an earlier kernel may still write them
// when this one starts. Each value is used once, therefore the loads do not allocate in L1.
AXISCAP_DEVICE Quad load_row_quad(const void* p) {
    Quad q;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.w[0]), "=r"(q.w[1]), "=r"(q.w[2]), "=r"(q.w[3])
                 : "l"(p));
    return q;
}
AXISCAP_DEVICE u32 load_row(const u32* p) {
    u32 value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(p));
    return value;
}
AXISCAP_DEVICE unsigned short load_row(const unsigned short* p) {
    unsigned short value;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(p));
    return value;
}
// The kernels read no row again from L1. A row that was allocated there would evict axes.
AXISCAP_DEVICE void store_row_quad(void* p, Quad q) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(q.w[0]), "r"(q.w[1]), "r"(q.w[2]),
                 "r"(q.w[3])
                 : "memory");
}
template <class T>
AXISCAP_DEVICE void store_row(T* p, T value) {
    *p = value;
}

// Updates of a record that all rows share. They commute, and no kernel reads the result.
AXISCAP_DEVICE void atomic_max(u64* p, u64 value) {
    asm volatile("red.global.max.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}
AXISCAP_DEVICE void atomic_add(u64* p, u64 value) {
    asm volatile("red.global.add.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

// Tables (axes, bounds, weights) are constant while a kernel runs and are not written by the kernel before
// it. They may be read through the non-coherent path and before wait_for_previous_kernel.
AXISCAP_DEVICE Quad load_table_quad(const void* p) {
    Quad q;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.w[0]), "=r"(q.w[1]), "=r"(q.w[2]), "=r"(q.w[3])
                 : "l"(p));
    return q;
}
AXISCAP_DEVICE float load_table(const float* p) {
    float value;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(p));
    return value;
}
AXISCAP_DEVICE u32 load_table(const u32* p) {
    u32 value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(p));
    return value;
}
AXISCAP_DEVICE void prefetch_table(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Copies 16 bytes from global to shared memory, without registers; writes zeros if `inside` is false. Only
// the calling thread may read them, after await_copies.
AXISCAP_DEVICE void copy_async(void* to, const void* from, bool inside) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
}
// Copies 16 bytes of a table, also before the wait for the previous kernel. Any thread may read them after a
// barrier that follows await_copies. Copies of rows ask L2 for 128 bytes and these do not, by which
// scripts/check-device-code tells them apart.
AXISCAP_DEVICE void copy_table_async(void* to, const void* from) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
AXISCAP_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Newer` of the committed groups are incomplete.
template <int Newer>
AXISCAP_DEVICE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Newer) : "memory");
}

// Programmatic dependent launch, on sm_90 and later. Without the launch attribute both calls return at once.
AXISCAP_DEVICE void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until everything that earlier kernels wrote is visible. Every thread of every kernel must call it.
AXISCAP_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Conversions, rounded to nearest even. The pair functions put `low` into the lower half.
AXISCAP_DEVICE float widen_f16(u32 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(bits)));
    return value;
}
AXISCAP_DEVICE u32 narrow_f16_pair(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
AXISCAP_DEVICE u32 narrow_bf16_pair(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

}  // namespace hw
}  // namespace axiscap

#endif
