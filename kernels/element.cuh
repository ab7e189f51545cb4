// The element types of a row: f32, f16, bf16. Each thread holds 16 values of a 512-element segment, in QUADS
// loads of 16 bytes.
#pragma once

#include "hardware.cuh"

namespace axiscap {

constexpr u32 WARP = 32;
constexpr u32 SEGMENT = 512;
constexpr int VALUES = SEGMENT / WARP;  // per thread and segment

struct F32 {
    typedef u32 Bits;
    static constexpr int V = 4;  // elements in 16 bytes
    static constexpr int QUADS = VALUES / V;

    static AXISCAP_DEVICE float widen(Bits bits) { return hw::from_bits(bits); }
    static AXISCAP_DEVICE Bits narrow(float value) { return hw::to_bits(value); }
    static AXISCAP_DEVICE void unpack(const Quad& q, float* values) {
#pragma unroll
        for (int j = 0; j < V; j++) values[j] = hw::from_bits(q.w[j]);
    }
    static AXISCAP_DEVICE Quad pack(const float* values) {
        Quad q;
#pragma unroll
        for (int j = 0; j < V; j++) q.w[j] = hw::to_bits(values[j]);
        return q;
    }
};

struct F16 {
    typedef unsigned short Bits;
    static constexpr int V = 8;
    static constexpr int QUADS = VALUES / V;

    static AXISCAP_DEVICE float widen(Bits bits) { return hw::widen_f16(bits); }
    static AXISCAP_DEVICE Bits narrow(float value) { return static_cast<Bits>(hw::narrow_f16_pair(value, 0.0f)); }
    static AXISCAP_DEVICE void unpack(const Quad& q, float* values) {
#pragma unroll
        for (int j = 0; j < V; j += 2) {
            values[j] = hw::widen_f16(q.w[j / 2] & 0xffffu);
            values[j + 1] = hw::widen_f16(q.w[j / 2] >> 16);
        }
    }
    static AXISCAP_DEVICE Quad pack(const float* values) {
        Quad q;
#pragma unroll
        for (int j = 0; j < V; j += 2) q.w[j / 2] = hw::narrow_f16_pair(values[j], values[j + 1]);
        return q;
    }
};

struct BF16 {
    typedef unsigned short Bits;
    static constexpr int V = 8;
    static constexpr int QUADS = VALUES / V;

    static AXISCAP_DEVICE float widen(Bits bits) { return hw::from_bits(static_cast<u32>(bits) << 16); }
    static AXISCAP_DEVICE Bits narrow(float value) { return static_cast<Bits>(hw::narrow_bf16_pair(value, 0.0f)); }
    static AXISCAP_DEVICE void unpack(const Quad& q, float* values) {
#pragma unroll
        for (int j = 0; j < V; j += 2) {
            values[j] = hw::from_bits(q.w[j / 2] << 16);
            values[j + 1] = hw::from_bits(q.w[j / 2] & 0xffff0000u);
        }
    }
    static AXISCAP_DEVICE Quad pack(const float* values) {
        Quad q;
#pragma unroll
        for (int j = 0; j < V; j += 2) q.w[j / 2] = hw::narrow_bf16_pair(values[j], values[j + 1]);
        return q;
    }
};

// Distance between the quads of a thread in a segment, in elements. The first quad of thread t starts at
// element V t.
template <class E>
constexpr int QUAD_STEP = WARP * E::V;

// Loads N values of a padded f32 vector, 16 bytes at a time.
template <int N>
AXISCAP_DEVICE void load_values(const float* from, float* values) {
#pragma unroll
    for (int j = 0; j < N; j += 4) F32::unpack(hw::load_table_quad(from + j), values + j);
}

// Loads a thread's 16 values of a segment of a padded f32 vector (an axis). `start` is the thread's first
// element. The padding makes bounds checks unnecessary.
template <class E>
AXISCAP_DEVICE void load_padded(const float* start, float (&values)[VALUES]) {
#pragma unroll
    for (int q = 0; q < E::QUADS; q++) load_values<E::V>(start + q * QUAD_STEP<E>, &values[q * E::V]);
}

}  // namespace axiscap
