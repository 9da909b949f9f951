// The table of row kernels of one instruction set.
#include "rows/rows.hpp"

namespace gradtrace::GRADTRACE_ISA {

template <class T> constexpr RowKernels<T> kernels() {
    return {&scale<T>, &merge<T>, &reduce_max<T>, &segment_max<T>, &rank_one<T>, &rank_two<T>, &standard<T, T>, &tally<T>, &meeting<T>};
}

extern const RowsTable rows_table = {kernels<float>(), kernels<double>(), &standard<double, float>};

}  // namespace gradtrace::GRADTRACE_ISA
