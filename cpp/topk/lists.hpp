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

template <class V> constexpr bool SINGLE = sizeof(V{}[0]) == sizeof(float);  // or of doubles

// The lanes in which a > b, as bits.
template <class V> inline uint64_t greater_lanes(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (SINGLE<V>)
        return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
    else
        return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    if constexpr (SINGLE<V>)
        return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)));
    else
        return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ)));
#else
    const auto mask = a > b;
    uint64_t bits = 0;
    if (any(mask))
        for (size_t l = 0; l < sizeof(V) / sizeof(a[0]); l++) bits |= uint64_t(mask[l] != 0) << l;
    return bits;
#endif
}
template <class V> inline bool any_greater(V a, V b) { return greater_lanes(a, b) != 0; }
// Of a register of either size, by one instruction where there is one: compilers make two of a comparison.
template <class V> inline V highest_of(V a, V b) {
#ifdef __AVX512F__
    if constexpr (sizeof(V) == 64 && SINGLE<V>) return (V)_mm512_max_ps((__m512)a, (__m512)b);
    if constexpr (sizeof(V) == 64 && !SINGLE<V>) return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#endif
#ifdef __AVX2__
    if constexpr (sizeof(V) == 32 && SINGLE<V>) return (V)_mm256_max_ps((__m256)a, (__m256)b);
    if constexpr (sizeof(V) == 32 && !SINGLE<V>) return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#endif
    return larger(a, b);
}
template <class V> inline V lowest_of(V a, V b) {
#ifdef __AVX512F__
    if constexpr (sizeof(V) == 64 && SINGLE<V>) return (V)_mm512_min_ps((__m512)a, (__m512)b);
    if constexpr (sizeof(V) == 64 && !SINGLE<V>) return (V)_mm512_min_pd((__m512d)a, (__m512d)b);
#endif
#ifdef __AVX2__
    if constexpr (sizeof(V) == 32 && SINGLE<V>) return (V)_mm256_min_ps((__m256)a, (__m256)b);
    if constexpr (sizeof(V) == 32 && !SINGLE<V>) return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#endif
    return smaller(a, b);
}
// The smallest number of some vectors that follow each other.
template <class T> inline T lowest_along(const T *from, int vectors) {
    Vec<T> least = load(from);
    for (int v = 1; v < vectors; v++) least = lowest_of(least, load(from + v * LANES<T>));
    return lowest<T>(least);
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

// The lists of one row from which something reaches a block of columns, roughly the strongest first.
template <class T> struct Candidates {
    static constexpr int SHIFT = std::numeric_limits<T>::digits - 1 - 3;  // eight steps for each power of two
    static constexpr int STEPS = 256;
    static constexpr int64_t FEW = 512;  // lists for which half the steps will do

    int64_t count = 0;
    std::vector<int32_t> at;
    std::vector<T> key;  // the largest product that a list can give in the block
    Bits<T> last = 0;    // the step in which all that is weaker lies, in any order

    const T *list(int64_t c) const { return raw + at[c] * width; }
    // An upper bound of this candidate's key and all later ones'.
    T reach(int64_t c) const { return number_of<T>(std::max(bits_of(key[c]), last << SHIFT) | ((Bits<T>(1) << SHIFT) - 1)); }

    // Takes lists (n × width, next to each other), which stay where they are.
    void take(const T *lists, int64_t n, int wide) {
        raw = lists, size = n, width = wide, least_ = 0;
        if (int64_t(at.size()) < n) at.resize(n), key.resize(n), head.resize(n), reached.resize(n), step.resize(n);
        for (int64_t k = 0; k < n; k++) head[k] = raw[k * width];
    }
    // Sorts them by what their heads, the largest entries, can become by edges of at most `bounds`.
    void sort(const T *bounds) {
        const int steps = size > FEW ? STEPS : STEPS / 2;
        T most{};
        for (int64_t k = 0; k < size; k++) {
            reached[k] = head[k] * bounds[k];
            most = most < reached[k] ? reached[k] : most;
        }
        const Bits<T> top = bits_of(most) >> SHIFT, lowest = top > Bits<T>(steps - 1) ? top - (steps - 1) : 0;
        last = lowest;
        for (int64_t k = 0; k < size; k++) {
            const Bits<T> mine = std::min(bits_of(reached[k]) >> SHIFT, top);  // NaN (∞ · 0) would be above all
            step[k] = int32_t(top - (mine > lowest ? mine : lowest)) + 1;
        }
        int32_t places[STEPS + 1];
        std::fill(places, places + steps + 1, 0);
        for (int64_t k = 0; k < size; k++) places[step[k]] += reached[k] > 0;
        for (int s = 1; s <= steps; s++) places[s] += places[s - 1];
        count = places[steps];
        for (int64_t k = 0; k < size; k++) {
            if (!(reached[k] > 0)) continue;
            const int32_t c = places[step[k] - 1]++;
            at[c] = int32_t(k), key[c] = reached[k];
        }
    }

    // The smallest weight other than 0.
    T least() {
        if (least_ == 0) {
            T low = INF<T>;
            for (int64_t x = 0; x < size * width; x++) {
                const T some = raw[x] > 0 ? raw[x] : INF<T>;
                low = some < low ? some : low;
            }
            least_ = low;
        }
        return least_;
    }

  private:
    const T *raw = nullptr;
    int64_t size = 0;
    int width = 0;
    T least_ = 0;
    std::vector<T> head, reached;
    std::vector<int32_t> step;
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

// Eight numbers in a register, or rows of them.
template <class T> struct Octet {
    typedef T V __attribute__((vector_size(8 * sizeof(T))));
    V v[8] = {};

    static V load(const T *from) {
        V x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    static void store(T *to, V x) { std::memcpy(to, &x, sizeof x); }
    static V backwards(V x) { return __builtin_shufflevector(x, x, 7, 6, 5, 4, 3, 2, 1, 0); }
    // The eight largest of two lists, of which the second is backwards: of a bitonic sequence, which three steps sort.
    static V merged(V a, V backwards) {
        V x = highest_of(a, backwards), y = __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
        x = __builtin_shufflevector(highest_of(x, y), lowest_of(x, y), 0, 1, 2, 3, 12, 13, 14, 15);
        y = __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
        x = __builtin_shufflevector(highest_of(x, y), lowest_of(x, y), 0, 1, 10, 11, 4, 5, 14, 15);
        y = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
        return __builtin_shufflevector(highest_of(x, y), lowest_of(x, y), 0, 9, 2, 11, 4, 13, 6, 15);
    }
    // The columns of these eight rows: what three perfect shuffles make of them.
    void transpose() {
        for (int round = 0; round < 3; round++) {
            V w[8];
            for (int i = 0; i < 4; i++) {
                w[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
                w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
            }
            std::copy(w, w + 8, v);
        }
    }
};

// Turns n lists of eight entries, next to each other, into planes that are `apart` from each other: the first `planes` of
// them. Behind the n-th there is room for as many lists as make it a multiple of eight.
template <class T> inline void to_planes(const T *list, int64_t n, T *to, int64_t apart, int planes = 8) {
    for (int64_t j = 0; j < n; j += 8) {
        Octet<T> x;
        for (int l = 0; l < 8; l++) x.v[l] = Octet<T>::load(list + 8 * (j + l));
        x.transpose();
        for (int s = 0; s < planes; s++) {
            if (n - j >= 8)
                Octet<T>::store(to + s * apart + j, x.v[s]);
            else
                std::memcpy(to + s * apart + j, &x.v[s], size_t(n - j) * sizeof(T));
        }
    }
}

// Lists are kept by networks of eight, if they have no more entries.
constexpr bool networks(int keep) { return keep <= 8; }

// The lists of a block of columns while they are filled, eight entries next to each other: few columns take anything of a
// list of candidates, and each of those merges it in one register.
template <class T> struct Columns {
    alignas(64) T list[COLUMNS<T> * 8], last[COLUMNS<T>];
    int keep, vectors;
    int64_t count;

    // Columns beyond the first `count` let nothing in.
    Columns(int keep, int64_t count) : keep(keep), vectors(int((count + LANES<T> - 1) / LANES<T>)), count(count) {
        std::fill(last, last + count, T(0)), std::fill(last + count, last + COLUMNS<T>, INF<T>);
    }
    // Reads what write() writes.
    void read(const T *from) {
        for (int64_t j = 0; j < count; j += 8) {
            Octet<T> x;
            for (int s = 0; s < 8; s++) x.v[s] = Octet<T>::load(from + s * COLUMNS<T> + j);
            x.transpose();
            for (int l = 0; l < 8; l++) Octet<T>::store(list + 8 * (j + l), x.v[l]);
        }
        std::copy(from + (keep - 1) * COLUMNS<T>, from + (keep - 1) * COLUMNS<T> + count, last);
    }
    // Writes entry by entry, COLUMNS<T> of each.
    void write(T *to) const { to_planes(list, count, to, COLUMNS<T>); }
    void put(int64_t j, typename Octet<T>::V x) {
        Octet<T>::store(list + 8 * j, x);
        last[j] = list[8 * j + keep - 1];
    }
    // Tells whether any column of these vectors takes anything of a list times the columns' edges.
    bool let_in(const T *a, const T *edges) {
        uint64_t taking = 0;
        for (int v = 0; v < vectors; v++)
            taking |= greater_lanes(Vec<T>(a[0] * load(edges + v * LANES<T>)), load(last + v * LANES<T>)) << (v * LANES<T>);
        if (!taking) return false;
        const auto backwards = Octet<T>::backwards(Octet<T>::load(a));
        for (; taking; taking &= taking - 1) {
            const int j = __builtin_ctzll(taking);
            put(j, Octet<T>::merged(Octet<T>::load(list + 8 * j), backwards * edges[j]));
        }
        return true;
    }
    T low() const { return lowest_along(last, vectors); }
};

// Fills a block of lists with the largest products of candidates and edges.
//
// `edges` has bound(at), above a candidate's edges, and edges(at, v), those of one vector of columns, or of all from row(at)
// on, which fetch(at) asks for ahead. What cannot be above the smallest last entry of the block is left out. The strongest
// candidates come first, so that most of the others cannot.
template <class T, class W> class Filling {
    using V = Vec<T>;

  public:
    // list: room() entries × COLUMNS<T>, of which the first `columns` are filled. Candidates have `entries` each, and zeros
    // behind them.
    Filling(T *list, int keep, int64_t columns, const Candidates<T> &row, int entries, const W &edges)
        : list(list), keep(keep), vectors(int((columns + LANES<T> - 1) / LANES<T>)), entries(entries), columns(columns), row(row),
          edges(edges) {}

    static int room(int keep) { return std::max(keep, 8); }

    // Gives the smallest last entry.
    T run() {
        std::fill(list, list + room(keep) * COLUMNS<T>, T(0));
        if (!networks(keep))
            one_by_one();
        else if (entries == 1)
            eight_by_eight();
        else
            list_by_list();
        return low;
    }

  private:
    static constexpr int64_t AHEAD = 6;  // candidates that edges are fetched ahead for
    static constexpr int64_t FEW = 4;    // of as many lists, letting something into one takes less time than into all
    static constexpr int64_t MANY = 16;  // candidates for which it pays to turn the lists

    bool over(int64_t c) const { return row.reach(c) <= low; }
    bool strong(int64_t c) const { return row.key[c] > low; }

    void update() { low = lowest_along(list + (keep - 1) * COLUMNS<T>, vectors); }

    // Candidates of one entry, sorted in eights.
    void eight_by_eight() {
        for (int64_t c = 0; c < row.count && !over(c);) {
            T a[8] = {};
            int32_t at[8] = {};
            for (int n = 0; n < 8 && c < row.count; c++) {
                if (c + AHEAD < row.count) edges.fetch(row.at[c + AHEAD]);
                a[n] = row.list(c)[0], at[n] = row.at[c];
                n += strong(c);
            }
            eight(a, at);
            update();
        }
    }
    void eight(const T *a, const int32_t *at) {
        for (int v = 0; v < vectors; v++) {
            Eight<T> x;
            for (int i = 0; i < 8; i++) x.e[i] = a[i] * edges.edges(at[i], v);
            V most = x.e[0];
            for (int i = 1; i < 8; i++) most = highest_of(most, x.e[i]);
            if (!any_greater(most, load(list + (keep - 1) * COLUMNS<T> + v * LANES<T>))) continue;
            x.sort();
            let_in(x, v);
        }
    }
    void let_in(const Eight<T> &x, int v) {
        Eight<T> known = Eight<T>::read(list + v * LANES<T>);
        known.merge(x);
        known.write(list + v * LANES<T>);
    }

    // Candidates of several entries, which are sorted as they come: merged into vectors of lists as long as many of them
    // take something, then into each that does.
    void list_by_list() {
        int64_t c = 0, taking = columns;
        for (; c < row.count && !over(c) && (FEW * taking >= columns || row.count - c < MANY); c++)
            if (strong(c)) taking = everywhere(row.list(c), row.at[c]), update();
        if (c == row.count || over(c)) return;
        Columns<T> some(keep, columns);
        some.read(list);
        for (int64_t visited = 0; c < row.count && !over(c); c++) {
            if (c + AHEAD < row.count) edges.fetch(row.at[c + AHEAD]);
            if (!strong(c)) continue;
            some.let_in(row.list(c), edges.row(row.at[c]));
            if (visited++ % 2 == 0) low = some.low();
        }
        low = some.low();
        some.write(list);
    }
    // Gives how many lists take anything of a candidate's.
    int everywhere(const T *a, int32_t at) {
        int taking = 0;
        for (int v = 0; v < vectors; v++) {
            const V w = edges.edges(at, v);
            const uint64_t lanes = greater_lanes(V(a[0] * w), load(list + (keep - 1) * COLUMNS<T> + v * LANES<T>));
            if (!lanes) continue;
            Eight<T> x;
            for (int s = 0; s < 8; s++) x.e[s] = a[s] * w;
            let_in(x, v);
            taking += __builtin_popcountll(lanes);
        }
        return taking;
    }

    void one_by_one() {
        const T *last = list + (keep - 1) * COLUMNS<T>;
        for (int64_t c = 0; c < row.count && !over(c); c++) {
            const T *a = row.list(c);
            for (int s = 0; s < entries && a[s] * edges.bound(row.at[c]) > low; s++) {
                bool taken = false;
                for (int v = 0; v < vectors; v++) {
                    const V x = a[s] * edges.edges(row.at[c], v);
                    if (!any_greater(x, load(last + v * LANES<T>))) continue;
                    gradtrace::GRADTRACE_ISA::let_in(list + v * LANES<T>, COLUMNS<T>, keep, x);
                    taken = true;
                }
                if (!taken) break;
                update();
            }
        }
    }

    T *list;
    int keep, vectors, entries;
    int64_t columns;
    const Candidates<T> &row;
    const W &edges;
    T low = 0;
};

template <class T, class W>
T fill(T *list, int keep, int64_t columns, const Candidates<T> &row, int entries, const W &edges) {
    return Filling<T, W>(list, keep, columns, row, entries, edges).run();
}
// The room of a candidate's entries: a network sorts eight.
constexpr int width_for(int entries) { return entries == 1 ? 1 : std::max(entries, 8); }

// How rows of lists lie: list k of row r at row_at[r] + at[k] of each plane.
//
// Attributes: whether rows lie next to each other, rather than the lists of one; and what of these does, (from, how many):
// in eights, if lists are of eight, and others one by one.
struct Lying {
    bool rows;
    std::vector<std::pair<int64_t, int64_t>> runs;

    Lying(const int64_t *row_at, int64_t count, const int64_t *at, int64_t n, int width)
        : rows(n < 2 || (count > 1 && row_at[1] - row_at[0] < at[1] - at[0])) {
        const int64_t *inner = rows ? row_at : at, size = rows ? count : n;
        for (int64_t i = 0; i < size; i += runs.back().second) {
            int64_t run = 1;
            while ((width != 8 || run < 8) && i + run < size && inner[i + run] == inner[i] + run) run++;
            runs.emplace_back(i, width == 8 && run < 8 ? 1 : run);
        }
    }
};

// Reads `count` rows of lists (n each), each as n × width, and `apart` from the next. What is behind the entries of a list is
// left as it is, or made 0.
template <class T>
inline void read_rows(const T *const *plane, int entries, const int64_t *row_at, int64_t count, const int64_t *at, int64_t n,
                      const Lying &lying, int width, int64_t apart, T *raw) {
    const int64_t *outer = lying.rows ? at : row_at, *inner = lying.rows ? row_at : at, last = (lying.rows ? n : count) - 1;
    const int64_t outer_to = lying.rows ? width : apart, inner_to = lying.rows ? apart : width;
    for (int64_t o = 0; o <= last; o++) {
        const int64_t from = outer[o], ahead = outer[std::min(o + 4, last)] - from;
        T *to = raw + o * outer_to;
        for (const auto &[i, run] : lying.runs) {
            const int64_t first = from + inner[i];
            if (run == 1 || width != 8) {
                for (int s = 0; s < entries; s++)
                    for (int64_t l = 0; l < run; l++) to[(i + l) * inner_to + s] = plane[s][first + l];
                continue;
            }
            Octet<T> x;
            for (int s = 0; s < entries; s++) x.v[s] = Octet<T>::load(plane[s] + first), __builtin_prefetch(plane[s] + first + ahead);
            x.transpose();
            for (int l = 0; l < 8; l++) Octet<T>::store(to + (i + l) * inner_to, x.v[l]);
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
