// The CPU version of hardware.cuh: the same functions, with checks.
//
// A thread is a fiber (fiber.hpp). Barriers and shuffles switch to the scheduler. All other code runs without
// a switch.
//
// Behaviour that CUDA leaves undefined becomes visible. Shared memory and the targets of outstanding copies
// hold NaN. A copy is made when it is awaited. A store to another block's shared memory is made when its thread
// next arrives at the cluster's barrier, and its target holds NaN until then. Errors are: a misaligned access, an
// access outside the block's shared memory, a barrier or shuffle that some of its threads do not reach, and a store
// to a block of the cluster that may not have started or has ended.
//
// Limits: the GPU's memory model (fibers see each other's writes at once), the timing of programmatic
// dependent launch, and the hardware's conversions, divisions and square roots are not emulated.
#pragma once

#include <cmath>
#include <cstring>

#include "machine.hpp"

#if defined(__FAST_MATH__)
#error "the emulator's arithmetic must be IEEE: no -ffast-math"
#endif

#define AXISCAP_DEVICE inline
#define AXISCAP_KERNEL(name, threads) AXISCAP_CLUSTER_KERNEL(name, threads, 1)
#define AXISCAP_RESIDENT_KERNEL(name, threads, blocks) AXISCAP_KERNEL(name, threads)
#define AXISCAP_CLUSTER_KERNEL(name, threads, blocks) \
    static void name(const axiscap::CapArgs& args); \
    static const axiscap::emulate::Registration name##_registration(#name, threads, blocks, name); \
    static void name([[maybe_unused]] const axiscap::CapArgs& args)

namespace axiscap {

struct alignas(16) Quad {
    u32 w[4];
};

namespace hw {

// Every build of the emulator needs -ffp-contract=off, which keeps the compiler from contracting a multiply
// and an add.
inline float add(float a, float b) { return a + b; }
inline float sub(float a, float b) { return a - b; }
inline float mul(float a, float b) { return a * b; }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float div(float a, float b) { return a / b; }
inline float reciprocal(float a) { return 1.0f / a; }
inline float sqrt(float a) { return std::sqrt(a); }
inline float from_bits(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline u32 to_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline u32 thread() { return emulate::self().x; }
inline u32 threads() { return emulate::machine().launch.threads; }
inline u32 group() { return emulate::self().y; }
inline u32 groups() { return emulate::machine().launch.groups; }
inline u32 block() { return emulate::machine().block(); }
inline u32 blocks() { return emulate::machine().launch.blocks; }

inline float shuffle_xor(float value, int mask) { return emulate::machine().shuffle_xor(value, mask); }
inline float shuffle(float value, u32 from) { return emulate::machine().shuffle(value, from); }
inline u32 ballot(bool yes) { return emulate::machine().ballot(yes); }
inline u32 lowest_bit(u32 bits) {
    u32 bit = 0;
    while (bit < 32 && !(bits >> bit & 1)) bit++;
    return bit;
}
template <u32 Groups>
inline void barrier() {
    emulate::machine().barrier(group(), Groups, threads());
}
inline void block_barrier() { emulate::machine().barrier(0, 1, threads() * groups()); }
inline void require(bool holds) {
    if (!holds) emulate::fault("the launch's plan does not hold");
}

inline unsigned char* shared_memory() { return emulate::machine().shared_memory(); }
inline float load_shared(const float* p) {
    emulate::machine().check_shared(p, 4, 4);
    return *p;
}
inline void load_shared(const float* p, float (&values)[4]) {
    emulate::machine().check_shared(p, 16, 16);
    std::memcpy(values, p, 16);
}
inline Quad load_shared_quad(const void* p) {
    emulate::machine().check_shared(p, 16, 16);
    Quad quad;
    std::memcpy(&quad, p, 16);
    return quad;
}
inline void store_shared(float* p, float value) {
    emulate::machine().check_shared(p, 4, 4);
    *p = value;
}

inline u32 cluster_rank() { return emulate::machine().rank(); }
inline void cluster_arrive() { emulate::machine().cluster_arrive(true); }
inline void cluster_arrive_started() { emulate::machine().cluster_arrive(false); }
inline void cluster_wait() { emulate::machine().cluster_wait(); }
inline void store_shared_of(u32 rank, float* p, float value) { emulate::machine().store_shared_of(rank, p, value); }

template <class T>
inline T load(const void* p) {
    emulate::check_aligned(p, sizeof(T));
    T value;
    std::memcpy(&value, p, sizeof(T));
    return value;
}
// Rows may be accessed only after the wait for the previous kernel. Tables may be read before it.
inline Quad load_row_quad(const void* p) {
    emulate::check_waited();
    return load<Quad>(p);
}
template <class T>
inline T load_row(const T* p) {
    emulate::check_waited();
    return load<T>(p);
}
inline void store_row_quad(void* p, Quad q) {
    emulate::check_waited();
    emulate::check_aligned(p, 16);
    std::memcpy(p, &q, 16);
}
template <class T>
inline void store_row(T* p, T value) {
    emulate::check_waited();
    emulate::check_aligned(p, sizeof(T));
    std::memcpy(p, &value, sizeof(T));
}
inline void atomic_max(u64* p, u64 value) {
    emulate::check_waited();
    emulate::check_aligned(p, sizeof(u64));
    if (*p < value) *p = value;
}
inline void atomic_add(u64* p, u64 value) {
    emulate::check_waited();
    emulate::check_aligned(p, sizeof(u64));
    *p += value;
}
inline Quad load_table_quad(const void* p) { return load<Quad>(p); }
inline float load_table(const float* p) { return load<float>(p); }
inline u32 load_table(const u32* p) { return load<u32>(p); }
// Reads a byte, because a GPU ignores a prefetch of an invalid address without an error.
inline void prefetch_table(const void* p) { (void)*static_cast<const volatile unsigned char*>(p); }

inline void copy_async(void* to, const void* from, bool inside) {
    emulate::check_waited();
    emulate::machine().check_shared(to, 16, 16);
    emulate::check_aligned(from, 16);
    emulate::self().copy(to, from, inside);
}
inline void copy_table_async(void* to, const void* from) {
    emulate::machine().check_shared(to, 16, 16);
    emulate::check_aligned(from, 16);
    emulate::self().copy(to, from, true);
}
inline void commit_copies() { emulate::self().commit(); }
template <int Newer>
inline void await_copies() {
    emulate::self().await(Newer);
}

inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() { emulate::self().waited = true; }

inline float widen_f16(u32 bits) {
    u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                    : std::ldexp(static_cast<float>(fraction | 0x400u), static_cast<int>(exponent) - 25);
    return from_bits(sign | to_bits(magnitude));
}
inline u32 narrow_f16(float value) {
    u32 bits = to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;               // NaN, with the hardware's bits
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;       // rounds to infinity
    if (magnitude < 0x38800000u) {                             // subnormal: a multiple of 2^-24
        return sign | static_cast<u32>(std::nearbyint(std::ldexp(from_bits(magnitude), 24)));
    }
    u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return sign | (rounded - 0x38000000u) >> 13;
}
inline u32 narrow_bf16(float value) {
    u32 bits = to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline u32 narrow_f16_pair(float low, float high) { return narrow_f16(low) | narrow_f16(high) << 16; }
inline u32 narrow_bf16_pair(float low, float high) { return narrow_bf16(low) | narrow_bf16(high) << 16; }

}  // namespace hw
}  // namespace axiscap
