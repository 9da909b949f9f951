// Segment maxima: every row goes to the result that an index names (embeddings, gathers).
//
// Threads never write to the same result: they share the columns where rows are wide, else the results. Rows
// are taken in order with a strict >, so of equal ones the first stays.
#include <memory>

#include "rows.hpp"
#include "rows_parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// The part of the results that one thread owns, in one batch.
struct Share {
    int64_t batch, column, columns, low, high;
};

// `touched`: results this call has written to; before that a new value wins ties against what is there.
template <class T> inline void improve(const Segment<T> &s, T *out, int32_t *arg, int64_t at, int64_t n, Vec<T> v,
                                       Int<T> old, Int<T> r) {
    const Vec<T> have = load(out, n);
    const Int<T> take = (v > have) | (old & (v == have) & (v > T(0)));
    store(out, take ? v : have, n);
    store_index<T>(arg, take ? r : load_index<T>(arg, n), n);
    if (s.choice)
        for (int64_t l = 0; l < n && l < LANES<T>; l++)
            if (take[l]) s.choice[at + l] = uint8_t(s.ordinal);
    if (s.choice32)
        for (int64_t l = 0; l < n && l < LANES<T>; l++)
            if (take[l]) s.choice32[at + l] = s.ordinal;
}

template <class T> void wide_row(const Segment<T> &s, const Share &mine, int64_t r, int64_t to, bool old, Watch<T> &watch) {
    const Vec<T> f = all(T(s.f));
    const Int<T> here = all_int<T>(r), fresh = old ? ~Int<T>{} : Int<T>{};
    const T *g = s.g + (mine.batch * s.rows + r) * s.inner + mine.column;
    const int64_t at = (mine.batch * s.size + to) * s.inner + mine.column;
    auto step = [&](int64_t c, int64_t n) {
        const Vec<T> gv = load(g + c, n), v = present(gv * f);
        improve(s, s.out + at + c, s.arg + at + c, at + c, n, v, fresh, here);
        watch.operand(gv);
        watch.lost |= (load(s.out + at + c, n) < TINY<T>)&(gv != 0);
    };
    int64_t c = 0;
    for (; c + LANES<T> <= mine.columns; c += LANES<T>) step(c, LANES<T>);
    if (c < mine.columns) step(c, mine.columns - c);
}

template <class T> inline void one_number(const Segment<T> &s, int64_t batch, int64_t r, int64_t to, bool old, bool &nan, bool &lost) {
    const T g = s.g[batch * s.rows + r], v = g * T(s.f);
    const int64_t at = batch * s.size + to;
    nan |= g != g;
    if (v > s.out[at] || (old && v == s.out[at] && v > 0)) {
        s.out[at] = v;
        s.arg[at] = int32_t(r);
        if (s.choice) s.choice[at] = uint8_t(s.ordinal);
        if (s.choice32) s.choice32[at] = s.ordinal;
    }
    lost |= s.out[at] < TINY<T> && g != 0;
}

// Marks results that this call has reached; only kept where ties need it.
struct Touched {
    std::unique_ptr<uint8_t[]> mark;
    int64_t low;
    Touched(bool needed, int64_t low, int64_t high) : low(low) {
        if (needed) mark.reset(new uint8_t[high - low]());
    }
    bool first_time(int64_t at) {
        if (!mark || mark[at - low]) return false;
        mark[at - low] = 1;
        return true;
    }
};

template <class T> void clear(const Segment<T> &s, const Share &mine) {
    for (int64_t to = mine.low; to < mine.high; to++) {
        const int64_t at = (mine.batch * s.size + to) * s.inner + mine.column;
        std::fill_n(s.out + at, mine.columns, T(0));
        std::fill_n(s.arg + at, mine.columns, -1);
    }
}

template <class T> Summary segment_share(const Segment<T> &s, const Share &mine) {
    Watch<T> watch;
    bool nan = false, lost = false;
    if (s.init) clear(s, mine);
    Touched touched(!s.init, mine.low, mine.high);
    for (int64_t r = 0; r < s.rows; r++) {
        const int64_t to = s.index[r];
        if (to < mine.low || to >= mine.high) continue;
        if (s.inner == 1)
            one_number(s, mine.batch, r, to, touched.first_time(to), nan, lost);
        else
            wide_row(s, mine, r, to, touched.first_time(to), watch);
    }
    Summary out = watch.summary();
    out.flags |= (nan ? NAN_SEEN : 0) | (lost ? LOST : 0);
    return out;
}

// Largest and smallest of some results.
template <class T> Summary extent(const Segment<T> &s, int64_t batch, int64_t low, int64_t high) {
    Watch<T> watch;
    const T *out = s.out + (batch * s.size + low) * s.inner;
    const int64_t n = (high - low) * s.inner;
    for (int64_t x = 0; x < n; x += LANES<T>) watch.result(load(out + x, n - x), Int<T>{});
    return watch.summary();
}

// Of the results that rows went to; where rows are many, of all.
template <class T> Summary reached_extent(const Segment<T> &s) {
    Summary out = nothing_seen();
    for (int64_t b = 0; b < s.batch; b++)
        if (s.rows < s.size)
            for (int64_t r = 0; r < s.rows; r++) {
                if (s.index[r] >= 0) add(out, extent(s, b, s.index[r], s.index[r] + 1));
            }
        else
            add(out, extent(s, b, 0, s.size));
    return out;
}

}  // namespace

template <class T> Summary segment_max(const Segment<T> &s, int threads) {
    if (s.batch == 0 || s.inner == 0 || s.size == 0) return nothing_seen();
    const int64_t work = s.batch * s.inner * (s.rows + (s.init ? s.size : 0));
    const bool by_column = s.inner >= 16 * LANES<T>;
    const int64_t pieces = by_column ? s.inner / (4 * LANES<T>) : s.size;
    const int64_t parts = team(pieces, work, threads);
    Summary out = share(s.batch * parts, work, threads, [&](int64_t from, int64_t to) {
        Summary part = nothing_seen();
        for (int64_t x = from; x < to; x++) {
            const int64_t b = x / parts, p = x % parts;
            const int64_t n = by_column ? s.inner : s.size, begin = n * p / parts, end = n * (p + 1) / parts;
            add(part, segment_share(s, by_column ? Share{b, begin, end - begin, 0, s.size}
                                                 : Share{b, 0, s.inner, begin, end}));
        }
        return part;
    });
    add(out, reached_extent(s));
    return out;
}

template Summary segment_max(const Segment<float> &, int);
template Summary segment_max(const Segment<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
