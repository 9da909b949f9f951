// Lists side by side, one in each lane: letting a weight in, and filling a block of them from one row's candidates.
#pragma once

#include <algorithm>
#include <vector>

#include "rows/simd.hpp"
#include "topk/topk.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int VECTORS = 4;                                     // vectors side by side in a block
template <class T> constexpr int COLUMNS = VECTORS * LANES<T>;  // lists of a block
template <class T> constexpr T LARGEST = std::numeric_limits<T>::max();

template <class V> constexpr bool SINGLE = std::is_same_v<V, Vec<float>>;

template <class V> inline bool any_greater(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (SINGLE<V>)
        return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
    else
        return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    if constexpr (SINGLE<V>)
        return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
    else
        return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ)) != 0;
#else
    return any(a > b);
#endif
}
template <class V> inline V highest_of(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (SINGLE<V>)
        return (V)_mm512_max_ps((__m512)a, (__m512)b);
    else
        return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (SINGLE<V>)
        return (V)_mm256_max_ps((__m256)a, (__m256)b);
    else
        return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return larger(a, b);
#endif
}
template <class V> inline V lowest_of(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (SINGLE<V>)
        return (V)_mm512_min_ps((__m512)a, (__m512)b);
    else
        return (V)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (SINGLE<V>)
        return (V)_mm256_min_ps((__m256)a, (__m256)b);
    else
        return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
    return smaller(a, b);
#endif
}

// Lets x into lists whose entries are `step` apart, from entry `from` on.
template <class T> inline void let_in(T *list, int64_t step, int keep, Vec<T> x, int from = 0) {
    for (int s = from; s < keep; s++) {
        const Vec<T> have = load(list + s * step);
        store(list + s * step, highest_of(x, have));
        x = lowest_of(x, have);
    }
}

// The same for one list, entries next to each other. Gives where x went, `keep` where it did not get in.
template <class T> inline int let_in(T *list, int64_t step, int keep, T x) {
    int at = keep;
    while (at > 0 && list[(at - 1) * step] < x) at--;
    for (int s = keep - 1; s > at; s--) list[s * step] = list[(s - 1) * step];
    if (at < keep) list[at * step] = x;
    return at;
}

// What orders positive numbers as they are ordered, in whole numbers.
template <class T> using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
template <class T> inline Bits<T> bits_of(T x) {
    Bits<T> bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
template <class T> inline T number_of(Bits<T> bits) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The lists of one row that are not empty, roughly the strongest first.
template <class T> struct Candidates {
    static constexpr int SHIFT = std::numeric_limits<T>::digits - 1 - 3;  // eight steps for each power of two
    static constexpr int STEPS = 512;

    int entries = 0, width = 0;  // of a list; its room in `value`, zeros behind the entries
    int64_t count = 0;
    std::vector<int32_t> at;
    std::vector<T> value, key;
    Bits<T> last = 0;  // the step in which all that is weaker lies, in any order

    // An upper bound of this candidate's key and all later ones'.
    T reach(int64_t c) const { return number_of<T>(std::max(bits_of(key[c]), last << SHIFT) | ((Bits<T>(1) << SHIFT) - 1)); }

    // Sorts raw lists (n × entries, next to each other) by their heads.
    void sort(const T *raw, int64_t n, int with) {
        entries = with, width = with == 1 ? 1 : std::max(with, 8), count = 0, least_ = 0;
        if (int64_t(at.size()) < n) at.resize(n), key.resize(n);
        if (int64_t(value.size()) < n * width) value.resize(n * width);
        int64_t places[STEPS + 1] = {};
        Bits<T> top = 0;
        for (int64_t k = 0; k < n; k++) top = std::max(top, bits_of(raw[k * with]) >> SHIFT);
        last = top > STEPS - 1 ? top - (STEPS - 1) : 0;
        for (int64_t k = 0; k < n; k++)
            if (raw[k * with] > 0) places[step(top, raw[k * with]) + 1]++, count++;
        for (int s = 0; s < STEPS; s++) places[s + 1] += places[s];
        for (int64_t k = 0; k < n; k++) {
            const T *list = raw + k * with;
            if (!(list[0] > 0)) continue;
            const int64_t c = places[step(top, raw[k * with])]++;
            at[c] = int32_t(k), key[c] = raw[k * with];
            for (int s = 0; s < width; s++) value[c * width + s] = s < with ? list[s] : T(0);
        }
    }

    // The smallest weight other than 0.
    T least() {
        if (least_ == 0) {
            least_ = INF<T>;
            for (int64_t x = 0; x < count * width; x++)
                if (value[x] > 0) least_ = std::min(least_, value[x]);
        }
        return least_;
    }

  private:
    T least_ = 0;

    static int step(Bits<T> top, T x) { return int(std::min<Bits<T>>(top - (bits_of(x) >> SHIFT), STEPS - 1)); }
};

// Eight entries of a vector of lists, in registers: exchanged by networks, so without a branch for each weight.
template <class T> struct Eight {
    using V = Vec<T>;
    V e[8];

    template <int i, int j> void exchange() {
        const V high = highest_of(e[i], e[j]);
        e[j] = lowest_of(e[i], e[j]);
        e[i] = high;
    }
    // Batcher's network, largest first.
    void sort() {
        exchange<0, 1>(), exchange<2, 3>(), exchange<4, 5>(), exchange<6, 7>();
        exchange<0, 2>(), exchange<1, 3>(), exchange<4, 6>(), exchange<5, 7>();
        exchange<1, 2>(), exchange<5, 6>();
        exchange<0, 4>(), exchange<1, 5>(), exchange<2, 6>(), exchange<3, 7>();
        exchange<2, 4>(), exchange<3, 5>();
        exchange<1, 2>(), exchange<3, 4>(), exchange<5, 6>();
    }
    // Keeps the eight largest of these and some others, both sorted.
    void merge(const Eight &x) {
        for (int i = 0; i < 8; i++) e[i] = highest_of(e[i], x.e[7 - i]);
        exchange<0, 4>(), exchange<1, 5>(), exchange<2, 6>(), exchange<3, 7>();
        exchange<0, 2>(), exchange<1, 3>(), exchange<4, 6>(), exchange<5, 7>();
        exchange<0, 1>(), exchange<2, 3>(), exchange<4, 5>(), exchange<6, 7>();
    }
    static Eight read(const T *from) {
        Eight out;
        for (int i = 0; i < 8; i++) out.e[i] = load(from + i * COLUMNS<T>);
        return out;
    }
    void write(T *to) const {
        for (int i = 0; i < 8; i++) store(to + i * COLUMNS<T>, e[i]);
    }
};

// Fills a block of lists with the largest products of candidates and edges.
//
// `edges` has limit(), above all edges times whatever is not in the keys; bound(at), above a candidate's edges; and
// edges(at, v), those of one vector of columns, which fetch(at) asks for ahead. What cannot be above the smallest last
// entry of the block is left out.
// The strongest candidates come first, so that most of the others cannot.
template <class T, class W> class Filling {
    using V = Vec<T>;

  public:
    // list: as many entries × COLUMNS<T> as room() says.
    Filling(T *list, int keep, const Candidates<T> &row, const W &edges)
        : list(list), keep(keep), row(row), edges(edges), size(room(keep)), limit(edges.limit()) {}

    static int room(int keep) { return networks(keep) ? 8 : keep; }

    // Gives the smallest last entry.
    T run() {
        std::fill(list, list + size * COLUMNS<T>, T(0));
        if (!networks(keep))
            one_by_one();
        else if (row.entries == 1)
            eight_by_eight();
        else
            list_by_list();
        update();
        return low;
    }

  private:
    static constexpr int64_t AHEAD = 6;  // candidates that edges are fetched ahead for

    static bool networks(int keep) { return keep > 4 && keep <= 8; }
    bool over(int64_t c) const { return row.reach(c) * limit <= low; }
    bool strong(int64_t c, int s) const { return row.value[c * row.width + s] * edges.bound(row.at[c]) > low; }

    void update() {
        V least = load(list + (keep - 1) * COLUMNS<T>);
        for (int v = 1; v < VECTORS; v++) least = lowest_of(least, load(list + (keep - 1) * COLUMNS<T> + v * LANES<T>));
        low = lowest<T>(least);
    }

    // Candidates of one entry, sorted in eights.
    void eight_by_eight() {
        for (int64_t c = 0; c < row.count && !over(c);) {
            T a[8] = {};
            int32_t at[8] = {};
            for (int n = 0; n < 8 && c < row.count; c++) {
                if (c + AHEAD < row.count) edges.fetch(row.at[c + AHEAD]);
                a[n] = row.value[c], at[n] = row.at[c];
                n += strong(c, 0);
            }
            eight(a, at);
            update();
        }
    }
    void eight(const T *a, const int32_t *at) {
        for (int v = 0; v < VECTORS; v++) {
            Eight<T> x;
            for (int i = 0; i < 8; i++) x.e[i] = a[i] * edges.edges(at[i], v);
            V most = x.e[0];
            for (int i = 1; i < 8; i++) most = highest_of(most, x.e[i]);
            if (!any_greater(most, load(list + 7 * COLUMNS<T> + v * LANES<T>))) continue;
            x.sort();
            let_in(x, v);
        }
    }
    void let_in(const Eight<T> &x, int v) {
        Eight<T> known = Eight<T>::read(list + v * LANES<T>);
        known.merge(x);
        known.write(list + v * LANES<T>);
    }

    // Candidates of several entries, which are sorted as they come.
    void list_by_list() {
        int64_t visited = 0;
        for (int64_t c = 0; c < row.count && !over(c); c++) {
            if (c + AHEAD < row.count) edges.fetch(row.at[c + AHEAD]);
            if (!strong(c, 0)) continue;
            const T *a = row.value.data() + c * row.width;
            for (int v = 0; v < VECTORS; v++) {
                const V w = edges.edges(row.at[c], v), head = a[0] * w;
                if (!any_greater(head, load(list + 7 * COLUMNS<T> + v * LANES<T>))) continue;
                Eight<T> x;
                for (int s = 0; s < 8; s++) x.e[s] = a[s] * w;
                let_in(x, v);
            }
            if (visited++ % 2 == 0) update();
        }
    }

    void one_by_one() {
        const T *last = list + (keep - 1) * COLUMNS<T>;
        for (int64_t c = 0; c < row.count && !over(c); c++)
            for (int s = 0; s < row.entries && strong(c, s); s++) {
                bool taken = false;
                for (int v = 0; v < VECTORS; v++) {
                    const V x = row.value[c * row.width + s] * edges.edges(row.at[c], v);
                    if (!any_greater(x, load(last + v * LANES<T>))) continue;
                    gradtrace::GRADTRACE_ISA::let_in(list + v * LANES<T>, COLUMNS<T>, keep, x);
                    taken = true;
                }
                if (!taken) break;
                update();
            }
    }

    T *list;
    int keep;
    const Candidates<T> &row;
    const W &edges;
    int size;
    T limit, low = 0;
};

template <class T, class W> T fill(T *list, int keep, const Candidates<T> &row, const W &edges) {
    return Filling<T, W>(list, keep, row, edges).run();
}
constexpr int room_for(int keep) { return std::max(keep, 8); }

// Reads `count` rows of lists (n each), one after another as n × entries.
template <class T> inline void read_rows(const Lists<T> &g, int64_t b, int64_t row, int64_t count, int64_t n, T *raw) {
    for (int s = 0; s < g.entries; s++) {
        const T *from = g.plane[s] + b * g.batch_stride + row * g.row_stride;
        T *to = raw + s;
        if (g.row_stride < g.stride || g.stride == 0) {
            for (int64_t k = 0; k < n; k++)
                for (int64_t r = 0; r < count; r++) to[(r * n + k) * g.entries] = from[r * g.row_stride + k * g.stride];
        } else {
            for (int64_t r = 0; r < count; r++)
                for (int64_t k = 0; k < n; k++) to[(r * n + k) * g.entries] = from[r * g.row_stride + k * g.stride];
        }
    }
}

// What a finished block tells: an infinite weight, or one that may be missing because products were too small.
template <class T> inline int judge(const T *list, bool lost) {
    int flags = lost ? LOST : 0;
    for (int j = 0; j < COLUMNS<T>; j++)
        if (list[j] > LARGEST<T>) flags |= TOO_LARGE;
    return flags;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
