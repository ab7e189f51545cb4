// Fibers with one stack each. ucontext starts them and setjmp switches between them, because swapcontext
// makes a system call per switch for the signal mask. Under AddressSanitizer, which must be told of every
// switch, swapcontext switches.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define AXISCAP_ASAN 1
#else
#define AXISCAP_ASAN 0
#endif

namespace axiscap {
namespace emulate {

class Fibers {
  public:
    static constexpr size_t STACK = AXISCAP_ASAN ? 256 << 10 : 64 << 10;

    ~Fibers() {
        if (stacks_) munmap(stacks_, capacity_ * STACK);
    }

    // Prepares `count` fibers that begin in `entry` and starts none of them.
    void prepare(size_t count, void (*entry)()) {
        entry_ = entry;
        if (count > capacity_) {
            if (stacks_) munmap(stacks_, capacity_ * STACK);
            void* memory = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) {
                std::perror("no memory for the emulator's stacks");
                std::abort();
            }
            stacks_ = static_cast<char*>(memory);
            capacity_ = count;
        }
        contexts_.resize(count);
        states_.assign(count, FRESH);
#if AXISCAP_ASAN
        // Ended fibers leave the red zones of their frames poisoned.
        __asan_unpoison_memory_region(stacks_, count * STACK);
#endif
    }

    // Runs fiber `i` until it calls `leave` or `finish`. Called by the scheduler.
    void enter(size_t i) {
        now_ = i;
        Context& fiber = contexts_[i];
#if AXISCAP_ASAN
        __sanitizer_start_switch_fiber(&home_.fake, stacks_ + i * STACK, STACK);
        if (states_[i] == FRESH) make(fiber, i);
        states_[i] = STARTED;
        swapcontext(&home_.context, &fiber.context);
        __sanitizer_finish_switch_fiber(home_.fake, nullptr, nullptr);
#else
        if (_setjmp(home_.jump) != 0) return;
        if (states_[i] == FRESH) {
            states_[i] = STARTED;
            make(fiber, i);
            setcontext(&fiber.context);
        }
        _longjmp(fiber.jump, 1);
#endif
    }

    // Completes the switch to a new fiber. Must be the first call in a fiber.
    void arrived() {
#if AXISCAP_ASAN
        __sanitizer_finish_switch_fiber(nullptr, &home_stack_, &home_size_);
#endif
    }

    // Switches from a fiber to the scheduler. Returns when the fiber is entered again.
    void leave() {
        Context& fiber = contexts_[now_];
#if AXISCAP_ASAN
        __sanitizer_start_switch_fiber(&fiber.fake, home_stack_, home_size_);
        swapcontext(&fiber.context, &home_.context);
        __sanitizer_finish_switch_fiber(fiber.fake, &home_stack_, &home_size_);
#else
        if (_setjmp(fiber.jump) == 0) _longjmp(home_.jump, 1);
#endif
    }

    // Ends the calling fiber.
    [[noreturn]] void finish() {
        states_[now_] = OVER;
#if AXISCAP_ASAN
        __sanitizer_start_switch_fiber(nullptr, home_stack_, home_size_);
        setcontext(&home_.context);
#else
        _longjmp(home_.jump, 1);
#endif
        std::abort();
    }

    bool over(size_t i) const { return states_[i] == OVER; }

  private:
    enum State { FRESH, STARTED, OVER };
    struct Context {
        ucontext_t context;
        jmp_buf jump;
        void* fake = nullptr;
    };

    void make(Context& fiber, size_t i) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks_ + i * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry_, 0);
    }

    char* stacks_ = nullptr;
    size_t capacity_ = 0;
    std::vector<Context> contexts_;
    std::vector<State> states_;
    Context home_;
    const void* home_stack_ = nullptr;
    size_t home_size_ = 0;
    size_t now_ = 0;
    void (*entry_)() = nullptr;
};

}  // namespace emulate
}  // namespace axiscap
