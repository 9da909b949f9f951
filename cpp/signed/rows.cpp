// Rows whose scalars are all connected, by Jacobians of rank one or two beside a diagonal of their own.
//
// Rank one: what l_i·g_i gives is the same for every j but for j's own, so the strongest two of each end are enough:
// rounding is monotone. Rank two: scalars are put in the order of right_1, roughly, so that the right factors of a block
// of j's lie in a small box; over it, |left · right|·|g| has a bound that is nearly reached, and only those i are met
// whose bound is above what every j of the block has already.
#include <algorithm>
#include <cmath>
#include <vector>

#include "signed/ends.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int SIDE = 2;             // vectors side by side
constexpr int64_t SMALL = 1 << 13;  // scalars below which waking a thread costs more than it saves
constexpr int BUCKETS = 256;        // of scalars, by right_1
constexpr int OFTEN = 8;            // scalars met between two looks at what is left to beat
constexpr int RECENT = 16;          // scalars that the block before was changed by last
template <class T> constexpr int64_t WIDTH = SIDE *Simd<T>::lanes;
template <class T> constexpr T UP = T(1) + T(1.0 / (1 << 18));                      // covers the rounding of a bound
template <class T> constexpr T SLACK = 8 * std::numeric_limits<T>::epsilon();       // of a sum before it cancels

// One row, in the order in which it is worked on, padded with what has no path and no edge.
template <class T> struct SignedRow {
    int64_t n = 0, whole = 0;
    int flags = 0;
    std::vector<T> high, low, own, left[2], right[2], size, floor;
    std::vector<int32_t> order;  // of its scalars; empty: as they lie

    void read(const SignedRows<T> &p, int64_t b, int64_t row) {
        n = p.n, whole = (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>, flags = 0;
        order.clear();
        if (p.rank == 2 && n > 2 * WIDTH<T>) sort(p.right[1].data + row * p.right[1].row_stride, p.right[1].stride);
        const int64_t at = b * p.g.batch_stride + row * p.g.row_stride;
        take(p.g.high + at, p.g.stride, high, NOT_A_NUMBER<T>), take(p.g.low + at, p.g.stride, low, NOT_A_NUMBER<T>);
        factor(p.own, row, own);
        T least[2] = {INFINITE<T>, INFINITE<T>};
        for (int r = 0; r < p.rank; r++) {
            factor(p.left[r], row, left[r]), factor(p.right[r], row, right[r]);
            least[0] = std::min(least[0], smallest(left[r])), least[1] = std::min(least[1], smallest(right[r]));
        }
        if (p.rank == 2 && least[0] < INFINITE<T> && least[1] < INFINITE<T> && least[0] * least[1] <= NORMAL<T>) flags |= LOST;
        if (p.rank == 2) measure();
    }
    int64_t place(int64_t i) const { return order.empty() ? i : order[i]; }

  private:
    void take(const T *from, int64_t stride, std::vector<T> &to, T beyond) {
        to.resize(whole);
        if (order.empty())
            for (int64_t i = 0; i < n; i++) to[i] = from[i * stride];
        else
            for (int64_t i = 0; i < n; i++) to[i] = from[order[i] * stride];
        for (int64_t i = n; i < whole; i++) to[i] = beyond;
    }
    void factor(const SignedEdges<T> &from, int64_t row, std::vector<T> &to) {
        take(from.data + row * from.row_stride, from.stride, to, T(0));
        int found = 0;
        for (int64_t i = 0; i < n; i++) found |= (to[i] != to[i] ? int(NAN_SEEN) : 0) | (std::abs(to[i]) > GREATEST<T> ? BEYOND : 0);
        flags |= found;
    }
    static T smallest(const std::vector<T> &x) {
        T out = INFINITE<T>;
        for (T one : x) {
            const T a = one == 0 ? INFINITE<T> : std::abs(one);
            out = a < out ? a : out;
        }
        return out;
    }
    void measure() {
        size.resize(whole), floor.resize(whole);
        for (int64_t i = 0; i < whole; i++) {
            const T h = std::abs(high[i]), l = std::abs(low[i]), m = (h > l ? h : l) * UP<T>;
            size[i] = m > 0 ? m : T(0);  // a NaN is no path
            floor[i] = m > 0 ? NORMAL<T> : T(0);
        }
    }
    void sort(const T *by, int64_t stride) {
        T least = by[0], most = by[0];
        for (int64_t i = 1; i < n; i++) least = std::min(least, by[i * stride]), most = std::max(most, by[i * stride]);
        const T scale = BUCKETS / (most - least);
        if (!(scale > 0 && scale < GREATEST<T>)) return;
        int32_t begin[BUCKETS + 1] = {};
        bucket.resize(n), order.resize(n);
        for (int64_t i = 0; i < n; i++) {
            const T at = (by[i * stride] - least) * scale;
            begin[1 + (bucket[i] = at >= 0 && at < BUCKETS ? int32_t(at) : BUCKETS - 1)]++;
        }
        for (int x = 0; x < BUCKETS; x++) begin[x + 1] += begin[x];
        for (int64_t i = 0; i < n; i++) order[begin[bucket[i]]++] = int32_t(i);
    }
    std::vector<int32_t> bucket;
};

// The end that is furthest in one direction, whose it is, and the next one.
template <class T> struct Furthest {
    T first, second;
    int64_t of = -1;

    explicit Furthest(T none) : first(none), second(none) {}
    template <class Before> void see(T x, int64_t i, Before before) {
        if (before(first, x)) second = first, first = x, of = i;
        else if (before(second, x)) second = x;
    }
    T without(int64_t j) const { return j == of ? second : first; }
};

template <class T> int rank_one(const SignedRow<T> &row, T *high, T *low) {
    Furthest<T> most(-INFINITE<T>), least(INFINITE<T>);
    bool lost = false;
    for (int64_t i = 0; i < row.n; i++) {
        const T l = row.left[0][i];
        if (l == 0 || row.high[i] != row.high[i]) continue;
        const T x = l * row.high[i], y = l * row.low[i];
        lost |= std::abs(x) <= NORMAL<T> || std::abs(y) <= NORMAL<T>;
        most.see(x > y ? x : y, i, [](T a, T b) { return a < b; });
        least.see(x > y ? y : x, i, [](T a, T b) { return b < a; });
    }
    for (int64_t j = 0; j < row.n; j++) {
        T top = -INFINITE<T>, bottom = INFINITE<T>;
        const T r = row.right[0][j], own = row.own[j];
        if (r != 0 && most.without(j) != -INFINITE<T>) {
            const T x = r * most.without(j), y = r * least.without(j);
            top = r > 0 ? x : y, bottom = r > 0 ? y : x;
        }
        if (own != 0 && row.high[j] == row.high[j]) {
            const T x = own * row.high[j], y = own * row.low[j], a = own > 0 ? x : y, b = own > 0 ? y : x;
            top = a > top ? a : top, bottom = b < bottom ? b : bottom;
        }
        high[j] = top, low[j] = bottom;
    }
    return lost ? int(LOST) : 0;
}

template <class T> class RankTwo {
    using S = Simd<T>;
    using Reg = typename S::reg;

  public:
    explicit RankTwo(const SignedRow<T> &row) : row(row) {}

    // Writes the ends of scalars j … j + WIDTH.
    void block(int64_t first, T *high, T *low) {
        j = first, changes = 0;
        for (int v = 0; v < SIDE; v++) {
            const int64_t at = j + v * S::lanes;
            top[v] = S::set(-INFINITE<T>), bottom[v] = S::set(INFINITE<T>);
            for (int r = 0; r < 2; r++) right[r][v] = S::load(row.right[r].data() + at);
            let_in(S::load(row.own.data() + at), S::load(row.high.data() + at), S::load(row.low.data() + at), v);
        }
        int32_t before[RECENT];
        const int count = known;
        std::copy(recent, recent + count, before);
        known = 0;
        for (int x = 0; x < count; x++) meet_with(before[x]);
        sweep();
        for (int v = 0; v < SIDE; v++) S::store(high + v * S::lanes, top[v]), S::store(low + v * S::lanes, bottom[v]);
    }

  private:
    // Meets all i that can still matter.
    void sweep() {
        Reg middle[2], reach[2];
        box(0, middle[0], reach[0]), box(1, middle[1], reach[1]);
        Reg beaten = S::set(to_beat());
        int met = 0;
        for (int64_t i = 0; i < row.whole; i += S::lanes) {
            const Reg a = S::load(row.left[0].data() + i), b = S::load(row.left[1].data() + i);
            const Reg centre = S::abs(S::add(S::mul(a, middle[0]), S::mul(b, middle[1])));
            const Reg around = S::add(S::mul(S::abs(a), reach[0]), S::mul(S::abs(b), reach[1]));
            const Reg bound = S::add(S::mul(S::add(centre, around), S::load(row.size.data() + i)), S::load(row.floor.data() + i));
            // a bound that overflowed may be no number, and bounds nothing
            const uint32_t unknown = ~S::bits(S::equal(bound, bound)) & ((1u << S::lanes) - 1);
            for (uint32_t bits = S::bits(S::greater(bound, beaten)) | unknown; bits; bits &= bits - 1) {
                meet_with(i + __builtin_ctz(bits));
                if (++met % OFTEN == 0) beaten = S::set(to_beat());
            }
        }
    }

    // The middle of what the right factors of the block are, and how far they are from there.
    void box(int r, Reg &middle, Reg &reach) const {
        const T *x = row.right[r].data() + j;
        T least = x[0], most = x[0];
        for (int64_t i = 1; i < std::min<int64_t>(WIDTH<T>, row.n - j); i++) least = std::min(least, x[i]), most = std::max(most, x[i]);
        const T centre = least / 2 + most / 2;
        middle = S::set(centre);
        reach = S::set((std::max(most - centre, centre - least) + SLACK<T> * std::max(std::abs(least), std::abs(most))) * UP<T>);
    }

    // A size that none of the block's ends is below; 0 where some scalar has no path yet, or paths of one sign only.
    T to_beat() const {
        Reg least = S::set(INFINITE<T>);
        for (int v = 0; v < SIDE; v++) least = S::smaller(S::smaller(top[v], S::mul(S::set(T(-1)), bottom[v])), least);
        if (j + WIDTH<T> > row.n) return exact();
        const T out = S::min_of(least);
        return out > 0 ? out : T(0);
    }
    T exact() const {
        T h[WIDTH<T>], l[WIDTH<T>], out = INFINITE<T>;
        for (int v = 0; v < SIDE; v++) S::store(h + v * S::lanes, top[v]), S::store(l + v * S::lanes, bottom[v]);
        for (int64_t x = 0; x < row.n - j; x++) out = std::min({out, h[x], -l[x]});
        return out > 0 ? out : T(0);
    }

    void meet_with(int64_t i) {
        const Reg a = S::set(row.left[0][i]), b = S::set(row.left[1][i]), h = S::set(row.high[i]), l = S::set(row.low[i]);
        uint32_t changed = 0;
        for (int v = 0; v < SIDE; v++) {
            const Reg was = top[v], had = bottom[v];
            Reg w = S::add(S::mul(a, right[0][v]), S::mul(b, right[1][v]));
            const int64_t lane = i - j - v * S::lanes;
            if (lane >= 0 && lane < S::lanes) w = without(w, lane);
            let_in(w, h, l, v);
            changed |= S::bits(S::greater(top[v], was)) | S::bits(S::greater(had, bottom[v]));
        }
        if (changed) recent[changes++ % RECENT] = int32_t(i), known = std::min(changes, RECENT);
    }
    void let_in(Reg w, Reg h, Reg l, int v) {
        w = S::blend(S::equal(w, S::zero()), S::set(NOT_A_NUMBER<T>), w);
        meet<T>(S::mul(w, h), S::mul(w, l), top[v], bottom[v]);
    }
    // An edge to itself is on the diagonal: its lane becomes 0, which is no edge.
    static Reg without(Reg w, int64_t lane) {
        T x[S::lanes];
        S::store(x, w);
        x[lane] = 0;
        return S::load(x);
    }

    const SignedRow<T> &row;
    int64_t j = 0;
    Reg top[SIDE], bottom[SIDE], right[2][SIDE];
    int32_t recent[RECENT];
    int known = 0, changes = 0;
};

template <class T> int one_row(const SignedRows<T> &p, int64_t b, int64_t r, SignedRow<T> &row, std::vector<T> &room) {
    row.read(p, b, r);
    if (row.flags) return row.flags;
    room.resize(2 * row.whole);
    T *high = room.data(), *low = high + row.whole;
    int flags = 0;
    if (p.rank == 1) flags = rank_one(row, high, low);
    else {
        RankTwo<T> two(row);
        for (int64_t j = 0; j < row.n; j += WIDTH<T>) two.block(j, high + j, low + j);
    }
    flags |= settle_all(high, low, row.n);
    const int64_t to = (b * p.rows + r) * p.n;
    for (int64_t i = 0; i < row.n; i++) p.high[to + row.place(i)] = high[i], p.low[to + row.place(i)] = low[i];
    return flags;
}

}  // namespace

template <class T> int signed_low_rank(const SignedRows<T> &p, int threads) {
    const int64_t all = p.batch * p.rows;
    threads = all * p.n < SMALL ? 1 : threads;
    int flags = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : flags)
#endif
    {
        SignedRow<T> row;
        std::vector<T> room;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t x = 0; x < all; x++) flags |= one_row(p, x / p.rows, x % p.rows, row, room);
    }
    return flags;
}

template int signed_low_rank(const SignedRows<float> &, int);
template int signed_low_rank(const SignedRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
