// Rows whose scalars are all connected, by Jacobians of rank one or two beside a diagonal of their own.
//
// Scalars i come in the order of the most that they can give to any j, the largest of it first, and no more are looked
// at than can still matter to one of a block of j's. Their order is found as far as it is needed.
#include <algorithm>
#include <cmath>
#include <vector>

#include "signed/ends.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int SIDE = 2;                 // vectors side by side
constexpr int64_t SMALL = 1 << 13;      // scalars below which waking a thread costs more than it saves
constexpr int64_t SOME = 32, STEP = 4;  // scalars put in order at a time at first; looked at between two decisions
template <class T> constexpr int64_t WIDTH = SIDE *Simd<T>::lanes;
template <class T> constexpr T UP = T(1) + T(1.0 / (1 << 18));  // covers the rounding of a bound

template <class T> struct Candidate {
    T bound;
    int64_t i;
};

// One row: its factors, and the scalars that have a path and an edge beside the diagonal.
template <class T> struct SignedRow {
    int64_t n;
    int rank;
    std::vector<T> high, low, own, left[2], right[2], reach;
    std::vector<Candidate<T>> order;
    int64_t sorted = 0, next = SOME;
    int flags = 0;

    void read(const SignedRows<T> &p, int64_t b, int64_t row) {
        n = p.n, rank = p.rank, flags = 0;
        const int64_t whole = (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>;
        high.assign(whole, NOT_A_NUMBER<T>), low.assign(whole, NOT_A_NUMBER<T>);
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = b * p.g.batch_stride + row * p.g.row_stride + i * p.g.stride;
            high[i] = p.g.high[at], low[i] = p.g.low[at];
        }
        take(p.own, row, own, whole);
        T least_left = INFINITE<T>, least_right = INFINITE<T>;
        for (int r = 0; r < rank; r++) {
            take(p.left[r], row, left[r], whole), take(p.right[r], row, right[r], whole);
            least_left = std::min(least_left, least(left[r])), least_right = std::min(least_right, least(right[r]));
        }
        if (rank == 2 && least_left < INFINITE<T> && least_right < INFINITE<T> && least_left * least_right <= NORMAL<T>) flags |= LOST;
        if (!flags) rank_them();
    }

    // Puts more of them in order; gives whether there are more.
    bool more() {
        if (sorted == int64_t(order.size())) return false;
        const int64_t end = std::min<int64_t>(order.size(), sorted + next);
        const auto above = [](const Candidate<T> &a, const Candidate<T> &b) { return a.bound > b.bound; };
        if (end < int64_t(order.size())) std::nth_element(order.begin() + sorted, order.begin() + end, order.end(), above);
        std::sort(order.begin() + sorted, order.begin() + end, above);
        sorted = end, next *= 4;
        return true;
    }

  private:
    void take(const SignedEdges<T> &from, int64_t row, std::vector<T> &to, int64_t whole) {
        to.assign(whole, T(0));
        for (int64_t i = 0; i < n; i++) {
            to[i] = from.data[row * from.row_stride + i * from.stride];
            flags |= (to[i] != to[i] ? int(NAN_SEEN) : 0) | (std::abs(to[i]) > GREATEST<T> ? BEYOND : 0);
        }
    }
    T least(const std::vector<T> &x) const {
        T out = INFINITE<T>;
        for (int64_t i = 0; i < n; i++)
            if (x[i] != 0) out = std::min(out, std::abs(x[i]));
        return out;
    }
    T size(const std::vector<T> *factor, int64_t i) const { return rank == 1 ? std::abs(factor[0][i]) : std::abs(factor[0][i]) + std::abs(factor[1][i]); }

    // |Σ l r| is at most Σ|l| times the largest |r|. Of rank one, l·g is worked out once.
    void rank_them() {
        order.clear(), sorted = 0, next = SOME;
        reach.assign(high.size(), T(0));
        for (int64_t i = 0; i < n; i++) reach[i] = rank == 1 ? std::abs(right[0][i]) : std::max(std::abs(right[0][i]), std::abs(right[1][i]));
        for (int64_t i = 0; i < n; i++) {
            if (high[i] != high[i] || size(left, i) == 0) continue;
            const T weakest = std::abs(left[0][i]) * std::min(std::abs(high[i]), std::abs(low[i]));
            if (rank == 1 && weakest <= NORMAL<T>) flags |= LOST;
            const T bound = size(left, i) * std::max(std::abs(high[i]), std::abs(low[i])) * UP<T>;
            order.push_back({bound > NORMAL<T> ? bound : NORMAL<T>, i});
        }
    }
};

template <class T> class Block {
    using S = Simd<T>;

  public:
    // Writes the ends of scalars j … j + WIDTH.
    static void of(SignedRow<T> &row, int64_t j, T *high, T *low) {
        typename S::reg top[SIDE], bottom[SIDE], right[2][SIDE];
        T reach = 0;
        for (int64_t x = j; x < std::min<int64_t>(row.n, j + WIDTH<T>); x++) reach = std::max(reach, row.reach[x]);
        reach *= UP<T>;
        for (int v = 0; v < SIDE; v++) {
            top[v] = S::set(-INFINITE<T>), bottom[v] = S::set(INFINITE<T>);
            for (int r = 0; r < row.rank; r++) right[r][v] = S::load(row.right[r].data() + j + v * S::lanes);
            let_in(S::load(row.own.data() + j + v * S::lanes), S::load(row.high.data() + j + v * S::lanes),
                   S::load(row.low.data() + j + v * S::lanes), top[v], bottom[v]);
        }
        const int64_t count = std::min<int64_t>(WIDTH<T>, row.n - j);
        for (int64_t at = 0; at < row.sorted || row.more(); at++) {
            const auto &c = row.order[at];
            if (at % STEP == 0 && decided(top, bottom, c.bound * reach, count)) break;
            if (row.rank == 1)
                rank_one(row, c.i, j, right[0], top, bottom);
            else
                rank_two(row, c.i, j, right, top, bottom);
        }
        for (int v = 0; v < SIDE; v++) {
            S::store(high + v * S::lanes, top[v]);
            S::store(low + v * S::lanes, bottom[v]);
        }
    }

  private:
    using Reg = typename S::reg;

    static void let_in(Reg w, Reg h, Reg l, Reg &top, Reg &bottom) {
        w = S::blend(S::equal(w, S::zero()), S::set(NOT_A_NUMBER<T>), w);
        meet<T>(S::mul(w, h), S::mul(w, l), top, bottom);
    }

    // Whether nothing of at most this size can change an end. Columns beyond the last are not asked.
    static bool decided(const Reg *top, const Reg *bottom, T bound, int64_t count) {
        T h[WIDTH<T>], l[WIDTH<T>];
        for (int v = 0; v < SIDE; v++) S::store(h + v * S::lanes, top[v]), S::store(l + v * S::lanes, bottom[v]);
        bool out = true;
        for (int64_t x = 0; x < count; x++) out &= h[x] >= bound && -l[x] >= bound;
        return out;
    }

    // An edge to itself is on the diagonal: its lane becomes 0, which is no edge.
    static Reg without(Reg w, int64_t lane) {
        T x[S::lanes];
        S::store(x, w);
        x[lane] = 0;
        return S::load(x);
    }
    static bool holds(int64_t i, int64_t j, int v) { return i >= j + v * S::lanes && i < j + (v + 1) * S::lanes; }

    static void rank_one(const SignedRow<T> &row, int64_t i, int64_t j, const Reg *right, Reg *top, Reg *bottom) {
        const T x = row.left[0][i] * row.high[i], y = row.left[0][i] * row.low[i];
        const auto h = S::set(x), l = S::set(y);
        for (int v = 0; v < SIDE; v++) let_in(holds(i, j, v) ? without(right[v], i - j - v * S::lanes) : right[v], h, l, top[v], bottom[v]);
    }
    static void rank_two(const SignedRow<T> &row, int64_t i, int64_t j, const Reg (*right)[SIDE], Reg *top, Reg *bottom) {
        const auto a = S::set(row.left[0][i]), b = S::set(row.left[1][i]), h = S::set(row.high[i]), l = S::set(row.low[i]);
        for (int v = 0; v < SIDE; v++) {
            const auto w = S::add(S::mul(a, right[0][v]), S::mul(b, right[1][v]));
            let_in(holds(i, j, v) ? without(w, i - j - v * S::lanes) : w, h, l, top[v], bottom[v]);
        }
    }
};

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
        T high[WIDTH<T>], low[WIDTH<T>];
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t x = 0; x < all; x++) {
            row.read(p, x / p.rows, x % p.rows);
            flags |= row.flags;
            for (int64_t j = 0; j < p.n && !row.flags; j += WIDTH<T>) {
                Block<T>::of(row, j, high, low);
                const int64_t width = std::min<int64_t>(WIDTH<T>, p.n - j);
                flags |= settle_all(high, low, width);
                std::memcpy(p.high + x * p.n + j, high, size_t(width) * sizeof(T));
                std::memcpy(p.low + x * p.n + j, low, size_t(width) * sizeof(T));
            }
        }
    }
    return flags;
}

template int signed_low_rank(const SignedRows<float> &, int);
template int signed_low_rank(const SignedRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
