// Maxima over axes: out[o, i] = max over (n1, n2) of |w|·(f·g), with the smallest place that reaches it.
//
// Two ways through memory. Columns: neighbouring results sit in the lanes of a register, and the reduced
// axes are walked in order with a strict >. Lines: one result at a time, lanes along n2; the maximum of a
// stretch comes first, and only the best stretch is looked through for the index.
#include <cmath>
#include <memory>

#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t STRETCH = 1024;   // places of a line whose maximum is taken at once
constexpr int64_t FEW = 16;
constexpr int64_t COLUMNS = 4096;  // neighbouring results whose best stay in the cache

template <class T> struct Job {
    Reduce<T> r;
    Vec<T> f;
    bool watch;  // a product of non-zeros may vanish, so keep account of them
};

template <class T> inline Vec<T> product(const Job<T> &job, Vec<T> g, Vec<T> w) {
    return job.r.w.data ? magnitude<T>(w) * (g * job.f) : g * job.f;
}

// What a part of the reduced axes gives for one part of the results.
template <class T> struct Part {
    T *best;
    int32_t *index;
};

// ---- columns -------------------------------------------------------------------------------------------

// `width` neighbouring results of outer index o, over the places begin … end.
template <class T>
void reduce_columns(const Job<T> &job, int64_t o, int64_t i0, int64_t width, int64_t begin, int64_t end, Part<T> to,
                    Watch<T> &watch) {
    const Reduce<T> &r = job.r;
    constexpr int64_t COUNT = COLUMNS / LANES<T>;
    Vec<T> best[COUNT];
    Int<T> index[COUNT], seen[COUNT];
    const int64_t vectors = (width + LANES<T> - 1) / LANES<T>;
    for (int64_t v = 0; v < vectors; v++) best[v] = Vec<T>{}, index[v] = all_int<T>(-1), seen[v] = Int<T>{};
    const T *g0 = r.g.data + o * r.g.outer + i0 * r.g.inner;
    const T *w0 = r.w.data ? r.w.data + o * r.w.outer + i0 * r.w.inner : nullptr;
    for (int64_t k = begin; k < end; k++) {
        const int64_t k1 = k / r.n2, k2 = k - k1 * r.n2;
        const T *g = g0 + k1 * r.g.n1 + k2 * r.g.n2, *w = w0 ? w0 + k1 * r.w.n1 + k2 * r.w.n2 : nullptr;
        const Int<T> here = all_int<T>(k);
        auto step = [&](int64_t v, int64_t n) {
            const int64_t i = v * LANES<T>;
            const Vec<T> gv = load_strided(g + i * r.g.inner, r.g.inner, n);
            const Vec<T> wv = w ? load_strided(w + i * r.w.inner, r.w.inner, n) : all(T(1));
            const Vec<T> p = product(job, gv, wv);
            const Int<T> take = p > best[v];
            best[v] = take ? p : best[v];
            index[v] = take ? here : index[v];
            if (job.watch) seen[v] |= (gv != 0) & (wv != 0);
            watch.operands(gv, wv);
        };
        int64_t v = 0;
        for (; (v + 1) * LANES<T> <= width; v++) step(v, LANES<T>);
        if (v < vectors) step(v, width - v * LANES<T>);
    }
    for (int64_t v = 0; v < vectors; v++) {
        const int64_t n = width - v * LANES<T>;
        store(to.best + v * LANES<T>, best[v], n);
        store_index<T>(to.index + v * LANES<T>, index[v], n);
        watch.lost |= (best[v] < TINY<T>)&(seen[v] | (best[v] > T(0)));
    }
}

// ---- lines ---------------------------------------------------------------------------------------------

// A stretch of places with one k1 and neighbouring k2.
template <class T> struct Stretch {
    const T *g, *w;
    int64_t g_stride, w_stride, n, k;  // k: the first place
};

template <class T> inline Vec<T> product_at(const Job<T> &job, const Stretch<T> &s, int64_t i, Vec<T> &g, Vec<T> &w) {
    const int64_t n = s.n - i;
    g = load_strided(s.g + i * s.g_stride, s.g_stride, n);
    if (s.w) w = load_strided(s.w + i * s.w_stride, s.w_stride, n);
    return product(job, g, w);
}

template <class T> T highest_of(const Job<T> &job, const Stretch<T> &s, Int<T> &seen, Watch<T> &watch) {
    Vec<T> best{}, g, w = all(T(1));
    for (int64_t i = 0; i < s.n; i += LANES<T>) {
        best = larger(product_at(job, s, i, g, w), best);
        if (job.watch) seen |= (g != 0) & (w != 0);
        watch.operands(g, w);
    }
    return highest<T>(best);
}

template <class T> int64_t place_of(const Job<T> &job, const Stretch<T> &s, T value) {
    Vec<T> g, w = all(T(1));
    for (int64_t i = 0; i < s.n; i += LANES<T>) {
        const Int<T> hit = product_at(job, s, i, g, w) == value;
        if (any(hit)) return s.k + i + first<T>(hit);
    }
    return -1;
}

// The same for so few places that lanes would stay empty.
template <class T> void reduce_few(const Job<T> &job, int64_t o, int64_t i, int64_t begin, int64_t end, Part<T> to, Watch<T> &watch) {
    const Reduce<T> &r = job.r;
    const T f = job.f[0], *g0 = r.g.data + o * r.g.outer + i * r.g.inner;
    const T *w0 = r.w.data ? r.w.data + o * r.w.outer + i * r.w.inner : nullptr;
    T best = 0, total = 0;
    int32_t index = -1;
    bool seen = false;
    for (int64_t k = begin; k < end; k++) {
        const int64_t k1 = r.n1 == 1 ? 0 : k / r.n2, k2 = k - k1 * r.n2;
        const T g = g0[k1 * r.g.n1 + k2 * r.g.n2], w = w0 ? std::abs(w0[k1 * r.w.n1 + k2 * r.w.n2]) : T(1);
        const T p = w0 ? w * (g * f) : g * f;
        index = p > best ? int32_t(k) : index;
        best = p > best ? p : best;
        seen |= g != 0 && w != 0;
        total += g + w;  // neither is negative, so only a NaN makes it one
    }
    *to.best = best;
    *to.index = index;
    if (total != total) watch.invalid();
    if (best < TINY<T> && seen) watch.lost = ~Int<T>{};
}

template <class T>
void reduce_line(const Job<T> &job, int64_t o, int64_t i, int64_t begin, int64_t end, Part<T> to, Watch<T> &watch) {
    const Reduce<T> &r = job.r;
    const T *g0 = r.g.data + o * r.g.outer + i * r.g.inner;
    const T *w0 = r.w.data ? r.w.data + o * r.w.outer + i * r.w.inner : nullptr;
    T best = 0;
    Stretch<T> winner{};
    Int<T> seen{};
    for (int64_t k = begin; k < end;) {
        const int64_t k1 = k / r.n2, k2 = k - k1 * r.n2, n = std::min({r.n2 - k2, end - k, STRETCH});
        const T *w = w0 ? w0 + k1 * r.w.n1 + k2 * r.w.n2 : nullptr;
        const Stretch<T> s{g0 + k1 * r.g.n1 + k2 * r.g.n2, w, r.g.n2, r.w.n2, n, k};
        const T here = highest_of(job, s, seen, watch);
        if (here > best) best = here, winner = s;
        k += n;
    }
    *to.best = best;
    *to.index = best > 0 ? int32_t(place_of(job, winner, best)) : -1;
    if (best < TINY<T> && (best > 0 || any(seen))) watch.lost = ~Int<T>{};
}

// ---- both ----------------------------------------------------------------------------------------------

// Results are numbered o·blocks + block, a block being one result or a stretch of columns.
template <class T> struct Plan {
    bool columns;
    int64_t width, blocks, parts;
};

template <class T> Plan<T> plan(const Reduce<T> &r, int threads) {
    const int64_t elements = r.outer * r.n1 * r.n2 * r.inner;
    Plan<T> out;
    const bool lines = r.g.n2 == 1 && (!r.w.data || r.w.n2 == 1) && r.n2 >= LANES<T>;
    out.columns = r.inner >= LANES<T> / 2 && !(lines && r.g.inner != 1);
    out.width = out.columns ? std::min<int64_t>(COLUMNS, std::max<int64_t>(r.inner, 1)) : 1;
    if (out.columns && elements >= SERIAL)  // enough blocks for every thread, none narrower than a cache line
        while (out.width > 4 * LANES<T> && r.outer * ((r.inner + out.width - 1) / out.width) < threads)
            out.width = (out.width / 2 + LANES<T> - 1) / LANES<T> * LANES<T>;
    out.blocks = (r.inner + out.width - 1) / out.width;
    const int team_size = team(r.n1 * r.n2, elements, threads);
    out.parts = r.outer * out.blocks < team_size ? team_size : 1;
    return out;
}

template <class T>
void reduce_blocks(const Job<T> &job, const Plan<T> &p, int64_t from, int64_t to, int64_t begin, int64_t end, Part<T> out,
                   Watch<T> &watch) {
    for (int64_t b = from; b < to; b++) {
        const int64_t o = b / p.blocks, i = b % p.blocks * p.width, at = o * job.r.inner + i;
        const Part<T> here{out.best + at, out.index + at};
        if (p.columns)
            reduce_columns(job, o, i, std::min(p.width, job.r.inner - i), begin, end, here, watch);
        else if (end - begin <= FEW)
            reduce_few(job, o, i, begin, end, here, watch);
        else
            reduce_line(job, o, i, begin, end, here, watch);
    }
}

// Few results, many places: each thread takes some places, the earliest of equal winners stays.
template <class T> Summary reduce_in_parts(const Job<T> &job, const Plan<T> &p) {
    const Reduce<T> &r = job.r;
    const int64_t results = r.outer * r.inner, places = r.n1 * r.n2;
    std::unique_ptr<T[]> best(new T[results * p.parts]);
    std::unique_ptr<int32_t[]> index(new int32_t[results * p.parts]);
    Summary s = share(p.parts, SERIAL * p.parts, int(p.parts), [&](int64_t from, int64_t to) {
        Watch<T> watch;
        for (int64_t t = from; t < to; t++)
            reduce_blocks(job, p, 0, r.outer * p.blocks, places * t / p.parts, places * (t + 1) / p.parts,
                          Part<T>{best.get() + t * results, index.get() + t * results}, watch);
        return watch.summary();
    });
    bool lost = false;
    for (int64_t x = 0; x < results; x++) {
        r.out[x] = best[x], r.index[x] = index[x];
        for (int64_t t = 1; t < p.parts; t++)
            if (best[t * results + x] > r.out[x]) r.out[x] = best[t * results + x], r.index[x] = index[t * results + x];
        lost |= r.out[x] < TINY<T>;
    }
    if (!lost) s.flags &= ~LOST;
    return s;
}

template <class T> Summary with_extent(const T *out, int64_t n, Summary s) {
    Watch<T> watch;
    for (int64_t x = 0; x < n; x += LANES<T>) watch.result(load(out + x, n - x), Int<T>{});
    add(s, watch.summary());
    return s;
}

// Two reduced axes that are one in memory become one; the longer run goes last.
template <class T> Reduce<T> joined(Reduce<T> r) {
    if (!r.w.data) r.w = Grid<T>{nullptr, 0, 0, 0, 0};
    const bool one = r.g.n1 == r.g.n2 * r.n2 && r.w.n1 == r.w.n2 * r.n2;
    if (r.n2 == 1) {
        r.n2 = r.n1, r.n1 = 1, r.g.n2 = r.g.n1, r.w.n2 = r.w.n1;
    } else if (one) {
        r.n2 *= r.n1, r.n1 = 1;
    }
    return r;
}

}  // namespace

template <class T> Summary reduce_max(const Reduce<T> &given, int threads) {
    const Reduce<T> r = joined(given);
    const int64_t results = r.outer * r.inner, places = r.n1 * r.n2;
    if (results == 0) return nothing_seen();
    if (places == 0) {
        std::fill_n(r.out, results, T(0));
        std::fill_n(r.index, results, -1);
        return nothing_seen();
    }
    const Job<T> job{r, all(T(r.f)), r.w.data != nullptr || r.f < 1};
    const Plan<T> p = plan(r, threads);
    Summary s;
    if (p.parts > 1)
        s = reduce_in_parts(job, p);
    else
        s = share(r.outer * p.blocks, results * places, threads, [&](int64_t from, int64_t to) {
            Watch<T> watch;
            reduce_blocks(job, p, from, to, 0, places, Part<T>{r.out, r.index}, watch);
            return watch.summary();
        });
    return with_extent(r.out, results, s);
}

template Summary reduce_max(const Reduce<float> &, int);
template Summary reduce_max(const Reduce<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
