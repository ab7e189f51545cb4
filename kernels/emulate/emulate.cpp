// The kernels, compiled for the CPU, behind two C functions: what tests/emulator.rs loads.
#include <cstring>
#include <set>

#include "../axiscap.cu"

using namespace axiscap::emulate;

extern "C" {

// Runs a kernel. 0 when all went well; otherwise `message` says what went wrong: the launch is refused as a driver
// would refuse it, or the kernel did something that CUDA does not allow.
int axiscap_emulate(const char* name, const axiscap::CapArgs* args, const Launch* launch, unsigned schedule,
                    char* message, size_t capacity) {
    std::string wrong;
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        wrong = std::string("no kernel ") + name;
    } else if (launch->blocks == 0 || launch->threads == 0 || launch->groups == 0) {
        wrong = "an empty grid or block";
    } else if (launch->threads % 32 != 0 || launch->threads * launch->groups > found->second.most_threads) {
        wrong = "more threads than the kernel's launch bounds allow";
    } else {
        wrong = machine().run(found->second.run, *args, *launch, static_cast<Schedule>(schedule % SCHEDULES));
    }
    if (capacity > 0) {
        size_t length = std::min(wrong.size(), capacity - 1);
        std::memcpy(message, wrong.data(), length);
        message[length] = 0;
    }
    return wrong.empty() ? 0 : 1;
}

// The conversions, so that they can be compared with another implementation over all bit patterns.
float axiscap_emulate_widen_f16(unsigned bits) { return axiscap::hw::widen_f16(bits); }
unsigned axiscap_emulate_narrow_f16(float value) { return axiscap::hw::narrow_f16(value); }
unsigned axiscap_emulate_narrow_bf16(float value) { return axiscap::hw::narrow_bf16(value); }
}
