// Jacobians of rank one beside their diagonal (softmax, log-softmax, RMS norm):
// out_j = max(|own_j|·f·g_j, |right_j|·max over i≠j of |left_i|·f·g_i).
//
// The maximum over i≠j is the row's largest, or its second largest where j is the winner itself. So one pass
// finds the two largest, and another writes the results.
#include "rows/rows.hpp"
#include "rows/line.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

template <RankOneKind kind, class T> struct Line {
    const T *g, *own_data, *left_data, *right_data;
    int64_t n;
    Vec<T> f;

    Vec<T> own(int64_t i, int64_t count) const {
        if (kind == RankOneKind::given) return magnitude<T>(load(own_data + i, count));
        const Vec<T> p = load(right_data + i, count), rest = T(1) - p;
        return magnitude<T>(kind == RankOneKind::softmax ? p * rest : rest);
    }
    Vec<T> left(int64_t i, int64_t count) const {
        if (kind == RankOneKind::given) return magnitude<T>(load(left_data + i, count));
        return kind == RankOneKind::softmax ? magnitude<T>(load(right_data + i, count)) : all(T(1));
    }
    Vec<T> right(int64_t i, int64_t count) const { return magnitude<T>(load(right_data + i, count)); }
    Vec<T> cotangent(int64_t i, int64_t count) const { return load(g + i, count) * f; }
    Vec<T> candidate(int64_t i) const { return left(i, n - i) * cotangent(i, n - i); }
};

// The two best candidates of a row.
template <class T> struct Winners {
    T first = 0, second = 0;
    int64_t first_at = -1, second_at = -1;
};

// The maxima of a row's stretches, so that an index is looked for in one stretch only.
template <class T> struct Stretches {
    static constexpr int64_t MOST = 512;
    int64_t size;
    T best[MOST];
    explicit Stretches(int64_t n) : size(std::max<int64_t>(1024, (n / MOST + LANES<T>) / LANES<T> * LANES<T>)) {}
};

// The first place in begin … end, other than `skip`, that has this value; -1 if none.
template <class L, class T> int64_t find(const L &line, int64_t begin, int64_t end, T value, int64_t skip) {
    for (int64_t i = begin; i < end; i += LANES<T>) {
        const Int<T> hit = (line.candidate(i) == value) & (lane_numbers<T>() != all_int<T>(skip - i));
        if (any(hit)) return i + first<T>(hit);
    }
    return -1;
}

template <class L, class T> void locate(const L &line, const Stretches<T> &stretches, Winners<T> &w) {
    const int64_t size = stretches.size;
    if (w.first == 0) return;
    int64_t s = 0;
    while (stretches.best[s] != w.first) s++;
    const int64_t home = s;
    w.first_at = find(line, s * size, std::min(line.n, (s + 1) * size), w.first, int64_t(-1));
    if (w.second == 0) return;
    for (s = 0; w.second_at < 0; s++)  // the first winner's stretch can hold the second one too
        if (s == home || stretches.best[s] == w.second)
            w.second_at = find(line, s * size, std::min(line.n, (s + 1) * size), w.second, w.first_at);
}

template <class L, class T> Winners<T> winners(const L &line, Watch<T> &watch) {
    Stretches<T> stretches(line.n);
    TopTwo<T> top;
    for (int64_t begin = 0, s = 0; begin < line.n; begin += stretches.size, s++) {
        const int64_t end = std::min(line.n, begin + stretches.size);
        TopTwo<T> here;
        auto step = [&](int64_t i, int64_t count) {
            const Vec<T> left = line.left(i, count), g = line.cotangent(i, count);
            here.add(present(left * g));
            watch.operands(left, g);
        };
        int64_t i = begin;
        for (; i + LANES<T> <= end; i += LANES<T>) step(i, LANES<T>);
        if (i < end) step(i, end - i);
        stretches.best[s] = here.largest();
        top.add(here);
    }
    Winners<T> out;
    out.first = top.largest();
    out.second = top.second_largest(out.first);
    locate(line, stretches, out);
    return out;
}

// Where a vector of results lies: all its places before the winner, around it, or all behind it.
enum class Side { before, around, behind };

// Results: the diagonal's own against the best candidate of another place. `low` is of zeros, too.
template <Side side, class L, class T>
inline void combine(const L &line, const Winners<T> &w, int64_t i, int64_t count, T *out, int32_t *arg, Watch<T> &watch,
                    Vec<T> &low) {
    const Vec<T> own = line.own(i, count), right = line.right(i, count), g = line.cotangent(i, count);
    const Int<T> j = lane_numbers<T>() + all_int<T>(i);
    Int<T> at = all_int<T>(w.first_at), take_own;
    Vec<T> other = all(w.first);
    if (side == Side::around) {
        const Int<T> winner = j == at;
        other = winner ? all(w.second) : other;
        at = winner ? all_int<T>(w.second_at) : at;
    }
    const Vec<T> a = present(own * g), b = present(right * other), best = larger(a, b);
    if (side == Side::before)
        take_own = a >= b;
    else if (side == Side::behind)
        take_own = a > b;
    else
        take_own = (a > b) | ((a == b) & (j < at));
    const Int<T> from = take_own ? j : at;
    store(out + i, best, count);
    store_index<T>(arg + i, best > T(0) ? from : all_int<T>(-1), count);
    watch.operands(own, right);
    watch.high = larger(best, watch.high);
    low = smaller(count < LANES<T> ? (lane_numbers<T>() < all_int<T>(count) ? best : all(INF<T>)) : best, low);
}

// Candidates with two non-zero factors, those that underflow included; 2 stands for more.
template <class L, class T> int pairs(const L &line, const Winners<T> &w) {
    if (w.second >= TINY<T>) return 2;
    int found = 0;
    for (int64_t i = 0; i < line.n && found < 2; i += LANES<T>) {
        const Int<T> pair = (line.left(i, line.n - i) != 0) & (load(line.g + i, line.n - i) != 0);
        found += __builtin_popcount(lane_bits<T>(pair));
    }
    return std::min(found, 2);
}

// The smallest result that isn't zero, and what was lost, of a row that has results below the normal ones.
template <class L, class T> void look_closely(const L &line, const Winners<T> &w, const T *out, Watch<T> &watch) {
    const int candidates = pairs(line, w);
    for (int64_t i = 0; i < line.n; i += LANES<T>) {
        const int64_t count = line.n - i;
        const Vec<T> own = line.own(i, count), right = line.right(i, count), g = load(line.g + i, count);
        const Int<T> winner = lane_numbers<T>() == all_int<T>(w.first_at - i);
        const Int<T> others = (right != 0) & ((winner ? all_int<T>(candidates - 1) : all_int<T>(candidates)) > 0);
        watch.result(load(out + i, count), ((own != 0) & (g != 0)) | others);
        // a candidate that was rounded or lost is harmless where the diagonal is above all it can have been
        const Vec<T> other = winner ? all(w.second) : all(w.first);
        watch.lost |= others & (other < TINY<T>)&~(own * line.cotangent(i, count) > right * TINY<T>);
    }
}

template <class L, class T> void row(const L &line, T *out, int32_t *arg, Watch<T> &watch) {
    const Winners<T> w = winners(line, watch);
    Vec<T> low = all(INF<T>);
    const int64_t around = std::max<int64_t>(w.first_at, 0) / LANES<T> * LANES<T>;
    int64_t i = 0;
    for (; i < around; i += LANES<T>) combine<Side::before>(line, w, i, LANES<T>, out, arg, watch, low);
    combine<Side::around>(line, w, i, line.n - i, out, arg, watch, low);
    for (i += LANES<T>; i + LANES<T> <= line.n; i += LANES<T>) combine<Side::behind>(line, w, i, LANES<T>, out, arg, watch, low);
    if (i < line.n) combine<Side::behind>(line, w, i, line.n - i, out, arg, watch, low);
    const T smallest = lowest<T>(low);
    if (smallest < TINY<T> || w.second < TINY<T>)
        look_closely(line, w, out, watch);
    else
        watch.low = smaller(low, watch.low);
}

template <RankOneKind kind, class T> Summary rows_range(const RankOne<T> &r, int64_t begin, int64_t end) {
    const Sizes sizes{r.n1, r.n2};
    Watch<T> watch;
    Reader<T> g(r.g, sizes), own(r.own, sizes), left(r.left, sizes), right(r.right, sizes);
    Writer<T> writer(r.out, r.arg, sizes);
    for (int64_t x = begin; x < end; x++) {
        const Line<kind, T> line{g.line(x), own.line(x), left.line(x), right.line(x), sizes.n(), all(T(r.f))};
        row(line, writer.line(x), writer.arg_line(x), watch);
        writer.finish(x);
    }
    return watch.summary();
}

}  // namespace

template <class T> Summary rank_one(const RankOne<T> &r, int threads) {
    const int64_t n = r.n1 * r.n2;
    if (n == 0) return nothing_seen();
    return share(r.rows, 4 * r.rows * n, threads, [&](int64_t begin, int64_t end) {
        switch (r.kind) {
            case RankOneKind::softmax: return rows_range<RankOneKind::softmax>(r, begin, end);
            case RankOneKind::log_softmax: return rows_range<RankOneKind::log_softmax>(r, begin, end);
            default: return rows_range<RankOneKind::given>(r, begin, end);
        }
    });
}

template Summary rank_one(const RankOne<float> &, int);
template Summary rank_one(const RankOne<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
