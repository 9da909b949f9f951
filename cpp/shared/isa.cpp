#include "shared/isa.hpp"

#include <atomic>

namespace gradtrace {
namespace {

struct Named {
    const char *name;
    Isa isa;
};
constexpr Named names[] = {{"portable", Isa::portable}, {"v3", Isa::v3}, {"v4", Isa::v4}};

bool runs(Isa set) {
#ifdef GRADTRACE_X86
    if (set == Isa::v3) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    if (set == Isa::v4)
        return runs(Isa::v3) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return set == Isa::portable;
}

Isa best() {
#ifdef GRADTRACE_X86
    __builtin_cpu_init();
#endif
    return runs(Isa::v4) ? Isa::v4 : runs(Isa::v3) ? Isa::v3 : Isa::portable;
}

std::atomic<Isa> in_use{best()};

}  // namespace

Isa isa() { return in_use.load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> out;
    for (const Named &set : names)
        if (runs(set.isa)) out.emplace_back(set.name);
    return out;
}

bool use_instruction_set(const std::string &name) {
    for (const Named &set : names)
        if (set.name == name && runs(set.isa)) {
            in_use = set.isa;
            return true;
        }
    return false;
}

std::string instruction_set() {
    for (const Named &set : names)
        if (set.isa == isa()) return set.name;
    return {};
}

}  // namespace gradtrace
