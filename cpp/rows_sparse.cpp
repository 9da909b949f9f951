// Edge lists, alike for every row, and what belongs to the sets of components: tallies and gathers.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "rows.hpp"
#include "rows_parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// ---- edge lists ----------------------------------------------------------------------------------------

// `width` neighbouring results of place j.
template <class T>
void sparse_vector(const SparseMax<T> &s, int64_t o, int64_t j, int64_t at, int64_t width, Watch<T> &watch) {
    const Vec<T> f = all(T(s.f));
    Vec<T> best{};
    Int<T> arg = all_int<T>(-1), possible{};
    for (int64_t e = s.start[j]; e < s.start[j + 1]; e++) {
        const int64_t i = s.i[e];
        const Vec<T> g = load(s.g + (o * s.m + i) * s.inner + at, width), w = all(s.w ? s.w[e] : T(1));
        const Vec<T> p = magnitude<T>(w) * (g * f);
        const Int<T> here = all_int<T>(i), take = (p > best) | ((p == best) & (p > T(0)) & (here < arg));
        best = take ? p : best;
        arg = take ? here : arg;
        possible |= (g != 0) & (w != 0);
        watch.operands(g, w);
    }
    const int64_t to = (o * s.n + j) * s.inner + at;
    store(s.out + to, best, width);
    store_index<T>(s.arg + to, arg, width);
    watch.result(best, possible);
}

// One number per place: no lanes to fill.
template <class T> struct Extent {
    T high = 0, low = INF<T>;
    bool nan = false, lost = false;
};

template <class T> void sparse_number(const SparseMax<T> &s, int64_t o, int64_t j, Extent<T> &extent) {
    const T f = T(s.f), *g0 = s.g + o * s.m;
    T best = 0;
    int64_t arg = -1;
    bool possible = false;
    for (int64_t e = s.start[j]; e < s.start[j + 1]; e++) {
        const T g = g0[s.i[e]], w = s.w ? s.w[e] : T(1), p = std::abs(w) * (g * f);
        if (p > best || (p == best && p > 0 && s.i[e] < arg)) best = p, arg = s.i[e];
        possible |= g != 0 && w != 0;
        extent.nan |= g != g || w != w;
    }
    s.out[o * s.n + j] = best;
    s.arg[o * s.n + j] = int32_t(arg);
    extent.high = std::max(extent.high, best);
    if (best > 0) extent.low = std::min(extent.low, best);
    extent.lost |= best < TINY<T> && possible;
}

template <class T> Summary sparse_range(const SparseMax<T> &s, int64_t begin, int64_t end) {
    Watch<T> watch;
    Extent<T> extent;
    for (int64_t x = begin; x < end; x++) {
        const int64_t o = x / s.n, j = x % s.n;
        if (s.inner == 1)
            sparse_number(s, o, j, extent);
        else
            for (int64_t at = 0; at < s.inner; at += LANES<T>) sparse_vector(s, o, j, at, s.inner - at, watch);
    }
    Summary out = watch.summary();
    add(out, {double(extent.high), double(extent.low), (extent.nan ? NAN_SEEN : 0) | (extent.lost ? LOST : 0)});
    return out;
}

// ---- tallies -------------------------------------------------------------------------------------------

constexpr int64_t MOST_SETS = 65536;

// A hash table from bit sets to counts: open addressing, twice as many slots as sets.
class Table {
  public:
    // False where there are too many different sets.
    bool add(uint64_t bits, int64_t count, double strength) {
        size_t at = slot(bits);
        while (used[at] && entries[at].bits != bits) at = (at + 1) & (entries.size() - 1);
        if (!used[at]) {
            if (size == MOST_SETS) return false;
            used[at] = 1;
            entries[at] = {bits, 0, 0.0};
            size++;
        }
        entries[at].count += count;
        entries[at].strength += strength;
        if (2 * size > int64_t(entries.size())) grow();
        return true;
    }
    template <class F> void each(F f) const {
        for (size_t at = 0; at < entries.size(); at++)
            if (used[at]) f(entries[at]);
    }

  private:
    size_t slot(uint64_t bits) const { return (bits * 0x9e3779b97f4a7c15u) >> (64 - log_size); }
    void grow() {
        Table larger;
        larger.log_size = log_size + 1;
        larger.entries.resize(2 * entries.size());
        larger.used.resize(2 * used.size());
        each([&](const BitCount &e) { larger.add(e.bits, e.count, e.strength); });
        *this = std::move(larger);
    }
    int log_size = 6;
    int64_t size = 0;
    std::vector<BitCount> entries = std::vector<BitCount>(64);
    std::vector<uint8_t> used = std::vector<uint8_t>(64);
};

// Neighbours often have the same set, so a run of them is added at once.
template <class T> bool count_range(const uint64_t *bits, const T *strength, int64_t begin, int64_t end, Table &table) {
    for (int64_t x = begin; x < end;) {
        const uint64_t set = bits[x];
        int64_t count = 0;
        double total = 0;
        for (; x < end && bits[x] == set; x++) {
            const double s = strength ? double(strength[x]) : 1.0;
            count += s > 0;
            total += s > 0 && strength ? s : 0.0;
        }
        if (count && !table.add(set, count, total)) return false;
    }
    return true;
}

}  // namespace

template <class T> Summary sparse_max(const SparseMax<T> &s, int threads) {
    const int64_t edges = s.n ? s.start[s.n] : 0;
    return share(s.outer * s.n, s.outer * s.inner * (edges + s.n), threads,
                 [&](int64_t begin, int64_t end) { return sparse_range(s, begin, end); });
}

template <class T> Counts tally(const uint64_t *bits, const T *strength, int64_t n, int threads) {
    const int parts = team(n, n, threads);
    std::vector<Table> tables(parts);
    std::vector<uint8_t> fit(parts);  // not vector<bool>, whose elements share bytes among threads
    share(parts, n, parts, [&](int64_t from, int64_t to) {
        for (int64_t t = from; t < to; t++)
            fit[t] = count_range(bits, strength, n * t / parts, n * (t + 1) / parts, tables[t]);
        return nothing_seen();
    });
    bool fits = std::all_of(fit.begin(), fit.end(), [](uint8_t one) { return one != 0; });
    for (int t = 1; t < parts && fits; t++)
        tables[t].each([&](const BitCount &e) { fits = fits && tables[0].add(e.bits, e.count, e.strength); });
    if (!fits) return std::nullopt;
    std::vector<BitCount> out;
    tables[0].each([&](const BitCount &e) { out.push_back(e); });
    return out;
}

void gather_bits(int64_t n, const int32_t *index, const uint64_t *source, uint64_t also, uint64_t *out, int threads) {
    share(n, n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t x = begin; x < end; x++) out[x] = index[x] < 0 ? 0 : source[index[x]] | also;
        return nothing_seen();
    });
}

template Summary sparse_max(const SparseMax<float> &, int);
template Summary sparse_max(const SparseMax<double> &, int);
template Counts tally(const uint64_t *, const float *, int64_t, int);
template Counts tally(const uint64_t *, const double *, int64_t, int);

}  // namespace gradtrace::GRADTRACE_ISA
