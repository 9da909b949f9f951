// Rows whose scalars are all connected, by Jacobians of rank one or two beside a diagonal of their own.
//
// Rank one: the largest l_i·g_i are the same for every j but for j's own, so a row keeps as many of them as are enough
// whichever scalar is left out: O(n) a row.
#include <optional>

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
    int entries, width = 1;  // of a list, and its room: zeros behind the entries
    std::vector<T> raw, own, left[2], right[2];
    std::vector<int64_t> at;
    std::optional<Lying> lying;
    int flags = 0;

    void read(const TopRows<T> &p, int64_t b, int64_t row, bool networks) {
        n = p.n, entries = p.g.entries, width = networks ? std::max(entries, 8) : entries;
        raw.assign(padded<T>(n) * width, T(0));
        const int64_t first = b * p.g.batch_stride + row * p.g.row_stride;
        if (!lying) {  // the same for every row
            for (int64_t i = 0; i < n; i++) at.push_back(i * p.g.stride);
            lying.emplace(&first, 1, at.data(), n, width);
        }
        read_rows(p.g.plane, entries, &first, 1, at.data(), n, *lying, width, 0, raw.data());
        flags = take(p.own, row, own);
        for (int r = 0; r < p.rank; r++) flags |= take(p.left[r], row, left[r]) | take(p.right[r], row, right[r]);
        for (T &x : own) x = std::abs(x);
    }
    const T *list(int64_t i) const { return raw.data() + i * width; }

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
        row.read(p, b, r, false);
        if (row.flags) return row.flags;
        best.find(row, p.keep + p.g.entries);
        T *out = p.out + (b * p.rows + r) * p.n, low = INF<T>;
        bool large = false;
        for (int64_t j = 0; j < p.n; j += LANES<T>) lanes(j, out, low, large);
        for (auto i = best.of.begin(); i != best.of.end(); i++)  // of one scalar there may be several
            if (*i >= 0 && std::find(best.of.begin(), i, *i) == i) alone(*i, out, low, large);
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

// A row is worked on in the order of right_1, so that the right factors of a block of columns lie in a small box: over it
// |left · right| has a bound that is nearly reached, and only those scalars are met whose bound is above what is the last
// of every list of the block already. Its own diagonal is let in first: in a norm it is n times as strong as the rest.
template <class T> class RankTwo {
    using V = Vec<T>;

  public:
    explicit RankTwo(const TopRows<T> &p)
        : p(p), eights(networks(p.keep)), list(eights ? 0 : p.keep * COLUMNS<T>), found(eights ? padded<T>(p.n) * 8 : 0),
          some(p.keep, COLUMNS<T>), bounds(p.n), met(p.n) {}

    int operator()(int64_t b, int64_t r) {
        row.read(p, b, r, eights);
        if (row.flags) return row.flags;
        sort();
        T most[2] = {}, largest{};
        for (int s = 0; s < 2; s++)
            for (int64_t i = 0; i < p.n; i++) most[s] = std::max(most[s], std::abs(row.right[s][i]));
        for (int64_t i = 0; i < p.n; i++)
            largest = std::max({largest, row.own[i], std::abs(row.left[0][i]) * most[0] + std::abs(row.left[1][i]) * most[1]});
        if (!(largest <= LARGEST<T>)) return TOO_LARGE;
        for (auto &right : row.right)  // columns beyond the last are copies of it, so that they hold nothing up
            std::fill(right.begin() + p.n, right.end(), right[p.n - 1]);
        std::fill(met.begin(), met.end(), int64_t(-1));
        begin();
        int flags = 0;
        for (j = 0; j < p.n; j += COLUMNS<T>) flags |= block(b, r);
        if (eights) to_planes(found.data(), p.n, p.out + (b * p.rows + r) * p.n, plane(), p.keep);
        return flags;
    }

  private:
    static constexpr int BUCKETS = 256, OFTEN = 4, RECENT = 16;
    static constexpr T UP = T(1) + T(1.0 / (1 << 18));                  // covers the rounding of a bound
    static constexpr T SLACK = 8 * std::numeric_limits<T>::epsilon();  // of a sum before it cancels

    int64_t plane() const { return p.batch * p.rows * p.n; }

    // Puts the row in the order of right_1, roughly.
    void sort() {
        const std::vector<T> &by = row.right[1];
        order.resize(p.n), bucket.resize(p.n);
        const auto [least, most] = std::minmax_element(by.begin(), by.begin() + p.n);
        const T from = *least, scale = BUCKETS / (*most - from);
        int32_t begins[BUCKETS + 1] = {};
        for (int64_t i = 0; i < p.n; i++) {
            const T at = scale > 0 && scale <= LARGEST<T> ? (by[i] - from) * scale : T(0);
            begins[1 + (bucket[i] = at >= 0 && at < BUCKETS ? int32_t(at) : BUCKETS - 1)]++;
        }
        for (int x = 0; x < BUCKETS; x++) begins[x + 1] += begins[x];
        for (int64_t i = 0; i < p.n; i++) order[begins[bucket[i]]++] = int32_t(i);
        for (auto *of : {&row.own, &row.left[0], &row.left[1], &row.right[0], &row.right[1]}) arrange(*of, 1);
        arrange(row.raw, row.width);
        heads.resize(p.n);
        for (int64_t i = 0; i < p.n; i++) heads[i] = row.list(i)[0];
    }
    void arrange(std::vector<T> &of, int width) {
        other.assign(of.size(), T(0));
        for (int64_t i = 0; i < p.n; i++)
            std::copy_n(of.data() + order[i] * width, width, other.data() + i * width);
        of.swap(other);
    }
    // Begins with the strongest of all.
    void begin() {
        recent.resize(p.n);
        for (int64_t i = 0; i < p.n; i++) recent[i] = int32_t(i);
        const int64_t count = std::min<int64_t>(RECENT, p.n);
        std::partial_sort(recent.begin(), recent.begin() + count, recent.end(), [&](int32_t x, int32_t y) { return heads[x] > heads[y]; });
        recent.resize(count);
        next = 0;
    }

    int block(int64_t b, int64_t r) {
        width = std::min<int64_t>(COLUMNS<T>, p.n - j);
        diagonal();
        const std::vector<int32_t> known = recent;
        for (int32_t i : known) meet(i);
        sweep();
        bool large = false;
        if (eights)
            for (int64_t x = 0; x < width; x++) {
                large |= some.list[8 * x] > LARGEST<T>;
                Octet<T>::store(found.data() + 8 * order[j + x], Octet<T>::load(some.list + 8 * x));
            }
        for (int s = 0; s < p.keep && !eights; s++) {
            T *to = p.out + s * plane() + (b * p.rows + r) * p.n;
            for (int64_t x = 0; x < width; x++) {
                large |= list[s * COLUMNS<T> + x] > LARGEST<T>;
                to[order[j + x]] = list[s * COLUMNS<T> + x];
            }
        }
        return (large ? TOO_LARGE : 0) | (low < TINY<T> && smallest() < TINY<T> ? LOST : 0);
    }

    void diagonal() {
        if (eights) {
            some = Columns<T>(p.keep, width);
            for (int64_t x = 0; x < width; x++) some.put(x, row.own[j + x] * Octet<T>::load(row.list(j + x)));
            return;
        }
        std::fill(list.begin(), list.end(), T(0));
        for (int v = 0; v < VECTORS; v++)
            for (int s = 0; s < row.entries; s++) {
                V x;
                for (int l = 0; l < LANES<T>; l++) {
                    const int64_t i = std::min(j + v * LANES<T> + l, p.n - 1);
                    x[l] = row.own[i] * row.list(i)[s];
                }
                let_in(list.data() + v * LANES<T>, COLUMNS<T>, p.keep, x);
            }
    }

    // Meets all that can still matter.
    void sweep() {
        T middle[2], reach[2];
        for (int s = 0; s < 2; s++) {
            const auto [from, to] = std::minmax_element(row.right[s].data() + j, row.right[s].data() + j + width);
            middle[s] = *from / 2 + *to / 2;
            reach[s] = (std::max(*to - middle[s], middle[s] - *from) + SLACK * std::max(std::abs(*from), std::abs(*to))) * UP;
        }
        const T *one = row.left[0].data(), *two = row.left[1].data();
        for (int64_t i = 0; i < p.n; i++)
            bounds[i] = (std::abs(one[i] * middle[0] + two[i] * middle[1]) + std::abs(one[i]) * reach[0] + std::abs(two[i]) * reach[1]) *
                        UP * heads[i];
        update();
        int count = 0;
        for (int64_t i = 0; i < p.n; i++)
            if (!(bounds[i] <= low) && met[i] != j) {
                meet(i);
                if (++count % OFTEN == 0) update();
            }
        update();
    }

    void meet(int64_t i) {
        met[i] = j;
        if (!(eights ? meet_eight(i) : meet_any(i)) || std::find(recent.begin(), recent.end(), int32_t(i)) != recent.end()) return;
        recent[next++ % recent.size()] = int32_t(i);
    }
    bool meet_eight(int64_t i) {
        alignas(64) T w[COLUMNS<T>];
        for (int v = 0; v < VECTORS; v++) store(w + v * LANES<T>, edges(i, v));
        return some.let_in(row.list(i), w);
    }
    bool meet_any(int64_t i) {
        const T *a = row.list(i);
        bool taken = false;
        for (int v = 0; v < VECTORS; v++) {
            const V w = edges(i, v);
            T *to = list.data() + v * LANES<T>;
            for (int s = 0; s < row.entries; s++) {
                const V x = a[s] * w;
                if (!any_greater(x, load(to + (p.keep - 1) * COLUMNS<T>))) break;
                let_in(to, COLUMNS<T>, p.keep, x);
                taken = true;
            }
        }
        return taken;
    }

    // |left · right| of one vector of columns; what leads from a scalar to itself is on the diagonal.
    V edges(int64_t i, int v) const {
        const int64_t at = j + v * LANES<T>;
        V x = magnitude<T>(V(row.left[0][i] * load(row.right[0].data() + at) + row.left[1][i] * load(row.right[1].data() + at)));
        if (i >= at && i < at + LANES<T>) x[i - at] = 0;
        return x;
    }

    void update() { low = eights ? some.low() : lowest_along(list.data() + (p.keep - 1) * COLUMNS<T>, VECTORS); }

    // The smallest product other than 0 of a block.
    T smallest() const {
        T out = INF<T>;
        for (int64_t i = 0; i < p.n; i++) {
            const T weight = least_of_list(row.list(i));
            if (!(weight < INF<T>)) continue;
            for (int v = 0; v < VECTORS; v++) {
                const V x = edges(i, v);
                for (int l = 0; l < LANES<T>; l++)
                    if (x[l] > 0) out = std::min(out, x[l] * weight);
            }
            if (i >= j && i < j + COLUMNS<T> && row.own[i] > 0) out = std::min(out, row.own[i] * weight);
        }
        return out;
    }
    T least_of_list(const T *a) const {
        T out = INF<T>;
        for (int s = 0; s < row.entries && a[s] > 0; s++) out = a[s];
        return out;
    }

    const TopRows<T> &p;
    Row<T> row;
    bool eights;
    std::vector<T> list, found;  // a block's lists, where they have more than eight entries; a row's, where they have not
    Columns<T> some;
    std::vector<T> bounds, other, heads;
    std::vector<int64_t> met;  // the block in which a scalar was met last
    std::vector<int32_t> order, bucket, recent;
    int64_t j = 0, width = 0, next = 0;
    T low = 0;
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
