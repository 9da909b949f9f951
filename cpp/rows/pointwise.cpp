// Pointwise weights, and merges of two cotangents of one tensor.
#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// |w| from what the rule gave; the roundings are those of PyTorch's backward formulas, which fuse tanh's.
template <Weight kind, class T> inline Vec<T> weigh(Vec<T> w, Vec<T> c) {
    switch (kind) {
        case Weight::constant: return c;
        case Weight::given: return magnitude<T>(w);
        case Weight::tanh: return magnitude<T>(one_minus_square<T>(w));
        case Weight::sigmoid: return magnitude<T>((T(1) - w) * w);
        case Weight::relu: return w > T(0) ? all(T(1)) : all(T(0));
        case Weight::exp: return exponential<T>(w);
    }
    return c;
}

// One run of contiguous results.
template <class T> struct Run {
    const T *g, *w;
    int64_t g_stride, w_stride, n;
    T *out;
};

template <Weight kind, bool unit, class T> void scale_run(const Run<T> &run, Vec<T> c, Vec<T> f, Watch<T> &watch) {
    const Vec<T> g_all = all(run.n ? run.g[0] : T(0)), w_all = all(run.n && run.w ? run.w[0] : T(0));
    auto step = [&](int64_t i, int64_t n) {
        Vec<T> g, w = w_all;
        if (unit) {
            g = load(run.g + i, n);
            if (kind != Weight::constant) w = load(run.w + i, n);
        } else {
            g = run.g_stride ? load_strided(run.g + i * run.g_stride, run.g_stride, n) : g_all;
            if (kind != Weight::constant && run.w_stride) w = load_strided(run.w + i * run.w_stride, run.w_stride, n);
        }
        const Vec<T> size = weigh<kind, T>(w, c), out = present(size * (g * f));
        store(run.out + i, out, n);
        watch.operands(g, w);
        Int<T> possible = (g != 0) & (size != 0);
        if (n < LANES<T>) {  // the lanes behind the end hold a broadcast operand's value
            const Int<T> inside = lane_numbers<T>() < all_int<T>(n);
            possible &= inside;
            watch.result(inside ? out : all(T(0)), possible);
        } else {
            watch.result(out, possible);
        }
    };
    int64_t i = 0;
    for (; i + LANES<T> <= run.n; i += LANES<T>) step(i, LANES<T>);
    if (i < run.n) step(i, run.n - i);
}

// Joins neighbouring axes that both operands step through evenly; drops axes of size 1.
template <class T> Scale<T> collapsed(const Scale<T> &s) {
    Scale<T> out = s;
    int d = 0;
    for (int a = 0; a < s.dims; a++) {
        if (s.shape[a] == 1) continue;
        const bool joins = d > 0 && out.g_stride[d - 1] == s.g_stride[a] * s.shape[a] &&
                           out.w_stride[d - 1] == s.w_stride[a] * s.shape[a];
        const int to = joins ? d - 1 : d++;
        out.shape[to] = (joins ? out.shape[to] : 1) * s.shape[a];
        out.g_stride[to] = s.g_stride[a];
        out.w_stride[to] = s.w_stride[a];
    }
    if (d == 0) out.shape[d] = 1, out.g_stride[d] = out.w_stride[d] = 1, d = 1;
    out.dims = d;
    return out;
}

template <Weight kind, class T> Summary scale_range(const Scale<T> &s, int64_t begin, int64_t end) {
    Watch<T> watch;
    const T constant = std::abs(T(s.c));
    watch.operand(all(constant));
    const Vec<T> c = all(constant), f = all(T(s.f));
    const int last = s.dims - 1;
    const bool unit = s.g_stride[last] == 1 && (kind == Weight::constant || s.w_stride[last] == 1);
    int64_t at[MAX_DIMS], g = 0, w = 0, rest = begin;
    for (int d = last; d >= 0; d--) {
        at[d] = rest % s.shape[d];
        rest /= s.shape[d];
        g += at[d] * s.g_stride[d];
        w += at[d] * s.w_stride[d];
    }
    for (int64_t p = begin; p < end;) {
        const int64_t n = std::min(s.shape[last] - at[last], end - p);
        const Run<T> run{s.g + g, s.w ? s.w + w : nullptr, s.g_stride[last], s.w_stride[last], n, s.out + p};
        (unit ? scale_run<kind, true, T> : scale_run<kind, false, T>)(run, c, f, watch);
        p += n;
        g -= at[last] * s.g_stride[last];
        w -= at[last] * s.w_stride[last];
        at[last] = 0;
        for (int d = last - 1; d >= 0; d--) {  // step to the next row
            g += s.g_stride[d];
            w += s.w_stride[d];
            if (++at[d] < s.shape[d]) break;
            g -= s.shape[d] * s.g_stride[d];
            w -= s.shape[d] * s.w_stride[d];
            at[d] = 0;
        }
    }
    return watch.summary();
}

}  // namespace

template <class T> Summary scale(const Scale<T> &given, int threads) {
    const Scale<T> s = collapsed(given);
    int64_t numel = 1;
    for (int d = 0; d < s.dims; d++) numel *= s.shape[d];
    if (numel == 0) return nothing_seen();
    return share(numel, numel, threads, [&](int64_t begin, int64_t end) {
        switch (s.kind) {
            case Weight::given: return scale_range<Weight::given>(s, begin, end);
            case Weight::tanh: return scale_range<Weight::tanh>(s, begin, end);
            case Weight::sigmoid: return scale_range<Weight::sigmoid>(s, begin, end);
            case Weight::relu: return scale_range<Weight::relu>(s, begin, end);
            case Weight::exp: return scale_range<Weight::exp>(s, begin, end);
            default: return scale_range<Weight::constant>(s, begin, end);
        }
    });
}

namespace {

// Writes `ordinal` where the mask is set.
template <class T> inline void choose(uint8_t *p, Int<T> mask, uint8_t ordinal, int64_t n) {
    using Bytes = typename Simd<T>::Bytes;
    if (n < LANES<T>) {
        for (int64_t l = 0; l < n; l++) p[l] = mask[l] ? ordinal : p[l];
        return;
    }
    const Bytes narrow = __builtin_convertvector(mask, Bytes), value = int8_t(ordinal) - Bytes{};
    Bytes old;
    std::memcpy(&old, p, sizeof old);
    old = (narrow & value) | (~narrow & old);
    std::memcpy(p, &old, sizeof old);
}

template <class T> Summary merge_range(const Merge<T> &m, int64_t begin, int64_t end) {
    Watch<T> watch;
    const Vec<T> fa = all(T(m.fa)), fb = all(T(m.fb));
    const bool indices = m.a_index && m.b_index;
    auto step = [&](int64_t i, int64_t n) {
        const Vec<T> a = load(m.a + i, n), b = load(m.b + i, n);
        const Vec<T> va = present(a * fa), vb = present(b * fb);
        const Int<T> take = (vb > T(0)) & (vb >= va);
        const Vec<T> out = take ? vb : va;
        store(m.a + i, out, n);
        if (indices) {
            const Int<T> old = load_index<T>(m.a_index + i, n), fresh = load_index<T>(m.b_index + i, n);
            store_index<T>(m.a_index + i, take ? fresh : old, n);
        }
        if (m.choice) choose<T>(m.choice + i, take, uint8_t(m.ordinal), n);
        if (m.choice32) {
            const Int<T> old = load_index<T>(m.choice32 + i, n);
            store_index<T>(m.choice32 + i, take ? all_int<T>(m.ordinal) : old, n);
        }
        watch.operands(a, b);
        watch.result(out, (a != 0) | (b != 0));
    };
    int64_t i = begin;
    for (; i + LANES<T> <= end; i += LANES<T>) step(i, LANES<T>);
    if (i < end) step(i, end - i);
    return watch.summary();
}

}  // namespace

template <class T> Summary merge(const Merge<T> &m, int threads) {
    return share(m.n, m.n, threads, [&](int64_t begin, int64_t end) { return merge_range(m, begin, end); });
}

template Summary scale(const Scale<float> &, int);
template Summary scale(const Scale<double> &, int);
template Summary merge(const Merge<float> &, int);
template Summary merge(const Merge<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
