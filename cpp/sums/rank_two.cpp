// Jacobians of rank two beside their diagonal (layer norm).
//
// For an even p, Σ_i (l_i·r_j)^p g_i^p is a polynomial in r_j, of which a row has one: its coefficients are found once,
// in double precision. Its terms may cancel, where l_i·r_j is near 0 for all i that matter: such a j meets every i.
// The entropy has no such form, and every j meets every i: one by one in a short row, or where right_0 is not the same
// for all; else j's whose right_1 are alike meet those i together that are far from vanishing there.
//
// Sums of |l_i·r_j| are found by sorting: l_i turned upwards lies on one side of r_j's perpendicular or on the other, and
// along the order of directions the two sides are two runs, of which running sums say everything.
#include <algorithm>
#include <cstring>
#include <vector>

#include "sums/near.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t LONG = 256;  // scalars from which on a row is put in order for its entropies
constexpr int HIGHEST = 4;  // log2 of the power up to which binomial coefficients are small enough

template <class T> T largest_of(const T *x, int64_t n) {
    T most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    return most;
}

// A row: r0 and r1 in units of their largest, a = left0·z and b = left1·z so that a r0 + b r1, in units of 2^exponent,
// has no part above 1.
template <class S> struct Line {
    std::vector<S> a, b, r0, r1, straight, sum, size;
    int exponent = 0;
    bool some = false;

    explicit Line(int64_t n) : a(n), b(n), r0(n), r1(n), straight(n), sum(n), size(n) {}

    // False where the units themselves lose something.
    template <class T> bool read(const TwoRows<T> &s, int64_t row) {
        const T *left0 = s.left0 + row * s.n, *left1 = s.left1 + row * s.n, *z = s.z + row * s.n;
        const T *right0 = s.right0 + row * s.n, *right1 = s.right1 + row * s.n;
        const S reach0 = largest_of(right0, s.n), reach1 = largest_of(right1, s.n);
        S *to_a = a.data(), *to_b = b.data(), *to_r0 = r0.data(), *to_r1 = r1.data();
        const int64_t n = s.n;
        S most = 0;
        int lost = 0, live = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < n; i++) {
            const S here = (std::fabs(S(left0[i])) * reach0 + std::fabs(S(left1[i])) * reach1) * S(z[i]);
            most = here > most ? here : most;
        }
        if (!(most < INF<S>)) return false;
        const int e = most >= TINY<S> ? 1 + std::ilogb(most) : 0;
        const int e0 = reach0 >= TINY<S> ? std::ilogb(reach0) : 0, e1 = reach1 >= TINY<S> ? std::ilogb(reach1) : 0;
#pragma omp simd reduction(| : lost, live)
        for (int64_t i = 0; i < n; i++) {
            const S l0 = S(left0[i]), l1 = S(left1[i]), x = S(right0[i]), y = S(right1[i]), g = S(z[i]);
            const S raw0 = l0 * g, raw1 = l1 * g, first = scaled(raw0, e0 - e), second = scaled(raw1, e1 - e);
            to_a[i] = first;
            to_b[i] = second;
            to_r0[i] = scaled(x, -e0);
            to_r1[i] = scaled(y, -e1);
            lost |= flags_of(std::fabs(raw0), l0, g) | flags_of(std::fabs(raw1), l1, g);
            lost |= flags_of(std::fabs(first), l0, g) | flags_of(std::fabs(second), l1, g);
            lost |= flags_of(std::fabs(to_r0[i]), x, S(1)) | flags_of(std::fabs(to_r1[i]), y, S(1));
            live |= z[i] == 0 ? 0 : left0[i] != 0 ? 1 : left1[i] != 0;
        }
        exponent = e;
        some = live;
        return !lost;
    }
};

// x^(p-k)·y^k.
template <int p, int k> inline double monomial(double x, double y) {
    double term = 1;
#pragma GCC unroll 16
    for (int d = 0; d < p; d++) term *= d < k ? y : x;
    return term;
}

// Σ_i (a_i r0 + b_i r1)^p by its coefficients, and a bound of what its terms amount to.
template <int p> struct Polynomial {
    double of[p + 1], size[p + 1];

    Polynomial(const Line<double> &line, int64_t n) { coefficients<0>(line, n, 1); }

    template <int k> void coefficients(const Line<double> &line, int64_t n, double ways) {
        const double *a = line.a.data(), *b = line.b.data();
        double sum = 0, total = 0;
#pragma omp simd reduction(+ : sum, total)
        for (int64_t i = 0; i < n; i++) {
            const double term = monomial<p, k>(a[i], b[i]);
            sum += term;
            total += std::fabs(term);
        }
        of[k] = ways * sum;
        size[k] = ways * total;
        if constexpr (k < p) coefficients<k + 1>(line, n, ways * (p - k) / (k + 1));
    }
    // Fills in sums over all i but j, and sizes.
    void at(Line<double> &line, int64_t n) const {
        const double *a = line.a.data(), *b = line.b.data(), *r0 = line.r0.data(), *r1 = line.r1.data();
        double *sums = line.sum.data(), *sizes = line.size.data();
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const double x = r0[j], y = r1[j];
            double sum = of[0], total = size[0], power = 1;
#pragma GCC unroll 16
            for (int k = 1; k <= p; k++) {  // Horner's rule for both variables: … x^(p-k) y^k
                power *= y;
                sum = sum * x + of[k] * power;
                total = total * std::fabs(x) + size[k] * std::fabs(power);
            }
            sums[j] = sum - monomial<p, p>(0, a[j] * x + b[j] * y);
            sizes[j] = total;
        }
    }
};

// (Σ over i≠j of |a_i r0_j + b_i r1_j|^p)^(1/p), in units of the largest term.
template <int squarings> double directly(const Line<double> &line, int64_t n, int64_t j) {
    const double x = line.r0[j], y = line.r1[j], *a = line.a.data(), *b = line.b.data();
    double most = 0, sum = 0;
    const auto term = [=](int64_t i) { return i == j ? 0.0 : std::fabs(a[i] * x + b[i] * y); };
    if constexpr (squarings == 0) {  // nothing is raised, so nothing underflows
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += term(i);
        return sum;
    }
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = term(i) > most ? term(i) : most;
    if (!(most > 0)) return most;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += raised<squarings>(term(i) / most);
    return most * rooted<squarings>(sum);
}

// scalars that meet all others in less time than it takes to sort them: one by one, and many in the lanes of a register
constexpr int64_t FEW = 160, MANY = 512;

// Numbers in order, by 2·BITS of each one's first bits as a float, made to rise, above its place of PLACE bits.
template <class Entry, int BITS, int PLACE> struct Order {
    std::vector<Entry> entries, room;

    explicit Order(int64_t n) : entries(n), room(n) {}

    static int64_t place(Entry entry) { return int64_t(entry & ((Entry(1) << PLACE) - 1)); }

    void sort(const std::vector<double> &of) {
        const int64_t n = int64_t(of.size());
        int32_t first[2][BUCKETS] = {};
        for (int64_t i = 0; i < n; i++) {
            const float x = float(of[i]);
            uint32_t bits;
            std::memcpy(&bits, &x, sizeof bits);
            bits = (bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u)) >> (32 - 2 * BITS);
            entries[i] = Entry(bits) << PLACE | Entry(i);
            first[0][bits & (BUCKETS - 1)]++, first[1][bits >> BITS]++;
        }
        pass(first[0], PLACE), pass(first[1], PLACE + BITS);
        for (int64_t i = 1; i < n; i++)  // some neighbours have all of these bits in common
            for (int64_t j = i; j > 0 && entries[j] >> PLACE == entries[j - 1] >> PLACE; j--) {
                if (!(of[place(entries[j])] < of[place(entries[j - 1])])) break;
                std::swap(entries[j], entries[j - 1]);
            }
    }

  private:
    static constexpr int BUCKETS = 1 << BITS;

    // Orders by some bits, of which there are so many, and leaves equals as they are.
    void pass(int32_t *first, int shift) {
        int32_t total = 0;
        for (int i = 0; i < BUCKETS; i++) {
            const int32_t here = first[i];
            first[i] = total;
            total += here;
        }
        for (Entry x : entries) room[first[x >> shift & (BUCKETS - 1)]++] = x;
        entries.swap(room);
    }
};

// Adds each number of a and of b, in the order of directions, to the sum of those before.
template <class Order> void running(const std::vector<double> &directions, std::vector<double> &a, std::vector<double> &b) {
    Order order(int64_t(directions.size()));
    order.sort(directions);
    double sum_a = 0, sum_b = 0;
    for (const auto entry : order.entries) {
        const int64_t at = Order::place(entry);
        sum_a += a[at], sum_b += b[at];
        a[at] = sum_a, b[at] = sum_b;
    }
}

// Σ over i≠j of |a_i r0_j + b_i r1_j| for all j, and a bound of what its terms amount to.
inline void absolute(Line<double> &line, int64_t n) {
    // directions of n lines, then of n perpendiculars; what each is itself, then what lies below it
    std::vector<double> directions(2 * n), below_a(2 * n), below_b(2 * n);
    const double *x = line.r0.data(), *y = line.r1.data();
    double *a = line.a.data(), *b = line.b.data(), *of = directions.data(), *sums = line.sum.data(), *sizes = line.size.data();
    double *to_a = below_a.data(), *to_b = below_b.data(), total_a = 0, total_b = 0, size_a = 0, size_b = 0;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const bool down = (b[i] < 0) | ((b[i] == 0) & (a[i] < 0));
        const double up_a = down ? -a[i] : a[i], up_b = down ? -b[i] : b[i], slope = up_a / up_b, across = -y[i] / x[i];
        a[i] = to_a[i] = up_a, b[i] = to_b[i] = up_b;
        of[i] = up_b > 0 ? slope : up_a > 0 ? INF<double> : 0.0;
        of[n + i] = x[i] != 0 ? across : -INF<double>;
    }
#pragma omp simd reduction(+ : total_a, total_b, size_a, size_b)
    for (int64_t i = 0; i < n; i++) total_a += a[i], total_b += b[i], size_a += std::fabs(a[i]), size_b += b[i];
    if (2 * n <= 1 << 12)
        running<Order<uint32_t, 10, 12>>(directions, below_a, below_b);
    else
        running<Order<uint64_t, 12, 32>>(directions, below_a, below_b);
    const double *up_to_a = below_a.data() + n, *up_to_b = below_b.data() + n;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const double beside = std::fabs((total_a - 2 * up_to_a[j]) * x[j] + (total_b - 2 * up_to_b[j]) * y[j]);
        sums[j] = beside - std::fabs(a[j] * x[j] + b[j] * y[j]);
        sizes[j] = size_a * std::fabs(x[j]) + size_b * std::fabs(y[j]);
    }
}

// The same sums for all j of a short row in single precision: j's in the lanes, each meets every i, and what it is by
// itself is taken back. Of the terms' sizes 2·2^-24 is lost, and RUN of their sums round: where what is left is SOME of
// the sizes, (2 + RUN)·2^-24 / SOME of it, 1.5e-6.
constexpr int64_t RUN = 8;
constexpr double SOME = 0.4;

inline void in_lanes(Line<double> &line, int64_t n) {
    using V = Vec<float>;
    constexpr int LANE = LANES<float>, REGISTERS_OF_J = 4, WIDTH = REGISTERS_OF_J * LANE;
    std::vector<float> a(line.a.begin(), line.a.begin() + n), b(line.b.begin(), line.b.begin() + n);
    double size_a = 0, size_b = 0;
    for (int64_t i = 0; i < n; i++) size_a += std::fabs(line.a[i]), size_b += std::fabs(line.b[i]);
    for (int64_t first = 0; first < n; first += WIDTH) {
        const int64_t some = std::min<int64_t>(WIDTH, n - first);
        float of_x[WIDTH] = {}, of_y[WIDTH] = {};
        for (int64_t l = 0; l < some; l++) of_x[l] = float(line.r0[first + l]), of_y[l] = float(line.r1[first + l]);
        double total[WIDTH] = {};
        V x[REGISTERS_OF_J], y[REGISTERS_OF_J];
        for (int r = 0; r < REGISTERS_OF_J; r++) x[r] = load(of_x + r * LANE), y[r] = load(of_y + r * LANE);
        for (int64_t begin = 0; begin < n; begin += RUN) {
            V part[REGISTERS_OF_J] = {};
            for (int64_t i = begin; i < std::min(n, begin + RUN); i++) {
                const V one = all(a[i]), other = all(b[i]);
#pragma GCC unroll 4
                for (int r = 0; r < REGISTERS_OF_J; r++) part[r] += magnitude<float>(one * x[r] + other * y[r]);
            }
            float summed[WIDTH];
            for (int r = 0; r < REGISTERS_OF_J; r++) store(summed + r * LANE, part[r]);
#pragma omp simd
            for (int l = 0; l < WIDTH; l++) total[l] += summed[l];
        }
        for (int64_t l = 0; l < some; l++) {
            const int64_t j = first + l;
            const float own = std::fabs(a[j] * of_x[l] + b[j] * of_y[l]);
            line.sum[j] = total[l] - own;
            line.size[j] = size_a * std::fabs(line.r0[j]) + size_b * std::fabs(line.r1[j]);
        }
    }
}

template <int squarings, class T> int powers(const TwoRows<T> &s, int64_t row, Line<double> &line) {
    // of what is left, so that rounding stays about that of T; running sums round more often
    const bool lanes = squarings == 0 && sizeof(T) == 4 && s.n <= MANY;
    const double noise = sizeof(T) == 8 ? 1e-3 : lanes ? SOME : squarings == 0 ? 1e-5 : 1e-9;
    const double least = lanes ? 1e-25 : 1e-250;  // above it nothing that counts has underflowed
    const int64_t at = row * s.n;
    if (!line.template read<T>(s, row)) return LOST;
    const bool quick = squarings == 0 ? lanes || s.n >= FEW : squarings <= HIGHEST;
    if (line.some && quick) {
        if (lanes)
            in_lanes(line, s.n);
        else if constexpr (squarings == 0)
            absolute(line, s.n);
        else if constexpr (squarings <= HIGHEST)
            Polynomial<1 << squarings>(line, s.n).at(line, s.n);
    }
    int found = 0;
    double *beside = line.straight.data();
    const double *sums = line.sum.data(), *sizes = line.size.data();
    const auto clear = [=](int64_t j) { return sums[j] > noise * sizes[j] && sizes[j] > least && sizes[j] < 1e250; };
    int left = 0;
    if (line.some && quick) {
#pragma omp simd reduction(| : left)
        for (int64_t j = 0; j < s.n; j++) {
            beside[j] = rooted<squarings>(sums[j] > 0 ? sums[j] : 0);
            left |= !clear(j);
        }
    } else {
        std::fill_n(beside, s.n, 0.0);
        left = line.some;
    }
    for (int64_t j = 0; left && j < s.n; j++)
        if (!quick || !clear(j)) beside[j] = directly<squarings>(line, s.n, j);
    const T *straight = s.own + at, *g = s.z + at;
    const int exponent = line.exponent;
    T *out = s.out + at;
#pragma omp simd reduction(| : found)
    for (int64_t j = 0; j < s.n; j++) {
        const T across = T(scaled(beside[j], exponent)), own = std::fabs(straight[j]), direct = own * g[j];
        found |= flags_of(across, T(beside[j] > 0), T(1)) | flags_of(direct, own, g[j]);
        const T high = across > direct ? across : direct, low = across > direct ? direct : across;
        out[j] = high * rooted<squarings>(1 + raised<squarings>(low / (high > 0 ? high : T(1))));
    }
    return found;
}

// z and z·(h - log2 z) of the edges into some neighbouring j, a register each.
template <class T, int WIDTH> struct Tally {
    T total[WIDTH] = {}, mixed[WIDTH] = {};

    // Adds one edge into each j, but into the one of some number.
    inline void add(T a, T b, T h, const T *x, const T *y, int but = -1) {
#pragma omp simd
        for (int l = 0; l < WIDTH; l++) {
            const T z = l == but ? T(0) : std::fabs(a * x[l] + b * y[l]);
            total[l] += z;
            mixed[l] += surprise(z, h);
        }
    }
};

// Tells whether any edge leads into j from elsewhere.
template <class T> bool reached(const TwoRows<T> &s, int64_t at, int64_t j) {
    const double x = s.right0[at + j], y = s.right1[at + j];
    for (int64_t i = 0; i < s.n; i++)
        if (i != j && s.z[at + i] > 0 && s.left0[at + i] * x + s.left1[at + i] * y != 0) return true;
    return false;
}

// Edges, and of those that are far from vanishing over an interval of t what they amount to there.
template <class T> struct Edges {
    std::vector<T> a, b, h, room;
    std::vector<int32_t> near;
    Far<T> far;

    explicit Edges(int64_t n) : a(n), b(n), h(n) {}

    // Tells the far ones from the near ones over the t's from `begin` to `end`; those at `skip` … are neither.
    void split(const T *begin, const T *end, int64_t skip, int64_t some) {
        const auto [least, most] = std::minmax_element(begin, end);
        far.middle = *least / 2 + *most / 2;
        far.half = std::max(*most - far.middle, far.middle - *least);
        far.find(a.data(), b.data(), h.data(), int64_t(a.size()), skip, skip + some, room, near);
    }
    // Takes the near ones of others, and behind them some more.
    void take(const Edges &from, int64_t first, int64_t some) {
        const auto these = [&](std::vector<T> &to, const std::vector<T> &of) {
            to.resize(from.near.size());
            for (size_t i = 0; i < to.size(); i++) to[i] = of[from.near[i]];
            to.insert(to.end(), of.begin() + first, of.begin() + first + some);
        };
        these(a, from.a), these(b, from.b), these(h, from.h);
    }
};

// Shares of a row in the order of its t into some neighbours, from everywhere but themselves: twice, what is not far
// from all of a part of the row may be far from a few of them.
template <class T, int WIDTH, class F> void in_parts(Edges<T> &all, const T *t, int64_t n, F each) {
    constexpr int64_t PART = 8 * WIDTH;
    Edges<T> some(0);
    T ones[WIDTH], y[WIDTH];
    std::fill_n(ones, WIDTH, T(1));
    for (int64_t first = 0; first < n; first += PART) {
        const int64_t size = std::min(PART, n - first);
        all.split(t + first, t + first + size, first, size);
        some.take(all, first, size);
        const int64_t before = int64_t(all.near.size());
        for (int64_t begin = 0; begin < size; begin += WIDTH) {
            const int64_t few = std::min<int64_t>(WIDTH, size - begin);
            const T *here = t + first + begin;
            std::fill_n(y, WIDTH, T(0));
            std::copy_n(here, few, y);
            some.split(here, here + few, before + begin, few);
            Tally<T, WIDTH> tally;
            for (int64_t l = 0; l < few; l++) {
                all.far.add(y[l], tally.total[l], tally.mixed[l]);
                some.far.add(y[l], tally.total[l], tally.mixed[l]);
            }
            for (int32_t i : some.near) tally.add(some.a[i], some.b[i], some.h[i], ones, y);
            each(first + begin, few, tally, ones, y);
        }
    }
}

template <class T> int entropies(const TwoRows<T> &s, int64_t row, Line<T> &line) {
    const int64_t at = row * s.n, n = s.n;
    const T least = sizeof(T) == 4 ? T(0x1p-80) : T(0x1p-900);
    if (!line.template read<T>(s, row)) return LOST;
    const T *diagonal = s.own + at, *g = s.z + at;
    const int exponent = line.exponent;
    T *straight = line.straight.data();
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t j = 0; j < n; j++) {
        const T own = std::fabs(diagonal[j]) * g[j], in_units = scaled(own, -exponent);
        found |= flags_of(own, diagonal[j], g[j]) | flags_of(in_units, own, T(1));
        straight[j] = in_units;
    }
    const bool together = n >= LONG && std::all_of(line.r0.begin(), line.r0.end(), [&](T x) { return x == line.r0[0]; });
    const std::vector<int32_t> order = together ? ordered(line.r1.data(), n) : std::vector<int32_t>();
    const auto place = [&](int64_t i) { return together ? int64_t(order[i]) : i; };
    Edges<T> edges(n);
    std::vector<T> across(n), along(n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = place(i);
        across[i] = line.r0[from], along[i] = line.r1[from];
        edges.a[i] = line.a[from] * (together ? line.r0[0] : T(1)), edges.b[i] = line.b[from], edges.h[i] = s.h[at + from];
    }
    const T *a = edges.a.data(), *b = edges.b.data(), *h = edges.h.data();
    // Meets neighbours with each other, and merges with what comes straight.
    const auto finish = [&](int64_t first, int64_t some, auto &tally, const T *x, const T *y) {
        for (int64_t i = first; i < first + some; i++) tally.add(a[i], b[i], h[i], x, y, int(i - first));
        constexpr int WIDTH = sizeof(tally.total) / sizeof(T);
        T direct[WIDTH] = {}, spread[WIDTH] = {};
        for (int64_t l = 0; l < some; l++) direct[l] = straight[place(first + l)], spread[l] = s.h[at + place(first + l)];
#pragma omp simd
        for (int l = 0; l < WIDTH; l++) {
            const T total = tally.total[l] + direct[l], safe = total > 0 ? total : T(1);
            const T h = (tally.mixed[l] + surprise(direct[l], spread[l])) / safe + log2_of(safe);
            tally.total[l] = total;
            spread[l] = total > 0 ? (h > 0 ? h : T(0)) : T(0);
        }
        for (int64_t l = 0; l < some; l++) {
            const int64_t j = place(first + l);
            const T total = tally.total[l];
            s.out[at + j] = scaled(total, line.exponent);
            s.out_h[at + j] = spread[l];
            found |= flags_of(s.out[at + j], total, T(1)) | (total < least && (direct[l] > 0 || reached(s, at, j)) ? LOST : 0);
        }
    };
    if (together) {
        in_parts<T, LANES<T>>(edges, along.data(), n, finish);
        return found;
    }
    constexpr int WIDTH = 4 * LANES<T>;
    for (int64_t first = 0; first < n; first += WIDTH) {
        const int64_t some = std::min<int64_t>(WIDTH, n - first);
        T x[WIDTH] = {}, y[WIDTH] = {};
        std::copy_n(across.data() + first, some, x);
        std::copy_n(along.data() + first, some, y);
        Tally<T, WIDTH> tally;
        for (int64_t i = 0; i < first; i++) tally.add(a[i], b[i], h[i], x, y);
        for (int64_t i = first + some; i < n; i++) tally.add(a[i], b[i], h[i], x, y);
        finish(first, some, tally, x, y);
    }
    return found;
}

// Runs what carries a row back on some rows, one after the other; `next` makes the next one ready and takes in the last.
template <class T, class F> int each_row(const TwoRows<T> &s, int64_t begin, int64_t end, F next) {
    int found = 0;
    if (s.h) {
        Line<T> line(s.n);
        for (int64_t row = begin; row < end; row++) found |= next(row, [&](int64_t at) { return entropies(s, at, line); });
    } else {
        Line<double> line(s.n);
        const auto carry = [&](int64_t at) {
            return with_power(s.squarings, [&](auto squarings) { return powers<squarings()>(s, at, line); });
        };
        for (int64_t row = begin; row < end; row++) found |= next(row, carry);
    }
    return found;
}

// A row of n1·n2 scalars laid out without gaps.
template <class T> class Row {
  public:
    Row(int64_t n1, int64_t n2) : n1(n1), n2(n2), own(n1 * n2) {}
    T *data() { return own.data(); }
    void read(const Rows<const T> &from, int64_t row) {
        each(from, row, [this](int64_t i, const T &x) { own[i] = x; });
    }
    void write(const Rows<T> &to, int64_t row) const {
        each(to, row, [this](int64_t i, T &x) { x = own[i]; });
    }

  private:
    template <class Lying, class F> void each(const Lying &rows, int64_t row, F f) const {
        for (int64_t i = 0; i < n1; i++) {
            const auto line = rows.data + row * rows.row + i * rows.n1;
            const int64_t first = i * n2;
            if (rows.n2 == 1)
                for (int64_t j = 0; j < n2; j++) f(first + j, line[j]);
            else
                for (int64_t j = 0; j < n2; j++) f(first + j, line[j * rows.n2]);
        }
    }
    int64_t n1, n2;
    std::vector<T> own;
};

// The factors of a row of a normalisation, each rounded as PyTorch's operators round it.
template <class T> struct Factors {
    Row<T> own, left0, left1, ones, hat, gamma, scale, squares;

    Factors(int64_t n1, int64_t n2)
        : own(n1, n2), left0(n1, n2), left1(n1, n2), ones(n1, n2), hat(n1, n2), gamma(n1, n2), scale(n1, n2), squares(n1, n2) {
        std::fill_n(ones.data(), n1 * n2, T(1));
        std::fill_n(gamma.data(), n1 * n2, T(1));
    }
    template <class S> void read(const S &s, int64_t row) {
        const int64_t n = s.n1 * s.n2;
        hat.read(s.hat, row), scale.read(s.scale, row);
        if (s.gamma.data) gamma.read(s.gamma, row);
        const T *x = hat.data(), *by = gamma.data(), *unit = scale.data(), count = T(s.count);
        T *straight = own.data(), *level = left0.data(), *slope = left1.data(), *square = squares.data();
        for (int64_t i = 0; i < n; i++) square[i] = x[i] * x[i];  // in a loop of its own, or it would not be rounded
        for (int64_t i = 0; i < n; i++) {
            const T weight = by[i] * unit[i];
            level[i] = -weight / count;
            slope[i] = -weight * x[i] / count;
            straight[i] = weight * (1 - (1 + square[i]) / count);
        }
    }
};

}  // namespace

template <class T> int two_rows(const TwoRows<T> &s, int threads) {
    return share_flags(s.rows, s.rows * s.n * (s.h ? s.n : 8), threads, [&](int64_t begin, int64_t end) {
        return each_row(s, begin, end, [](int64_t row, auto carry) { return carry(row); });
    });
}

template <class T> int standard_rows(const StandardRows<T> &s, int threads) {
    const int64_t n = s.n1 * s.n2;
    const bool spread = s.h.data != nullptr;
    return share_flags(s.rows, s.rows * n * (spread ? n : 8), threads, [&](int64_t begin, int64_t end) {
        Factors<T> f(s.n1, s.n2);
        Row<T> z(s.n1, s.n2), h(s.n1, s.n2), out(s.n1, s.n2), out_h(s.n1, s.n2);
        const TwoRows<T> one{1, n, f.own.data(), f.left0.data(), f.left1.data(), f.ones.data(), f.hat.data(), z.data(),
                             spread ? h.data() : nullptr, s.squarings, out.data(), out_h.data()};
        return each_row(one, begin, end, [&](int64_t row, auto carry) {
            f.read(s, row), z.read(s.z, row);
            if (spread) h.read(s.h, row);
            const int found = carry(0);
            out.write(s.out, row);
            if (spread) out_h.write(s.out_h, row);
            return found;
        });
    });
}

int added_rows(const AddedRows &s, int threads) {
    const int64_t n = s.n1 * s.n2;
    return share_flags(s.rows, s.rows * n, threads, [&](int64_t begin, int64_t end) {
        Factors<float> f(s.n1, s.n2);
        Row<double> in(s.n1, s.n2), out(s.n1, s.n2);
        const float *own = f.own.data(), *left0 = f.left0.data(), *left1 = f.left1.data(), *right1 = f.hat.data();
        const double *g = in.data();
        double *to = out.data();
        for (int64_t row = begin; row < end; row++) {
            f.read(s, row), in.read(s.g, row);
            double level = 0, slope = 0;
#pragma omp simd reduction(+ : level, slope)
            for (int64_t i = 0; i < n; i++) level += left0[i] * g[i], slope += left1[i] * g[i];
#pragma omp simd
            for (int64_t j = 0; j < n; j++)
                to[j] = own[j] * g[j] + (level - left0[j] * g[j]) + right1[j] * (slope - left1[j] * g[j]);
            out.write(s.out, row);
        }
        return 0;
    });
}

template int two_rows(const TwoRows<float> &, int);
template int two_rows(const TwoRows<double> &, int);
template int standard_rows(const StandardRows<float> &, int);
template int standard_rows(const StandardRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
