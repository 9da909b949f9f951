// Segment maxima: every row goes to the result that an index names (embeddings, gathers).
//
// Threads never write to the same result: they share the columns where rows are wide, else the results. Rows
// are taken in order with a strict >, so of equal ones the first stays.
#include <vector>

#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// The part of the results that one thread owns, in one batch.
struct Share {
    int64_t batch, column, columns, low, high;
};

// Marks the results that this call has written: before that, a new value wins ties against what was there.
// Kept only where there was something, and only for the rows of results that are reached.
class Written {
  public:
    Written(bool needed, const Share &mine) : columns(mine.columns), low(mine.low) {
        if (needed) slot.assign(mine.high - mine.low, -1);
    }
    // A mark for each column of one row of results; null where none are kept.
    uint8_t *row(int64_t to) {
        if (slot.empty()) return nullptr;
        int64_t &at = slot[to - low];
        if (at < 0) {
            at = int64_t(marks.size());
            marks.resize(marks.size() + columns);
        }
        return marks.data() + at;
    }

  private:
    int64_t columns, low;
    std::vector<int64_t> slot;
    std::vector<uint8_t> marks;
};

// One row of g against one row of results. `f` is a power of two.
template <class T>
void wide_row(const Segment<T> &s, const Share &mine, int64_t r, int64_t to, uint8_t *written, Watch<T> &watch) {
    const Vec<T> f = all(T(s.f));
    const Int<T> here = all_int<T>(r);
    const T *g = s.g + (mine.batch * s.rows + r) * s.inner + mine.column;
    const int64_t first = (mine.batch * s.size + to) * s.inner + mine.column;
    auto step = [&](int64_t c, int64_t n) {
        const int64_t at = first + c;
        const Vec<T> gv = load(g + c, n), v = present(gv * f), have = load(s.out + at, n);
        Int<T> take = v > have;
        if (written) take |= (v == have) & (v > T(0)) & (load_bytes<T>(written + c, n) == 0);
        const Vec<T> best = take ? v : have;
        store(s.out + at, best, n);
        store_index<T>(s.arg + at, take ? here : load_index<T>(s.arg + at, n), n);
        if (written || s.choice || s.choice32)
            for (uint32_t bits = lane_bits<T>(take); bits; bits &= bits - 1) {
                const int l = __builtin_ctz(bits);
                if (written) written[c + l] = 1;
                if (s.choice) s.choice[at + l] = uint8_t(s.ordinal);
                if (s.choice32) s.choice32[at + l] = s.ordinal;
            }
        watch.operand(gv);
        watch.lost |= (best < TINY<T>)&(gv != 0);
    };
    int64_t c = 0;
    for (; c + LANES<T> <= mine.columns; c += LANES<T>) step(c, LANES<T>);
    if (c < mine.columns) step(c, mine.columns - c);
}

// The same for rows of one number.
template <class T>
inline void one_number(const Segment<T> &s, int64_t batch, int64_t r, int64_t to, uint8_t *written, bool &nan, bool &lost) {
    const T g = s.g[batch * s.rows + r], v = g * T(s.f);
    const int64_t at = batch * s.size + to;
    nan |= g != g;
    if (v > s.out[at] || (written && !*written && v == s.out[at] && v > 0)) {
        s.out[at] = v;
        s.arg[at] = int32_t(r);
        if (written) *written = 1;
        if (s.choice) s.choice[at] = uint8_t(s.ordinal);
        if (s.choice32) s.choice32[at] = s.ordinal;
    }
    lost |= s.out[at] < TINY<T> && g != 0;
}

// The same for all rows at once where nothing else is to be kept. Whether a row wins can't be foretold, so there
// is no branch on it: what doesn't win is stored again.
template <class T> void plain_numbers(const Segment<T> &s, const Share &mine, bool &nan, bool &lost) {
    constexpr int64_t AHEAD = 24;
    const T f = T(s.f), *g0 = s.g + mine.batch * s.rows;
    T *out = s.out + mine.batch * s.size, total = 0;
    int32_t *arg = s.arg + mine.batch * s.size;
    int small = 0;
    for (int64_t r = 0; r < s.rows; r++) {
        const int64_t to = s.index[r], next = s.index[std::min(r + AHEAD, s.rows - 1)];
        if (next >= 0) {
            __builtin_prefetch(out + next, 1);
            __builtin_prefetch(arg + next, 1);
        }
        if (to < mine.low || to >= mine.high) continue;
        const T g = g0[r], v = g * f, have = out[to], best = v > have ? v : have;
        const int32_t wins = -int32_t(v > have);
        out[to] = best;
        arg[to] = (int32_t(r) & wins) | (arg[to] & ~wins);
        total += g;
        small |= int(best < TINY<T>) & int(g != 0);
    }
    nan |= total != total;
    lost |= small != 0;
}

template <class T> void clear(const Segment<T> &s, const Share &mine) {
    if (mine.columns == s.inner) {
        const int64_t at = (mine.batch * s.size + mine.low) * s.inner, n = (mine.high - mine.low) * s.inner;
        std::fill_n(s.out + at, n, T(0));
        std::fill_n(s.arg + at, n, -1);
        return;
    }
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
    const bool plain = s.inner == 1 && s.init && !s.choice && !s.choice32;
    if (plain) plain_numbers(s, mine, nan, lost);
    Written written(!s.init, mine);
    for (int64_t r = 0; r < s.rows && !plain; r++) {
        const int64_t to = s.index[r];
        if (to < mine.low || to >= mine.high) continue;
        if (s.inner == 1)
            one_number(s, mine.batch, r, to, written.row(to), nan, lost);
        else
            wide_row(s, mine, r, to, written.row(to), watch);
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
