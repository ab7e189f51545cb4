// The kernel argument: one struct, passed by value, in the layout that src/cuda/launch/args.rs packs.
//
// This folder includes no header of the CUDA toolkit. The kernels are C++ over the operations of
// hardware.cuh, which has one version for nvcc and one for the emulator.
#pragma once

namespace axiscap {

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Bounds and strength of one cap. Mirrors CapParams in src/table.rs.
struct CapParams {
    float lo, hi, strength;
};

// Statistics of one cap on one row. Mirrors RowStat in src/stats.rs.
struct RowStat {
    float before, after;
    u32 flags;
};

constexpr u32 ENGAGED = 1;
constexpr u32 NON_FINITE = 2;
constexpr u32 BAD_PROFILE = 4;

// Record of the rows whose profile does not exist, over all launches since the host cleared it
// (src/cuda/faults.rs). Updates commute, therefore the record does not depend on the order of rows.
struct Faults {
    u64 first;  // the largest ~(row << 32 | profile), which names the first such row; 0 if there is none
    u64 rows;   // number of such rows
};

// Strides count elements from one row to the next. Pointers that an operation does not use are null.
struct CapArgs {
    void* h;              // the residual rows: written, and read unless x + r replaces them
    const void* x;        // with add: h = x + r
    const void* r;
    void* y;              // with norm: the normed rows
    const float* weight;  // with norm: [width]
    i64 h_stride, x_stride, r_stride, y_stride;

    const float* axes;        // [caps][axis_stride], zero from width to axis_stride
    const CapParams* params;  // [caps]
    const u32* ends;          // [profiles]: profile p >= 1 is the caps ends[p - 1] .. ends[p]
    const u32* profile;       // [rows]; if null, every row has the caps first .. first + count
    RowStat* stats;           // [rows][depth], or null
    Faults* faults;           // the table's record
    u32 axis_stride;          // a multiple of 512
    u32 profiles;             // number of profiles, including the empty profile 0
    u32 first, count;
    u32 depth;

    u32 rows;  // at most 2^31
    u32 width;
    float eps;
    u32 stages;  // staged kernels: rows in flight per group, 1 to 3
    u32 wide;    // general kernels: 1 if every access may be 16 bytes
};

static_assert(sizeof(CapParams) == 12 && sizeof(RowStat) == 12, "the layouts of table.rs and stats.rs");
static_assert(sizeof(Faults) == 16, "the layout of src/cuda/faults.rs");
static_assert(sizeof(CapArgs) == 160, "the layout of src/cuda/launch/args.rs");

}  // namespace axiscap
