// Jacobians of rank two beside their diagonal (layer norm, batch norm in training):
// out_j = max(|own_j|·f·g_j, max over i≠j of |left0_i + left1_i·t_j|·f·g_i).
//
// As functions of t the candidates i are V-shaped, and few of them are ever largest. Two facts make finding
// those exact. Rounding is monotone, so the computed left0 + left1·t is monotone in t, and on an interval its
// computed values at the ends bound all computed values between: no slack is needed. And where two candidates
// stay above a level throughout an interval, at least one of them isn't j itself, so whatever stays below
// that level cannot win there.
//
// A `Sieve` looks at some intervals at once and keeps the candidates that can win in any of them; every j is
// met with all that are left. An interval where too many are left (equal gradients near t = 0, say) is looked at
// again in narrower ones. The few places j in what stays hard go to a `Splitter`, which divides them by their
// t, each part with its own ever shorter list of candidates.
#include <algorithm>
#include <cmath>
#include <vector>

#include "rows.hpp"
#include "rows_line.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int COARSE = 8, PARTS = 4;   // intervals of the first sieve, and of each of those in the second
constexpr int FINE = COARSE * PARTS;
constexpr int DEEPEST = 64;           // halvings of a range of t by a Splitter
constexpr int NARROWEST = 3;          // divisions of a hard interval by a Sieve
constexpr int64_t DIRECT = 128;       // rows so short are not worth a sieve
constexpr int64_t FEW = 32;           // candidates so few are not sieved again
constexpr int64_t ENOUGH = 4096;      // pairs (place, candidate) not worth splitting further

// A row; cotangents are already multiplied with f.
template <class T> struct Line {
    const T *g, *own, *left0, *left1, *t;
    int64_t n;
};

// Candidates in ascending order of their place.
template <class T> struct Candidates {
    const T *left0, *left1, *g;
    const int32_t *place;
    int64_t count;
};

// Memory for candidates that a sieve keeps.
template <class T> struct Sieved {
    T *left0, *left1, *g;
    int32_t *place;
    int64_t count = 0;

    void keep(const Candidates<T> &from, int64_t i) {
        left0[count] = from.left0[i];
        left1[count] = from.left1[i];
        g[count] = from.g[i];
        place[count++] = from.place[i];
    }
    Candidates<T> view() const { return {left0, left1, g, place, count}; }
};

template <class T> struct Memory {
    std::vector<T> left0, left1, g;
    std::vector<int32_t> place;
    Sieved<T> kept;
    explicit Memory(int64_t n)
        : left0(n), left1(n), g(n), place(n), kept{left0.data(), left1.data(), g.data(), place.data()} {}
};

// Signed values at one t of the candidates i, i + 1, ….
template <class T> struct Block {
    Vec<T> left0, left1, g;
    Block(const Candidates<T> &c, int64_t i)
        : left0(load(c.left0 + i, c.count - i)), left1(load(c.left1 + i, c.count - i)), g(load(c.g + i, c.count - i)) {}
    Vec<T> at(T t) const { return (left0 + left1 * t) * g; }
};

// Of a function that lies between a and b: how small and how large its magnitude can be.
template <class T> inline Vec<T> lower(Vec<T> a, Vec<T> b) { return present(larger(smaller(a, b), -larger(a, b))); }
template <class T> inline Vec<T> upper(Vec<T> a, Vec<T> b) { return larger(magnitude<T>(a), magnitude<T>(b)); }

// For each interval between two edges: a level that two candidates reach everywhere in it.
template <class T> void levels(const Candidates<T> &c, const T *edge, int intervals, T *level) {
    TopTwo<T> top[FINE];
    for (int k = 0; k < intervals; k++) top[k] = TopTwo<T>{};
    for (int64_t i = 0; i < c.count; i += LANES<T>) {
        const Block<T> block(c, i);
        Vec<T> before = block.at(edge[0]);
        for (int k = 0; k < intervals; k++) {
            const Vec<T> after = block.at(edge[k + 1]);
            top[k].add(lower<T>(before, after));
            before = after;
        }
    }
    for (int k = 0; k < intervals; k++) level[k] = top[k].second_largest(top[k].largest());
}

// Keeps the candidates that reach the level of any of the intervals, and counts how many reach each. Beyond
// `room` it only counts. `kept` may overwrite `c`.
template <class T>
void keep_above(const Candidates<T> &c, const T *edge, int intervals, const T *level, int64_t room, Sieved<T> &kept,
                int64_t *count) {
    Int<T> counts[FINE];
    for (int k = 0; k < intervals; k++) counts[k] = Int<T>{};
    kept.count = 0;
    for (int64_t i = 0; i < c.count; i += LANES<T>) {
        const Block<T> block(c, i);
        Vec<T> before = block.at(edge[0]);
        Int<T> live{};
        for (int k = 0; k < intervals; k++) {
            const Vec<T> after = block.at(edge[k + 1]), most = upper<T>(before, after);
            const Int<T> reaches = (most >= level[k]) & (most > T(0));
            counts[k] -= reaches;
            live |= reaches;
            before = after;
        }
        if (kept.count > room) continue;
        for (uint32_t bits = lane_bits<T>(live); bits; bits &= bits - 1) kept.keep(c, i + __builtin_ctz(bits));
    }
    for (int k = 0; k < intervals; k++) {
        count[k] = 0;
        for (int l = 0; l < LANES<T>; l++) count[k] += counts[k][l];
    }
}

// Keeps the candidates that can win somewhere between two values of t.
template <class T> void sieve(const Candidates<T> &c, const T *edge, Sieved<T> &kept) {
    T level;
    int64_t count;
    levels(c, edge, 1, &level);
    keep_above(c, edge, 1, &level, c.count, kept, &count);
}

template <class T> void even_edges(T low, T high, int intervals, T *edge) {
    const T step = high / T(intervals) - low / T(intervals);
    for (int k = 0; k <= intervals; k++) edge[k] = std::min(high, std::max(low, low + step * T(k)));
    edge[intervals] = high;
}

// The best candidates so far of some places.
template <class T> struct Best {
    Vec<T> value{};
    Int<T> place = all_int<T>(-1);
};

// Meets V registers of places, at t, with all candidates in order; there are `places` of them in all.
template <int V, bool checked, class T>
void meet(const Candidates<T> &c, const Vec<T> *t, const Int<T> *j, int64_t places, Best<T> *best, Watch<T> &watch) {
    for (int64_t i = 0; i < c.count; i++) {
        const Int<T> here = all_int<T>(c.place[i]);
        for (int v = 0; v < V; v++) {
            const Vec<T> weight = c.left0[i] + c.left1[i] * t[v], value = magnitude<T>(weight) * c.g[i];
            const Int<T> take = (value > best[v].value) & (here != j[v]);
            best[v].value = take ? value : best[v].value;
            best[v].place = take ? here : best[v].place;
            if (checked) watch.operand((here != j[v]) & (j[v] < all_int<T>(places)) ? weight : Vec<T>{});
        }
    }
}

// All places with all of the given candidates.
template <bool checked, class T>
void meet_all(const Line<T> &line, const Candidates<T> &c, T *out, int32_t *arg, Watch<T> &watch) {
    constexpr int V = 4;
    for (int64_t j0 = 0; j0 < line.n; j0 += V * LANES<T>) {
        Vec<T> t[V];
        Int<T> j[V];
        Best<T> best[V];
        for (int v = 0; v < V; v++) {
            const int64_t at = std::min(line.n, j0 + v * LANES<T>);
            t[v] = load(line.t + at, line.n - at);
            j[v] = lane_numbers<T>() + all_int<T>(at);
        }
        if (j0 + LANES<T> >= line.n)
            meet<1, checked>(c, t, j, line.n, best, watch);
        else
            meet<V, checked>(c, t, j, line.n, best, watch);
        for (int v = 0; v < V && j0 + v * LANES<T> < line.n; v++) {
            const int64_t at = j0 + v * LANES<T>;
            store(out + at, best[v].value, line.n - at);
            store_index<T>(arg + at, best[v].place, line.n - at);
        }
    }
}

// ---- splitting -----------------------------------------------------------------------------------------

template <class T> struct Splitter {
    const Line<T> &line;
    T *out;
    int32_t *arg;
    Watch<T> &watch;
    std::vector<int32_t> order;  // the places j; a part of them lies together

    Splitter(const Line<T> &line, T *out, int32_t *arg, Watch<T> &watch, std::vector<int32_t> places)
        : line(line), out(out), arg(arg), watch(watch), order(std::move(places)) {}
    void run(const Candidates<T> &c) { split(0, int64_t(order.size()), c, 0); }
    T t_of(int64_t x) const { return line.t[order[x]]; }

    // Every place of the part with every candidate.
    void meet_part(int64_t begin, int64_t end, const Candidates<T> &c) {
        for (int64_t x = begin; x < end; x += LANES<T>) {
            const int64_t count = std::min<int64_t>(LANES<T>, end - x);
            Vec<T> t{};
            Int<T> j = all_int<T>(-1);
            for (int64_t l = 0; l < count; l++) t[l] = t_of(x + l), j[l] = order[x + l];
            Best<T> best;
            meet<1, false>(c, &t, &j, line.n, &best, watch);
            for (int64_t l = 0; l < count; l++) {
                out[j[l]] = best.value[l];
                arg[j[l]] = int32_t(best.place[l]);
            }
        }
    }

    // All places of the part have one t, so there is one winner, and a second one for the winner itself.
    void meet_same(int64_t begin, int64_t end, const Candidates<T> &c) {
        T first = 0, second = 0;
        int32_t first_at = -1, second_at = -1;
        for (int64_t i = 0; i < c.count; i++) {
            const T value = std::abs(c.left0[i] + c.left1[i] * t_of(begin)) * c.g[i];
            if (value > first) {
                second = first, second_at = first_at;
                first = value, first_at = c.place[i];
            } else if (value > second) {
                second = value, second_at = c.place[i];
            }
        }
        for (int64_t x = begin; x < end; x++) {
            const bool itself = order[x] == first_at;
            out[order[x]] = itself ? second : first;
            arg[order[x]] = itself ? second_at : first_at;
        }
    }

    void split(int64_t begin, int64_t end, const Candidates<T> &c, int depth) {
        if (begin == end) return;
        if (depth == DEEPEST || (end - begin) * c.count <= ENOUGH) return meet_part(begin, end, c);
        T edge[2] = {t_of(begin), t_of(begin)};
        for (int64_t x = begin; x < end; x++) edge[0] = std::min(edge[0], t_of(x)), edge[1] = std::max(edge[1], t_of(x));
        Memory<T> memory(c.count);
        sieve(c, edge, memory.kept);
        const Candidates<T> left = memory.kept.view();
        if (edge[0] == edge[1]) return meet_same(begin, end, left);
        const T half = edge[0] / 2 + edge[1] / 2, middle = half < edge[1] ? half : edge[0];
        const auto bound = std::partition(order.begin() + begin, order.begin() + end,
                                          [&](int32_t j) { return line.t[j] <= middle; });
        const int64_t at = bound - order.begin();
        split(begin, at, left, depth + 1);
        split(at, end, left, depth + 1);
    }
};

// ---- sieving -------------------------------------------------------------------------------------------

template <class T> struct Region {
    T low, high;
};

// Sieves the candidates of one row into those that matter in the easy regions of t, and names the hard ones.
template <class T> class Sieve {
  public:
    Sieve(const Candidates<T> &all, Memory<T> &memory) : all(all), memory(memory), most(FEW + all.count / 16) {}

    // Candidates for every t of the region that isn't in a hard one.
    Candidates<T> run(const Region<T> &region) {
        visit(region, 0);
        return marks.empty() ? memory.kept.view() : marked();
    }
    std::vector<Region<T>> hard;

  private:
    void visit(const Region<T> &region, int depth) {
        T edge[COARSE + 1], level[COARSE];
        int64_t count[COARSE];
        even_edges(region.low, region.high, COARSE, edge);
        levels(all, edge, COARSE, level);
        keep_above(all, edge, COARSE, level, COARSE * most, memory.kept, count);
        bool is_hard[COARSE];
        int found = 0;
        for (int k = 0; k < COARSE; k++) {
            is_hard[k] = count[k] > most;
            found += is_hard[k];
            if (is_hard[k]) level[k] = INF<T>;
        }
        if (found) keep_above(all, edge, COARSE, level, all.count, memory.kept, count);
        if (memory.kept.count > FEW) again(edge, is_hard);
        if (found || depth) mark();
        for (int k = 0; k < COARSE; k++) {
            if (!is_hard[k]) continue;
            if (depth < NARROWEST && found <= COARSE / 2)
                visit({edge[k], edge[k + 1]}, depth + 1);
            else
                hard.push_back({edge[k], edge[k + 1]});
        }
    }
    // Sieves what was kept once more, in parts of the easy intervals.
    void again(const T *edge, const bool *is_hard) {
        T finer[FINE + 1], level[FINE];
        int64_t count[FINE];
        for (int k = 0; k < COARSE; k++) even_edges(edge[k], edge[k + 1], PARTS, finer + k * PARTS);
        levels(memory.kept.view(), finer, FINE, level);
        for (int k = 0; k < FINE; k++)
            if (is_hard[k / PARTS]) level[k] = INF<T>;
        keep_above(memory.kept.view(), finer, FINE, level, all.count, memory.kept, count);
    }
    void mark() {
        if (marks.empty()) marks.resize(all.count);
        for (int64_t i = 0; i < memory.kept.count; i++) marks[memory.kept.place[i]] = 1;
    }
    Candidates<T> marked() {
        memory.kept.count = 0;
        for (int64_t i = 0; i < all.count; i++)
            if (marks[i]) memory.kept.keep(all, i);
        return memory.kept.view();
    }

    const Candidates<T> &all;
    Memory<T> &memory;
    const int64_t most;  // candidates that an easy interval can have
    std::vector<uint8_t> marks;
};

// The places whose t lies in a hard region.
template <class T> std::vector<int32_t> places_in(const Line<T> &line, const std::vector<Region<T>> &regions) {
    std::vector<int32_t> out;
    for (int64_t j = 0; j < line.n; j += LANES<T>) {
        const Vec<T> t = load(line.t + j, line.n - j);
        Int<T> in{};
        for (const Region<T> &r : regions) in |= (t >= r.low) & (t <= r.high);
        in &= lane_numbers<T>() < all_int<T>(line.n - j);
        for (uint32_t bits = lane_bits<T>(in); bits; bits &= bits - 1) out.push_back(int32_t(j + __builtin_ctz(bits)));
    }
    return out;
}

// ---- rows ----------------------------------------------------------------------------------------------

template <class T> struct Seen {
    T low, high;        // of t
    bool finite, live;  // live: some candidate can be above zero
};

// Looks through a row, and writes its cotangents times f.
template <class T> Seen<T> look(const Line<T> &line, T f, T *scaled, Watch<T> &watch) {
    Vec<T> low = all(INF<T>), high = -low;
    Int<T> bad{}, live{};
    for (int64_t i = 0; i < line.n; i += LANES<T>) {
        const int64_t n = line.n - i;
        const Vec<T> g = load(line.g + i, n), l0 = load(line.left0 + i, n), l1 = load(line.left1 + i, n), own = load(line.own + i, n);
        const Vec<T> t = n < LANES<T> ? load(line.t + i, n) + (lane_numbers<T>() < all_int<T>(n) ? all(T(0)) : all(line.t[0]))
                                      : load(line.t + i);
        watch.operands(g, own);
        watch.operands(l0, l1);
        watch.operand(t);
        low = smaller(t, low), high = larger(t, high);
        const Vec<T> finite = (g * f) * T(0) + l0 * T(0) + l1 * T(0) + t * T(0);
        bad |= finite != 0;
        live |= (g != 0) & ((l0 != 0) | (l1 != 0));
        store(scaled + i, g * f, n);
    }
    return {lowest<T>(low), highest<T>(high), !any(bad), any(live)};
}

// Puts the diagonal's own in where it is better.
template <class T> void diagonal(const Line<T> &line, const T *g, bool live, T *out, int32_t *arg, Watch<T> &watch) {
    for (int64_t j = 0; j < line.n; j += LANES<T>) {
        const int64_t n = line.n - j;
        const Vec<T> own = magnitude<T>(load(line.own + j, n)), raw = load(line.g + j, n);
        const Vec<T> a = present(own * load(g + j, n)), b = load(out + j, n);
        const Int<T> here = lane_numbers<T>() + all_int<T>(j), at = load_index<T>(arg + j, n);
        const Int<T> take_own = (a > b) | ((a == b) & (a > T(0)) & (here < at));
        const Vec<T> best = take_own ? a : b;
        store(out + j, best, n);
        store_index<T>(arg + j, take_own ? here : at, n);
        const Int<T> others = all_int<T>(live ? -1 : 0) & (here < all_int<T>(line.n));
        watch.result(best, ((own != 0) & (raw != 0)) | others);
    }
}

// What one thread needs for its rows.
template <class T> struct Workspace {
    std::vector<T> scaled;
    std::vector<int32_t> places;
    Memory<T> memory;
    explicit Workspace(int64_t n) : scaled(n), places(n), memory(n) {
        for (int64_t i = 0; i < n; i++) places[i] = int32_t(i);
    }
};

template <class T> void row(const Line<T> &line, T f, Workspace<T> &work, T *out, int32_t *arg, Watch<T> &watch) {
    const Seen<T> seen = look(line, f, work.scaled.data(), watch);
    Candidates<T> c{line.left0, line.left1, work.scaled.data(), work.places.data(), line.n};
    if (!seen.finite) {
        meet_all<true>(line, c, out, arg, watch);
    } else if (line.n <= DIRECT) {
        meet_all<false>(line, c, out, arg, watch);
    } else {
        Sieve<T> sieve(c, work.memory);
        meet_all<false>(line, sieve.run({seen.low, seen.high}), out, arg, watch);
        if (!sieve.hard.empty()) Splitter<T>(line, out, arg, watch, places_in(line, sieve.hard)).run(c);
    }
    diagonal(line, work.scaled.data(), seen.live, out, arg, watch);
}

template <class T> Summary rank_two_range(const RankTwo<T> &r, int64_t begin, int64_t end) {
    const Sizes sizes{r.n1, r.n2};
    Watch<T> watch;
    Reader<T> g(r.g, sizes), own(r.own, sizes), left0(r.left0, sizes), left1(r.left1, sizes), t(r.t, sizes);
    Writer<T> writer(r.out, r.arg, sizes);
    Workspace<T> work(sizes.n());
    for (int64_t x = begin; x < end; x++) {
        const Line<T> line{g.line(x), own.line(x), left0.line(x), left1.line(x), t.line(x), sizes.n()};
        row(line, T(r.f), work, writer.line(x), writer.arg_line(x), watch);
        writer.finish(x);
    }
    return watch.summary();
}

// ---- normalisations ------------------------------------------------------------------------------------

// The factors of one row of a normalisation, rounded step by step as PyTorch rounds them.
template <class T> struct Factors {
    std::vector<T> own, left0, left1;
    explicit Factors(int64_t n) : own(n), left0(n), left1(n) {}

    void fill(const T *hat, const T *gamma, const T *scale, T count, int64_t n) {
        for (int64_t i = 0; i < n; i += LANES<T>) {
            const int64_t some = n - i;
            const Vec<T> x = load(hat + i, some), s = load(scale + i, some), a = gamma ? load(gamma + i, some) * s : s;
            store(own.data() + i, a * (T(1) - (T(1) + x * x) / count), some);
            store(left0.data() + i, -a / count, some);
            store(left1.data() + i, -a * x / count, some);
        }
    }
};

template <class T> Summary standard_range(const Standard<T> &r, int64_t begin, int64_t end) {
    const Sizes sizes{r.n1, r.n2};
    Watch<T> watch;
    Reader<T> g(r.g, sizes), hat(r.hat, sizes), gamma(r.gamma, sizes), scale(r.scale, sizes);
    Writer<T> writer(r.out, r.arg, sizes);
    Workspace<T> work(sizes.n());
    Factors<T> factors(sizes.n());
    for (int64_t x = begin; x < end; x++) {
        const T *t = hat.line(x);
        factors.fill(t, gamma.line(x), scale.line(x), T(r.count), sizes.n());
        const Line<T> line{g.line(x), factors.own.data(), factors.left0.data(), factors.left1.data(), t, sizes.n()};
        row(line, T(r.f), work, writer.line(x), writer.arg_line(x), watch);
        writer.finish(x);
    }
    return watch.summary();
}

}  // namespace

template <class T> Summary rank_two(const RankTwo<T> &r, int threads) {
    const int64_t n = r.n1 * r.n2;
    if (n == 0 || r.rows == 0) return nothing_seen();
    return share(r.rows, 16 * r.rows * n, threads, [&](int64_t begin, int64_t end) { return rank_two_range(r, begin, end); });
}
template <class T> Summary standard(const Standard<T> &r, int threads) {
    const int64_t n = r.n1 * r.n2;
    if (n == 0 || r.rows == 0) return nothing_seen();
    return share(r.rows, 16 * r.rows * n, threads, [&](int64_t begin, int64_t end) { return standard_range(r, begin, end); });
}

template Summary rank_two(const RankTwo<float> &, int);
template Summary rank_two(const RankTwo<double> &, int);
template Summary standard(const Standard<float> &, int);
template Summary standard(const Standard<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
