// The table of convolutions of one instruction set.
#include "conv/conv.hpp"

namespace gradtrace::GRADTRACE_ISA {

extern const ConvTable conv_table = {{&conv_input<float>, &conv_weight<float>}, {&conv_input<double>, &conv_weight<double>}};

}  // namespace gradtrace::GRADTRACE_ISA
