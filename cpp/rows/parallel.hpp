// What every row kernel does around its loops: share the work among threads, sum up what it saw.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "product/product.hpp"
#include "rows/simd.hpp"

namespace gradtrace::GRADTRACE_ISA {

constexpr int MAX_THREADS = 256;
constexpr int64_t SERIAL = 32768;  // elements below which waking a thread costs more than it saves

inline Summary nothing_seen() { return {0.0, std::numeric_limits<double>::infinity(), 0}; }

inline void add(Summary &to, const Summary &s) {
    to.max = std::max(to.max, s.max);
    to.min = std::min(to.min, s.min);
    to.flags |= s.flags;
}

// Largest and smallest results and what went wrong, lane by lane.
template <class T> struct Watch {
    Vec<T> high{}, low = all(INF<T>);
    Vec<T> total{};  // of magnitudes: a NaN stays in it, and nothing else makes it one
    Int<T> lost{};

    // `possible`: lanes where an edge with two non-zero ends exists.
    void result(Vec<T> out, Int<T> possible) {
        high = larger(out, high);
        low = smaller(out > 0 ? out : all(INF<T>), low);
        lost |= (out < TINY<T>)&possible;
    }
    void operand(Vec<T> a) { total += magnitude<T>(a); }
    void operands(Vec<T> a, Vec<T> b) { total += magnitude<T>(a) + magnitude<T>(b); }
    void invalid() { total = all(std::numeric_limits<T>::quiet_NaN()); }
    Summary summary() const {
        return {double(highest<T>(high)), double(lowest<T>(low)), (any(Int<T>(total != total)) ? NAN_SEEN : 0) | (any(lost) ? LOST : 0)};
    }
};

// How many threads a kernel that touches `elements` should use for `items` independent items.
inline int team(int64_t items, int64_t elements, int threads) {
    if (elements < SERIAL) return 1;
    const int64_t useful = std::min<int64_t>(items, elements / (SERIAL / 4));
    return int(std::max<int64_t>(1, std::min<int64_t>({useful, threads, MAX_THREADS})));
}

// Runs f(begin, end) over parts of 0 … items, one per thread of a team. f gives a Summary.
template <class F> Summary share(int64_t items, int64_t elements, int threads, F f) {
    const int n = team(items, elements, threads);
    if (n == 1) return f(int64_t(0), items);
    Summary parts[MAX_THREADS];
    for (int t = 0; t < n; t++) parts[t] = nothing_seen();
#ifdef _OPENMP
#pragma omp parallel for num_threads(n) schedule(static, 1)
#endif
    for (int t = 0; t < n; t++) parts[t] = f(items * t / n, items * (t + 1) / n);
    for (int t = 1; t < n; t++) add(parts[0], parts[t]);
    return parts[0];
}

}  // namespace gradtrace::GRADTRACE_ISA
