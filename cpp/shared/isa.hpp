// Instruction sets: every file of kernels is compiled once for each, into gradtrace::portable,
// gradtrace::v3 (x86-64-v3: AVX2) and gradtrace::v4 (x86-64-v4: AVX-512), and exports a table of function
// pointers. Bindings, compiled once, pick the table of the set in use.
#pragma once

#include <string>
#include <vector>

namespace gradtrace {

enum class Isa { portable, v3, v4 };

// The set in use: the best one this processor has, unless `use_instruction_set` said otherwise.
Isa isa();

// Names of the sets that this build has and this processor can run, best last.
std::vector<std::string> instruction_sets();

// Use another set from now on (for tests); false where it is not one of `instruction_sets()`.
bool use_instruction_set(const std::string &name);
std::string instruction_set();

// Declares `extern const Type name` in the namespace of every instruction set.
#ifdef GRADTRACE_X86
#define GRADTRACE_TABLE(Type, name)                                                                                   \
    namespace portable { extern const Type name; }                                                                     \
    namespace v3 { extern const Type name; }                                                                           \
    namespace v4 { extern const Type name; }
// The table of that name of the set in use.
#define GRADTRACE_PICK(name)                                                                                           \
    (gradtrace::isa() == gradtrace::Isa::v4   ? gradtrace::v4::name                                                    \
     : gradtrace::isa() == gradtrace::Isa::v3 ? gradtrace::v3::name                                                    \
                                              : gradtrace::portable::name)
#else
#define GRADTRACE_TABLE(Type, name)                                                                                   \
    namespace portable { extern const Type name; }
#define GRADTRACE_PICK(name) (gradtrace::portable::name)
#endif

}  // namespace gradtrace
