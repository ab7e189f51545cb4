// What a cap does to a row whose projection is p.
#pragma once

#include "hardware.cuh"

namespace axiscap {

struct Verdict {
    float delta;  // the step along the axis; meaningful when the cap acts
    float after;
    u32 flags;
    bool acts;
};

AXISCAP_DEVICE bool finite(float x) { return (hw::to_bits(x) & 0x7f800000u) != 0x7f800000u; }

AXISCAP_DEVICE Verdict judge(float p, const CapParams& cap) {
    // Comparisons rather than min and max: a bound of either zero is then the bound itself.
    float c = p;
    if (c < cap.lo) c = cap.lo;
    if (c > cap.hi) c = cap.hi;
    float delta = hw::mul(cap.strength, hw::sub(c, p));
    bool engaged = finite(p) && c != p;
    bool lost = !finite(p) || (engaged && !finite(delta));
    bool acts = engaged && !lost && delta != 0.0f;
    float after = !acts ? p : cap.strength == 1.0f ? c : hw::add(p, delta);
    return {delta, after, (engaged ? ENGAGED : 0u) | (lost ? NON_FINITE : 0u), acts};
}

AXISCAP_DEVICE CapParams load_params(const CapArgs& args, u32 cap) {
    const float* p = reinterpret_cast<const float*>(args.params + cap);
    return {hw::load_table(p), hw::load_table(p + 1), hw::load_table(p + 2)};
}

// The caps of one row: `first` .. `first + count`.
struct CapRun {
    u32 first, count;
};

// A profile that does not exist caps nothing; end_row records it.
AXISCAP_DEVICE CapRun caps_of_row(const CapArgs& args, u32 row) {
    if (args.profile == nullptr) return {args.first, args.count};
    u32 profile = hw::load_row(args.profile + row);
    if (profile == 0 || profile >= args.profiles) return {0, 0};
    u32 first = hw::load_table(args.ends + profile - 1);
    return {first, hw::load_table(args.ends + profile) - first};
}

AXISCAP_DEVICE void write_stat(const CapArgs& args, u32 row, u32 k, const RowStat& stat) {
    if (args.stats == nullptr || k >= args.depth) return;
    u32* to = reinterpret_cast<u32*>(args.stats + static_cast<u64>(row) * args.depth + k);
    hw::store_row(to, hw::to_bits(stat.before));
    hw::store_row(to + 1, hw::to_bits(stat.after));
    hw::store_row(to + 2, stat.flags);
}

// By one thread, behind a row's `caps` caps. Rows with fewer caps than the table's deepest profile leave zeros behind,
// not old memory. A profile that the table does not have is recorded: only here, where a row has no caps anyway, so
// that it costs the others nothing.
AXISCAP_DEVICE void end_row(const CapArgs& args, u32 row, u32 caps) {
    if (args.stats != nullptr) {
#pragma unroll 1
        for (u32 k = caps; k < args.depth; k++) write_stat(args, row, k, {0.0f, 0.0f, 0});
    }
    if (caps > 0 || args.profile == nullptr) return;
    u32 profile = hw::load_row(args.profile + row);
    if (profile < args.profiles) return;
    write_stat(args, row, 0, {0.0f, 0.0f, BAD_PROFILE});
    hw::raise(&args.faults->first, ~(static_cast<u64>(row) << 32 | profile));
    hw::count(&args.faults->rows);
}

// 1 / sqrt(mean of squares + eps), in IEEE division and square root.
AXISCAP_DEVICE float norm_factor(const CapArgs& args, float sum_of_squares) {
    float mean = hw::div(sum_of_squares, static_cast<float>(args.width));
    return hw::div(1.0f, hw::sqrt(hw::add(mean, args.eps)));
}

}  // namespace axiscap
