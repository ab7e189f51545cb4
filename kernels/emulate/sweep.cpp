// Runs the kernels under the compiler's sanitizers. Every buffer is an allocation of exactly its size,
// therefore AddressSanitizer sees an access one byte outside. UndefinedBehaviorSanitizer sees overflow and
// other undefined arithmetic. Results are compared byte for byte with a transcription of docs/operation.md.
// scripts/check-emulator builds this program.
#include <cmath>
#include <cstdio>
#include <memory>

#include "../axiscap.cu"

using namespace axiscap;
using namespace axiscap::emulate;

namespace {

// ---- docs/operation.md, transcribed ----------------------------------------------------------------------------

float halved(std::vector<float> x) {
    for (size_t half = x.size() / 2; half > 0; half /= 2) {
        for (size_t j = 0; j < half; j++) x[j] += x[j + half];
    }
    return x[0];
}

float fixed_order_sum(const std::vector<float>& a, const float* b, size_t vector) {
    size_t lanes = 32 * vector, n = (a.size() + 511) / 512;
    std::vector<float> segments;
    for (size_t s = 0; s < n; s++) {
        std::vector<float> lane(lanes, 0.0f), threads;
        for (size_t e = 0; e < 512; e++) {
            size_t i = s * 512 + e;
            bool in = i < a.size();
            lane[e % lanes] = std::fma(in ? a[i] : 0.0f, in ? b[i] : 0.0f, lane[e % lanes]);
        }
        for (size_t t = 0; t < 32; t++) {
            threads.push_back(halved(std::vector<float>(lane.begin() + t * vector, lane.begin() + (t + 1) * vector)));
        }
        segments.push_back(halved(threads));
    }
    size_t width = 1;
    while (width < n && width < 32) width *= 2;
    std::vector<float> slots(width, 0.0f);
    for (size_t s = 0; s < n; s++) slots[s % 32] = s < 32 ? segments[s] : slots[s % 32] + segments[s];
    return halved(slots);
}

// ---- cases -----------------------------------------------------------------------------------------------------

u64 state = 1;
u32 random_bits() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<u32>(state >> 33);
}
float random_value() { return static_cast<float>(random_bits() % 2001) / 1000.0f - 1.0f; }

// An allocation of exactly `count` elements that starts `offset` elements after a multiple of 16 bytes.
template <class T>
struct Exact {
    std::unique_ptr<unsigned char, void (*)(void*)> memory{nullptr, std::free};
    T* data = nullptr;
    size_t count;

    Exact(size_t count, size_t offset = 0) : count(count) {
        void* p = nullptr;
        size_t bytes = (count + offset) * sizeof(T);
        if (posix_memalign(&p, 16, bytes ? bytes : 1) != 0) std::abort();
        memory.reset(static_cast<unsigned char*>(p));
        data = static_cast<T*>(p) + offset;
    }
};

struct Shape {
    const char* path;
    u32 groups, stages;
};

int failures = 0;

template <class E>
void check(const char* type, bool add, bool norm, const Shape& shape, u32 width, u32 rows, u32 caps, u32 offset,
           Schedule schedule) {
    typedef typename E::Bits Bits;
    const std::string path = shape.path;
    const bool general = path == "general", staged = path == "staged", pairs = path == "pairs";
    const bool cluster = path == "cluster", single = path == "single" || cluster;
    size_t vector = 16 / sizeof(Bits);
    bool wide = offset == 0 && width % vector == 0;
    if (!general && (!wide || width > (staged ? 16384u : 8192u))) return;
    if (single && width % 512 != 0) return;
    if (cluster && width != 8192) return;
    if (pairs && (add || norm)) return;
    if (single) caps = 1;
    u32 segments = (width + 511) / 512, warps = segments < 32 ? segments : 32;
    u32 groups = general ? 1 : shape.groups;
    if (groups * warps > (pairs ? 16 : 32)) return;
    u32 axis_stride = segments * 512;

    Exact<Bits> h(rows * width, offset), x(rows * width, offset), r(rows * width, offset), y(rows * width, offset);
    Exact<float> axes(caps * axis_stride), weight(width, offset);
    Exact<CapParams> params(caps);
    Exact<RowStat> stats(rows * caps);
    Exact<Faults> faults(1);
    *faults.data = {0, 0};
    for (auto* b : {&h, &x, &r, &y}) {
        for (size_t i = 0; i < b->count; i++) b->data[i] = E::narrow(random_value());
    }
    for (size_t i = 0; i < axes.count; i++) {
        axes.data[i] = i % axis_stride < width ? random_value() / std::sqrt(static_cast<float>(width)) : 0.0f;
    }
    for (u32 i = 0; i < width; i++) weight.data[i] = random_value();
    for (u32 k = 0; k < caps; k++) params.data[k] = {random_value(), INFINITY, k % 2 ? 0.5f : 1.0f};

    std::vector<Bits> want_h(h.data, h.data + h.count), want_y(y.data, y.data + y.count);
    std::vector<RowStat> want_stats;
    const float eps = 1e-5f;
    for (u32 row = 0; row < rows; row++) {
        std::vector<float> values;
        for (u32 i = 0; i < width; i++) {
            size_t at = static_cast<size_t>(row) * width + i;
            values.push_back(add ? E::widen(x.data[at]) + E::widen(r.data[at]) : E::widen(h.data[at]));
        }
        bool acted = add;
        for (u32 k = 0; k < caps; k++) {
            float p = fixed_order_sum(values, axes.data + k * axis_stride, vector);
            float c = p < params.data[k].lo ? params.data[k].lo : p;
            float delta = params.data[k].strength * (c - p);
            bool acts = c != p && delta != 0.0f;
            if (acts) {
                for (u32 i = 0; i < width; i++) values[i] = std::fma(delta, axes.data[k * axis_stride + i], values[i]);
            }
            acted |= acts;
            float after = !acts ? p : params.data[k].strength == 1.0f ? c : p + delta;
            want_stats.push_back({p, after, c != p ? ENGAGED : 0});
        }
        float factor = 0.0f;
        if (norm) {
            float mean = fixed_order_sum(values, values.data(), vector) / static_cast<float>(width);
            factor = 1.0f / std::sqrt(mean + eps);
        }
        for (u32 i = 0; i < width; i++) {
            size_t at = static_cast<size_t>(row) * width + i;
            if (acted) want_h[at] = E::narrow(values[i]);
            if (norm) want_y[at] = E::narrow((values[i] * factor) * weight.data[i]);
        }
    }

    u32 inputs = add ? 2 : 1, stages = staged ? shape.stages : 0;
    CapArgs args{};
    args.h = h.data, args.x = add ? x.data : nullptr, args.r = add ? r.data : nullptr, args.y = norm ? y.data : nullptr;
    args.weight = norm ? weight.data : nullptr;
    args.h_stride = args.x_stride = args.r_stride = args.y_stride = width;
    args.axes = axes.data, args.params = params.data, args.stats = stats.data, args.faults = faults.data;
    args.axis_stride = axis_stride, args.count = caps, args.depth = caps, args.rows = rows, args.width = width;
    args.eps = eps, args.stages = stages, args.wide = wide;
    // As src/cuda/launch/shape.rs.
    Launch launch{single ? rows : 2, 32 * warps, groups, groups * SLOT_BYTES, 1};
    if (cluster) launch.blocks = 8 * rows, launch.threads = 64, launch.cluster = 8;
    const u32 row_bytes = axis_stride * static_cast<u32>(sizeof(Bits));
    if (general) launch.shared_bytes += MAX_STEPS * 8;
    else if (staged) launch.shared_bytes += stages * groups * inputs * row_bytes;
    else if (pairs) launch.shared_bytes = caps * axis_stride * 4 + groups * ((128 + 32 * warps) * 4 + 2 * row_bytes);
    else if (!single) launch.shared_bytes += TOGETHER_BYTES * warps;
    std::string name = std::string("axiscap_") + (add ? "add_cap" : "cap") + (norm ? "_norm_" : "_") + type + "_" + shape.path;
    std::string error = machine().run(kernels().at(name).run, args, launch, schedule);
    if (error.empty() && std::memcmp(h.data, want_h.data(), h.count * sizeof(Bits)) != 0) error = "h differs";
    if (error.empty() && norm && std::memcmp(y.data, want_y.data(), y.count * sizeof(Bits)) != 0) error = "y differs";
    if (error.empty() && std::memcmp(stats.data, want_stats.data(), stats.count * sizeof(RowStat)) != 0) {
        error = "statistics differ";
    }
    if (!error.empty()) {
        failures++;
        std::printf("%s, width %u, rows %u, caps %u, offset %u, groups %u, stages %u, schedule %u: %s\n", name.c_str(),
                    width, rows, caps, offset, groups, stages, schedule, error.c_str());
    }
}

}  // namespace

int main() {
    const Shape shapes[] = {{"cluster", 1, 0}, {"single", 1, 0}, {"direct", 1, 0}, {"pairs", 1, 0}, {"pairs", 2, 0},
                            {"staged", 1, 1}, {"staged", 2, 2}, {"staged", 1, 3}, {"general", 1, 0}};
    const u32 widths[] = {1, 3, 8, 111, 512, 576, 1000, 1023, 3584, 4096, 5120, 8191, 8192, 16384, 16400};
    u32 turn = 0;
    for (u32 width : widths) {
        for (const Shape& shape : shapes) {
            for (u32 operation = 0; operation < 4; operation++) {
                bool add = operation & 1, norm = operation & 2;
                for (u32 offset : {0u, 1u}) {
                    u32 rows = width > 2000 ? 3 : 7, caps = 1 + turn % 7;
                    // Operation, path and width each move on by one schedule, so that none always has the same.
                    Schedule schedule = static_cast<Schedule>((turn + turn / 8 + turn / 64) % SCHEDULES);
                    turn++;
                    check<F32>("f32", add, norm, shape, width, rows, caps, offset, schedule);
                    check<F16>("f16", add, norm, shape, width, rows, caps, offset, schedule);
                    check<BF16>("bf16", add, norm, shape, width, rows, caps, offset, schedule);
                }
            }
        }
    }
    std::printf("%u combinations, %d failures\n", turn, failures);
    return failures != 0;
}
