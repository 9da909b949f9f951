// Rows whose scalars are all connected, by Jacobians of rank one or two beside a diagonal of their own.
//
// Rank one: the largest l_i·g_i are the same for every j but for j's own, so a row keeps as many of them as are enough
// whichever scalar is left out: O(n) a row. Rank two is a product whose edges are worked out on the way.
#include "topk/lists.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 13;  // scalars below which waking a thread costs more than it saves

template <class T> inline int64_t padded(int64_t n) { return (n + COLUMNS<T> - 1) / COLUMNS<T> * COLUMNS<T>; }

// One row's lists and factors; magnitudes where only those matter. Zeros behind the last.
template <class T> struct Row {
    int64_t n;
    int entries;
    std::vector<T> raw, own, left[2], right[2];
    int flags = 0;

    void read(const TopRows<T> &p, int64_t b, int64_t row) {
        n = p.n, entries = p.g.entries;
        raw.assign(padded<T>(n) * entries, T(0));
        read_rows(p.g, b, row, 1, n, raw.data());
        flags = take(p.own, row, own);
        for (int r = 0; r < p.rank; r++) flags |= take(p.left[r], row, left[r]) | take(p.right[r], row, right[r]);
        for (T &x : own) x = std::abs(x);
    }
    const T *list(int64_t i) const { return raw.data() + i * entries; }

  private:
    int take(const Edges<T> &from, int64_t row, std::vector<T> &to) {
        to.assign(padded<T>(n), T(0));
        int found = 0;
        for (int64_t i = 0; i < n; i++) {
            to[i] = from.data[row * from.row_stride + i * from.stride];
            found |= (to[i] != to[i] ? NAN_SEEN : 0) | (std::abs(to[i]) > LARGEST<T> ? TOO_LARGE : 0);
        }
        return found;
    }
};

template <class T> inline T least_of(const std::vector<T> &x, int64_t n) {
    T out = INF<T>;
    for (int64_t i = 0; i < n; i++)
        if (x[i] != 0) out = std::min(out, std::abs(x[i]));
    return out;
}

// The largest l_i·g_i of a row with the scalars they are of.
template <class T> struct Strongest {
    std::vector<T> weight;
    std::vector<int64_t> of;
    int count = 0;

    void find(const Row<T> &row, int room) {
        weight.assign(room, T(0)), of.assign(room, -1), count = 0;
        for (int64_t i = 0; i < row.n; i++) {
            const T *list = row.list(i), l = std::abs(row.left[0][i]);
            for (int s = 0; s < row.entries && list[s] > 0; s++) {
                const T x = l * list[s];
                if (x <= weight[room - 1]) break;
                const int at = let_in(weight.data(), 1, room, x);
                for (int t = room - 1; t > at; t--) of[t] = of[t - 1];
                of[at] = i;
            }
        }
        while (count < room && weight[count] > 0) count++;
    }
};

template <class T> class RankOne {
    using V = Vec<T>;

  public:
    explicit RankOne(const TopRows<T> &p) : p(p), list(p.keep * LANES<T>) {}

    int operator()(int64_t b, int64_t r) {
        row.read(p, b, r);
        if (row.flags) return row.flags;
        best.find(row, p.keep + p.g.entries);
        T *out = p.out + (b * p.rows + r) * p.n, low = INF<T>;
        bool large = false;
        for (int64_t j = 0; j < p.n; j += LANES<T>) lanes(j, out, low, large);
        for (int64_t i : best.of)
            if (i >= 0) alone(i, out, low, large);
        const bool rounded = best.count > 0 && best.weight[best.count - 1] < TINY<T>;
        const bool lost = rounded || (low < TINY<T> && smallest() < TINY<T>);
        return (lost ? LOST : 0) | (large ? TOO_LARGE : 0);
    }

  private:
    int64_t plane() const { return p.batch * p.rows * p.n; }

    // Scalars side by side, as if none of them were among the strongest.
    void lanes(int64_t j, T *out, T &low, bool &large) {
        V r, own;
        for (int l = 0; l < LANES<T>; l++) r[l] = std::abs(row.right[0][j + l]), own[l] = row.own[j + l];
        for (int s = 0; s < p.keep; s++) store(list.data() + s * LANES<T>, V(r * best.weight[s]));
        for (int s = 0; s < row.entries; s++) {
            V x;
            for (int l = 0; l < LANES<T>; l++) x[l] = own[l] * row.raw[(j + l) * row.entries + s];
            if (!any_greater(x, load(list.data() + (p.keep - 1) * LANES<T>))) break;
            let_in(list.data(), LANES<T>, p.keep, x);
        }
        const int64_t count = std::min<int64_t>(LANES<T>, p.n - j);
        for (int64_t l = 0; l < count; l++) {
            low = std::min(low, list[(p.keep - 1) * LANES<T> + l]);
            large |= list[l] > LARGEST<T>;
        }
        for (int s = 0; s < p.keep; s++) store(out + s * plane() + j, load(list.data() + s * LANES<T>), count);
    }

    // One scalar that is among the strongest.
    void alone(int64_t j, T *out, T &low, bool &large) {
        int count = 0;
        std::fill(list.begin(), list.begin() + p.keep, T(0));
        for (int t = 0; t < best.count && count < p.keep; t++)
            if (best.of[t] != j) list[count++] = best.weight[t] * std::abs(row.right[0][j]);
        for (int s = 0; s < row.entries; s++) let_in(list.data(), 1, p.keep, row.own[j] * row.list(j)[s]);
        for (int s = 0; s < p.keep; s++) out[s * plane() + j] = list[s];
        low = std::min(low, list[p.keep - 1]);
        large |= list[0] > LARGEST<T>;
    }

    // A lower bound of all products other than 0.
    T smallest() const {
        const T g = least_of(row.raw, p.n * row.entries);
        const T left = least_of(row.left[0], p.n), right = least_of(row.right[0], p.n);
        return std::min({g * left, g * left * right, g * least_of(row.own, p.n)});
    }

    const TopRows<T> &p;
    Row<T> row;
    Strongest<T> best;
    std::vector<T> list;
};

// The edges of one block of columns of a Jacobian of rank two.
template <class T> struct TwoEdges {
    using V = Vec<T>;

    const Row<T> &row;
    int64_t first;
    const T *bounds;

    void fetch(int32_t) const {}
    T limit() const { return 1; }  // keys have the bounds in them
    T bound(int32_t at) const { return bounds[at]; }
    V edges(int32_t at, int v) const {
        const int64_t j = first + v * LANES<T>;
        V x = magnitude<T>(V(row.left[0][at] * load(row.right[0].data() + j) + row.left[1][at] * load(row.right[1].data() + j)));
        if (at >= j && at < j + LANES<T>) x[at - j] = row.own[at];
        return x;
    }
};

template <class T> class RankTwo {
    using V = Vec<T>;

  public:
    explicit RankTwo(const TopRows<T> &p) : p(p), list(room_for(p.keep) * COLUMNS<T>), bounds(p.n) {}

    int operator()(int64_t b, int64_t r) {
        row.read(p, b, r);
        if (row.flags) return row.flags;
        for (auto &right : row.right)  // columns beyond the last are copies of it, so that they hold nothing up
            std::fill(right.begin() + p.n, right.end(), right[p.n - 1]);
        T most[2] = {};
        for (int64_t i = 0; i < p.n; i++)
            for (int s = 0; s < 2; s++) most[s] = std::max(most[s], std::abs(row.right[s][i]));
        for (int64_t i = 0; i < p.n; i++)
            bounds[i] = std::max(row.own[i], std::abs(row.left[0][i]) * most[0] + std::abs(row.left[1][i]) * most[1]);
        if (!(*std::max_element(bounds.begin(), bounds.end()) <= LARGEST<T>)) return TOO_LARGE;
        candidates.sort(row.raw.data(), p.n, p.g.entries, bounds.data());
        int flags = 0;
        for (int64_t j = 0; j < p.n; j += COLUMNS<T>) flags |= block(b, r, j);
        return flags;
    }

  private:
    int block(int64_t b, int64_t r, int64_t j) {
        const T low = fill(list.data(), p.keep, candidates, TwoEdges<T>{row, j, bounds.data()});
        const size_t width = size_t(std::min<int64_t>(COLUMNS<T>, p.n - j)) * sizeof(T);
        for (int s = 0; s < p.keep; s++)
            std::memcpy(p.out + ((s * p.batch + b) * p.rows + r) * p.n + j, list.data() + s * COLUMNS<T>, width);
        return judge(list.data(), low < TINY<T> && smallest(j) < TINY<T>);
    }

    // The smallest product other than 0 of a block.
    T smallest(int64_t first) const {
        T out = INF<T>;
        for (int64_t i = 0; i < p.n; i++)
            for (int v = 0; v < VECTORS; v++) {
                const V x = TwoEdges<T>{row, first, bounds.data()}.edges(int32_t(i), v);
                for (int s = 0; s < row.entries && row.list(i)[s] > 0; s++)
                    for (int l = 0; l < LANES<T>; l++)
                        if (x[l] > 0) out = std::min(out, x[l] * row.list(i)[s]);
            }
        return out;
    }

    const TopRows<T> &p;
    Row<T> row;
    Candidates<T> candidates;
    std::vector<T> list, bounds;
};

template <class Rank, class T> int rows(const TopRows<T> &p, int threads) {
    const int64_t all = p.batch * p.rows;
    threads = all * p.n < SERIAL ? 1 : threads;
    int flags = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : flags)
#endif
    {
        Rank rank(p);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 4)
#endif
        for (int64_t x = 0; x < all; x++) flags |= rank(x / p.rows, x % p.rows);
    }
    return flags;
}

}  // namespace

template <class T> int top_low_rank(const TopRows<T> &p, int threads) {
    return p.rank == 1 ? rows<RankOne<T>>(p, threads) : rows<RankTwo<T>>(p, threads);
}
template int top_low_rank(const TopRows<float> &, int);
template int top_low_rank(const TopRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
