// The step of one cap: from a row's projection to the change along the axis, and the statistics.
#pragma once

#include "hardware.cuh"

namespace axiscap {

struct CapStep {
    float delta;  // distance to move along the axis; valid only if the cap acts
    float after;  // the projection after the step
    u32 flags;
    bool acts;  // whether the row is changed
};

AXISCAP_DEVICE bool finite(float x) { return (hw::to_bits(x) & 0x7f800000u) != 0x7f800000u; }

// Clamps the projection p to the bounds of a cap: docs/operation.md, "What is computed".
AXISCAP_DEVICE CapStep clamp_projection(float p, const CapParams& cap) {
    // Comparisons instead of min and max: a zero keeps the sign of the bound that it comes from.
    float c = p;
    if (c < cap.lo) c = cap.lo;
    if (c > cap.hi) c = cap.hi;
    float delta = hw::mul(cap.strength, hw::sub(c, p));
    bool engaged = finite(p) && c != p;
    bool non_finite = !finite(p) || (engaged && !finite(delta));
    bool acts = engaged && !non_finite && delta != 0.0f;
    float after = !acts ? p : cap.strength == 1.0f ? c : hw::add(p, delta);
    return {delta, after, (engaged ? ENGAGED : 0u) | (non_finite ? NON_FINITE : 0u), acts};
}

AXISCAP_DEVICE CapParams load_params(const CapArgs& args, u32 cap) {
    const float* p = reinterpret_cast<const float*>(args.params + cap);
    return {hw::load_table(p), hw::load_table(p + 1), hw::load_table(p + 2)};
}

// The caps of one row: `first` .. `first + count`.
struct CapRange {
    u32 first, count;
};

// Returns the profile of a row: what it names, or 1 if rows name none.
AXISCAP_DEVICE u32 profile_of_row(const CapArgs& args, u32 row) {
    return args.profile == nullptr ? 1 : hw::load_row(args.profile + row);
}

// Returns the caps of a profile. A profile that does not exist has no caps, and end_row records it.
//
// The argument holds those of profile 1. Rows of profile 1 therefore wait for their profile alone.
AXISCAP_DEVICE CapRange caps_of_profile(const CapArgs& args, u32 profile) {
    if (profile == 1) return {args.first, args.count};
    if (profile == 0 || profile >= args.profiles) return {0, 0};
    u32 first = hw::load_table(args.ends + profile - 1);
    return {first, hw::load_table(args.ends + profile) - first};
}

AXISCAP_DEVICE CapRange caps_of_row(const CapArgs& args, u32 row) {
    return caps_of_profile(args, profile_of_row(args, row));
}

// The ends of up to 32 profiles, one in each thread of a warp whose threads all have the same row. They are loaded
// before the row's profile is known: one wait for memory in place of two.
class ProfileEnds {
  public:
    AXISCAP_DEVICE ProfileEnds(const CapArgs& args) : end_(0.0f) {
        if (!fits(args)) return;
        const u32 lane = hw::thread() % 32, last = args.profiles - 1;
        end_ = hw::from_bits(hw::load_table(args.ends + (lane < last ? lane : last)));
    }

    // Returns what caps_of_profile returns.
    AXISCAP_DEVICE CapRange caps(const CapArgs& args, u32 profile) const {
        if (profile <= 1 || profile >= args.profiles || !fits(args)) return caps_of_profile(args, profile);
        const u32 first = hw::to_bits(hw::shuffle(end_, profile - 1));
        return {first, hw::to_bits(hw::shuffle(end_, profile)) - first};
    }

  private:
    AXISCAP_DEVICE static bool fits(const CapArgs& args) { return args.profile != nullptr && args.profiles <= 32; }

    float end_;
};

AXISCAP_DEVICE void write_stat(const CapArgs& args, u32 row, u32 k, const RowStat& stat) {
    if (args.stats == nullptr || k >= args.depth) return;
    u32* to = reinterpret_cast<u32*>(args.stats + static_cast<u64>(row) * args.depth + k);
    hw::store_row(to, hw::to_bits(stat.before));
    hw::store_row(to + 1, hw::to_bits(stat.after));
    hw::store_row(to + 2, stat.flags);
}

// Completes the statistics of a row that had `count` caps. Called by one thread per row.
//
// Entries that the row's profile does not use are set to zero. A profile that does not exist is recorded
// here, where only rows without caps look for one. Rows with caps pay nothing for the check.
AXISCAP_DEVICE void end_row(const CapArgs& args, u32 row, u32 count) {
    if (args.stats != nullptr) {
#pragma unroll 1
        for (u32 k = count; k < args.depth; k++) write_stat(args, row, k, {0.0f, 0.0f, 0});
    }
    if (count > 0 || args.profile == nullptr) return;
    u32 profile = hw::load_row(args.profile + row);
    if (profile < args.profiles) return;
    write_stat(args, row, 0, {0.0f, 0.0f, BAD_PROFILE});
    hw::atomic_max(&args.faults->first, ~(static_cast<u64>(row) << 32 | profile));
    hw::atomic_add(&args.faults->rows, 1);
}

// Returns 1 / sqrt(mean of squares + eps), each step correctly rounded.
//
// Most widths are powers of two. Multiplying by their reciprocal has the bits of the division, and is shorter.
AXISCAP_DEVICE float norm_factor(u32 elements, float eps, float sum_of_squares) {
    const float width = static_cast<float>(elements);
    float mean;
    if ((elements & (elements - 1)) == 0) {
        // 2^k has the exponent 127 + k and 2^-k the exponent 127 - k. Their sum is 254.
        mean = hw::mul(sum_of_squares, hw::from_bits((254u << 23) - hw::to_bits(width)));
    } else {
        mean = hw::div(sum_of_squares, width);
    }
    return hw::reciprocal(hw::sqrt(hw::add(mean, eps)));
}
AXISCAP_DEVICE float norm_factor(const CapArgs& args, float sum_of_squares) {
    return norm_factor(args.width, args.eps, sum_of_squares);
}

}  // namespace axiscap
