// The table of kernels for sums of one instruction set.
#include "sums/sums.hpp"

namespace gradtrace::GRADTRACE_ISA {

template <class T> constexpr SumRows<T> along() { return {&units<T>, &join<T>, &reduce<T>, &one_rows<T>, &two_rows<T>, &standard_rows<T>}; }
template <class T, class U> constexpr SumProducts<T, U> around() {
    return {&raise<T, U>, &settle<T, U>, &shares<T, U>, &settle_shares<T, U>};
}

extern const SumsTable sums_table = {along<float>(), along<double>(), around<float, float>(), around<double, float>(), around<double, double>(), &added_rows};

}  // namespace gradtrace::GRADTRACE_ISA
