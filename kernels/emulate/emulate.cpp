// The C interface of the emulator, which tests/emulator loads as a shared library.
#include <cstring>
#include <set>

#include "../axiscap.cu"
#include "../ladder/ladder.cu"
#include "misuse.hpp"

using namespace axiscap::emulate;

extern "C" {

// Runs a kernel. Returns 0, or 1 with a `message` of at most `capacity` bytes. A launch fails if a driver
// would refuse it or if the kernel does something that CUDA does not allow.
int axiscap_emulate(const char* name, const axiscap::CapArgs* args, const Launch* launch, unsigned schedule,
                    char* message, size_t capacity) {
    std::string error;
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        error = std::string("no kernel ") + name;
    } else if (launch->blocks == 0 || launch->threads == 0 || launch->groups == 0) {
        error = "an empty grid or block";
    } else if (launch->threads % 32 != 0 || launch->threads * launch->groups > found->second.max_threads) {
        error = "more threads than the kernel's launch bounds allow";
    } else if (launch->cluster != found->second.cluster) {
        error = "clusters of another size than the kernel's";
    } else {
        error = machine().run(found->second.run, *args, *launch, static_cast<Schedule>(schedule % SCHEDULES));
    }
    if (capacity > 0) {
        size_t length = std::min(error.size(), capacity - 1);
        std::memcpy(message, error.data(), length);
        message[length] = 0;
    }
    return error.empty() ? 0 : 1;
}

// The conversions. The tests compare them with another implementation over all bit patterns.
float axiscap_emulate_widen_f16(unsigned bits) { return axiscap::hw::widen_f16(bits); }
unsigned axiscap_emulate_narrow_f16(float value) { return axiscap::hw::narrow_f16(value); }
unsigned axiscap_emulate_narrow_bf16(float value) { return axiscap::hw::narrow_bf16(value); }
}
