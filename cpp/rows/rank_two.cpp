// Jacobians of rank two beside their diagonal (layer norm, batch norm in training):
// out_j = max(|own_j|·f·g_j, max over i≠j of |left0_i + left1_i·t_j|·f·g_i).
//
// As functions of t the candidates i are V-shaped, and few of them are ever largest. Two facts make finding
// those exact. Rounding is monotone, so the computed left0 + left1·t is monotone in t, and on an interval its
// computed values at the ends bound all computed values between: no slack is needed. And where two candidates
// stay above a level throughout an interval, at least one of them isn't j itself, so whatever stays below
// that level cannot win there.
//
// A sieve looks at some intervals at once and keeps the candidates that can win in any of them. Where few are left,
// every j is met with all of them. Where many are (gradients that are nearly equal compete near t = 0), the places
// j are sorted into buckets by their t, and a `Splitter` divides those that need it, each part with its own ever
// shorter list of candidates.
#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "rows/rows.hpp"
#include "rows/line.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int COARSE = 8, PARTS = 4;   // intervals of the first sieve, and of each of those in the second
constexpr int FINE = COARSE * PARTS;
constexpr int BUCKETS = 1024;         // of places, by their t
constexpr int DEEPEST = 64;           // halvings of a range of t by a Splitter
constexpr int64_t DIRECT = 48;        // rows so short are not worth a sieve
constexpr int64_t LONG = 1024, SOME = 16;  // of so many candidates, one register in so many gives the levels of a sieve
constexpr int64_t FEW = 32;           // candidates so few are not sieved again
constexpr int64_t MANY = 256;        // candidates so many are not sieved again in one go
constexpr int64_t BEARABLE = 128;     // candidates so few are met with all places rather than sorting these
constexpr int64_t HANDFUL = 16;       // candidates so few are not sieved again for a part of the places
constexpr int64_t ENOUGH = 4096;      // pairs (place, candidate) not worth dividing further

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

// Signed values at one t of the candidates i, i + 1, ….
template <class T> struct Block {
    Vec<T> left0, left1, g;
    Block(const Candidates<T> &c, int64_t i)
        : left0(load(c.left0 + i, c.count - i)), left1(load(c.left1 + i, c.count - i)), g(load(c.g + i, c.count - i)) {}
    Vec<T> at(T t) const { return (left0 + left1 * t) * g; }
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
    // Those of the candidates i, i + 1, … whose bit is set; they may lie in this memory, not before where it is full.
    void keep(const Candidates<T> &from, int64_t i, [[maybe_unused]] const Block<T> &block, uint32_t bits) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) {
            const auto mask = __mmask16(bits);
            const __m512i at = (__m512i)load_index<T>(from.place + i, from.count - i);
            _mm512_storeu_ps(left0 + count, _mm512_maskz_compress_ps(mask, (__m512)block.left0));
            _mm512_storeu_ps(left1 + count, _mm512_maskz_compress_ps(mask, (__m512)block.left1));
            _mm512_storeu_ps(g + count, _mm512_maskz_compress_ps(mask, (__m512)block.g));
            _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(mask, at));
            count += __builtin_popcount(bits);
            return;
        }
#endif
        for (; bits; bits &= bits - 1) keep(from, i + __builtin_ctz(bits));
    }
    Candidates<T> view() const { return {left0, left1, g, place, count}; }
};

template <class T> struct Memory {
    std::vector<T> left0, left1, g;
    std::vector<int32_t> place;
    Sieved<T> kept;
    explicit Memory(int64_t n)  // whole registers are written
        : left0(n + LANES<T>), left1(n + LANES<T>), g(n + LANES<T>), place(n + LANES<T>), kept{left0.data(), left1.data(), g.data(), place.data()} {}
};

// Room for the candidates of each depth of a recursion, kept from row to row.
template <class T> class Stack {
  public:
    Sieved<T> &at(size_t depth, int64_t count) {
        while (levels.size() <= depth) levels.emplace_back();
        if (!levels[depth] || int64_t(levels[depth]->g.size()) < count + LANES<T>) levels[depth].reset(new Memory<T>(count));
        return levels[depth]->kept;
    }

  private:
    std::vector<std::unique_ptr<Memory<T>>> levels;
};

// Of a function that lies between a and b: how small and how large its magnitude can be.
template <class T> inline Vec<T> lower(Vec<T> a, Vec<T> b) { return present(larger(smaller(a, b), -larger(a, b))); }
template <class T> inline Vec<T> upper(Vec<T> a, Vec<T> b) { return larger(magnitude<T>(a), magnitude<T>(b)); }

// For each interval between two edges: a level that two candidates reach everywhere in it. One register of candidates in
// `every` is looked at: some of them tell nearly as much as all.
template <class T> void levels(const Candidates<T> &c, const T *edge, int intervals, T *level, int64_t every = 1) {
    TopTwo<T> top[FINE];
    for (int k = 0; k < intervals; k++) top[k] = TopTwo<T>{};
    for (int64_t i = 0; i < c.count; i += every * LANES<T>) {
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

// Keeps the candidates that reach the level of any of the intervals. `kept` may overwrite `c`. `most_stay`: all may be
// kept where copying wouldn't save much; false then.
template <class T>
bool keep_above(const Candidates<T> &c, const T *edge, int intervals, const T *level, Sieved<T> &kept, bool most_stay = false) {
    constexpr int64_t TRIED = 64;  // registers that tell how many stay
    kept.count = 0;
    for (int64_t i = 0; i < c.count; i += LANES<T>) {
        const Block<T> block(c, i);
        Vec<T> before = block.at(edge[0]);
        Int<T> live{};
        for (int k = 0; k < intervals; k++) {
            const Vec<T> after = block.at(edge[k + 1]), most = upper<T>(before, after);
            live |= (most >= level[k]) & (most > T(0));
            before = after;
        }
        if (const uint32_t bits = lane_bits<T>(live)) kept.keep(c, i, block, bits);
        if (most_stay && i == TRIED * LANES<T> && kept.count > i / 2) return false;
    }
    return true;
}

// Keeps the candidates that can win in some interval between two edges.
template <class T> void sieve(const Candidates<T> &c, const T *edge, int intervals, Sieved<T> &kept) {
    T level[FINE];
    levels(c, edge, intervals, level, c.count >= LONG ? SOME : 1);
    keep_above(c, edge, intervals, level, kept);
}
// The same between two values of t, but all of them where most would be kept.
template <class T> Candidates<T> sieved(const Candidates<T> &c, const T *edge, Sieved<T> &kept) {
    T level;
    levels(c, edge, 1, &level);
    return keep_above(c, edge, 1, &level, kept, true) ? kept.view() : c;
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

// The places of a row sorted by buckets of their t.
template <class T> struct Sorted {
    std::vector<uint16_t> bucket;  // of each place
    std::vector<int32_t> place, winner;
    std::vector<T> t, value;       // of the places in that order, and what won there
    int64_t start[BUCKETS + 1];    // where a bucket begins

    explicit Sorted(int64_t n) : bucket(n), place(n), winner(n), t(n), value(n) {}

    void sort(const Line<T> &line, T low, T high) {
        const T scale = T(BUCKETS) / (high - low), last = T(BUCKETS - 1);
        int64_t count[BUCKETS + 1] = {};
        for (int64_t j = 0; j < line.n; j++) {
            const T at = (line.t[j] - low) * scale;
            bucket[j] = uint16_t(int(at >= T(0) ? (at < last ? at : last) : T(0)));  // 0 where there is no distance at all
        }
        for (int64_t j = 0; j < line.n; j++) count[bucket[j] + 1]++;
        for (int b = 0; b < BUCKETS; b++) count[b + 1] += count[b];
        std::copy_n(count, BUCKETS + 1, start);
        for (int64_t j = 0; j < line.n; j++) {
            const int64_t to = count[bucket[j]]++;
            place[to] = int32_t(j), t[to] = line.t[j];
        }
    }
    void write(T *out, int32_t *arg) const {
        for (size_t x = 0; x < place.size(); x++) out[place[x]] = value[x], arg[place[x]] = winner[x];
    }
};

template <class T> struct Splitter {
    Sorted<T> &sorted;
    Stack<T> &stack;
    Watch<T> &watch;

    // Every place of the part with every candidate.
    void meet_part(int64_t begin, int64_t end, const Candidates<T> &c) {
        constexpr int V = 4;
        for (int64_t x = begin; x < end; x += V * LANES<T>) {
            if (end - x <= LANES<T>)
                meet_some<1>(x, end - x, c);
            else
                meet_some<V>(x, end - x, c);
        }
    }
    template <int V> void meet_some(int64_t begin, int64_t count, const Candidates<T> &c) {
        Vec<T> t[V];
        Int<T> j[V];
        Best<T> best[V];
        for (int v = 0; v < V; v++) {
            const int64_t at = v * LANES<T>, left = std::max<int64_t>(0, count - at), from = left ? begin + at : begin;
            t[v] = load(sorted.t.data() + from, left), j[v] = load_index<T>(sorted.place.data() + from, left);
        }
        meet<V, false>(c, t, j, 0, best, watch);
        for (int v = 0; v < V && v * LANES<T> < count; v++) {
            const int64_t at = v * LANES<T>;
            store(sorted.value.data() + begin + at, best[v].value, count - at);
            store_index<T>(sorted.winner.data() + begin + at, best[v].place, count - at);
        }
    }

    // All places of the part have one t, so there is one winner, and a second one for the winner itself.
    void meet_same(int64_t begin, int64_t end, const Candidates<T> &c) {
        T first = 0, second = 0;
        int32_t first_at = -1, second_at = -1;
        for (int64_t i = 0; i < c.count; i++) {
            const T value = std::abs(c.left0[i] + c.left1[i] * sorted.t[begin]) * c.g[i];
            if (value > first) {
                second = first, second_at = first_at;
                first = value, first_at = c.place[i];
            } else if (value > second) {
                second = value, second_at = c.place[i];
            }
        }
        for (int64_t x = begin; x < end; x++) {
            const bool itself = sorted.place[x] == first_at;
            sorted.value[x] = itself ? second : first;
            sorted.winner[x] = itself ? second_at : first_at;
        }
    }

    // The interval of t of a part.
    void stretch(int64_t begin, int64_t end, T *edge) const {
        Vec<T> low = all(sorted.t[begin]), high = low;
        int64_t x = begin;
        for (; x + LANES<T> <= end; x += LANES<T>) {
            const Vec<T> t = load(sorted.t.data() + x);
            low = smaller(t, low), high = larger(t, high);
        }
        edge[0] = lowest<T>(low), edge[1] = highest<T>(high);
        for (; x < end; x++) edge[0] = std::min(edge[0], sorted.t[x]), edge[1] = std::max(edge[1], sorted.t[x]);
    }

    // Whether dividing a part further costs more than it saves.
    static bool settled(int64_t places, int64_t candidates) {
        return candidates <= HANDFUL || places <= LANES<T> || places * candidates <= ENOUGH;
    }

    // Buckets from one to another.
    void split_buckets(int from, int to, const Candidates<T> &c, int depth) {
        const int64_t begin = sorted.start[from], end = sorted.start[to];
        if (to - from == 1) return split(begin, end, c, depth);
        if (begin == end) return;
        if (settled(end - begin, c.count)) return meet_part(begin, end, c);
        T edge[2];
        stretch(begin, end, edge);
        const Candidates<T> left = sieved(c, edge, stack.at(size_t(depth), c.count));
        if (settled(end - begin, left.count)) return meet_part(begin, end, left);
        const int middle = (from + to) / 2;
        split_buckets(from, middle, left, depth + 1);
        split_buckets(middle, to, left, depth + 1);
    }

    // Places of one bucket.
    void split(int64_t begin, int64_t end, const Candidates<T> &c, int depth) {
        if (begin == end) return;
        if (settled(end - begin, c.count) || depth >= DEEPEST) return meet_part(begin, end, c);
        T edge[2];
        stretch(begin, end, edge);
        const Candidates<T> left = sieved(c, edge, stack.at(size_t(depth), c.count));
        if (edge[0] == edge[1]) return meet_same(begin, end, left);
        if (settled(end - begin, left.count)) return meet_part(begin, end, left);
        const T half = edge[0] / 2 + edge[1] / 2, middle = half < edge[1] ? half : edge[0];
        const int64_t at = part(begin, end, middle);
        split(begin, at, left, depth + 1);
        split(at, end, left, depth + 1);
    }
    // Puts places with t ≤ middle first; where the others begin.
    int64_t part(int64_t begin, int64_t end, T middle) {
        for (int64_t x = begin; x < end; x++)
            if (sorted.t[x] <= middle) {
                std::swap(sorted.t[x], sorted.t[begin]);
                std::swap(sorted.place[x], sorted.place[begin++]);
            }
        return begin;
    }
};

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
    Stack<T> stack;
    Sorted<T> sorted;
    explicit Workspace(int64_t n) : scaled(n), places(n), memory(n), sorted(n) {
        for (int64_t i = 0; i < n; i++) places[i] = int32_t(i);
    }
};

// All places with the candidates that can win at their t.
template <class T> void compete(const Line<T> &line, const Candidates<T> &c, const Seen<T> &seen, Workspace<T> &work, T *out,
             int32_t *arg, Watch<T> &watch) {
    T edge[FINE + 1];
    Sieved<T> &kept = work.memory.kept;
    even_edges(seen.low, seen.high, COARSE, edge);
    sieve(c, edge, COARSE, kept);
    even_edges(seen.low, seen.high, FINE, edge);
    if (kept.count > FEW && kept.count <= MANY) sieve(kept.view(), edge, FINE, kept);
    if (kept.count <= BEARABLE) return meet_all<false>(line, kept.view(), out, arg, watch);
    work.sorted.sort(line, seen.low, seen.high);
    Splitter<T>{work.sorted, work.stack, watch}.split_buckets(0, BUCKETS, kept.view(), 0);
    work.sorted.write(out, arg);
}

template <class T> void row(const Line<T> &line, T f, Workspace<T> &work, T *out, int32_t *arg, Watch<T> &watch) {
    const Seen<T> seen = look(line, f, work.scaled.data(), watch);
    Candidates<T> c{line.left0, line.left1, work.scaled.data(), work.places.data(), line.n};
    if (!seen.finite) {
        meet_all<true>(line, c, out, arg, watch);
    } else if (line.n <= DIRECT) {
        meet_all<false>(line, c, out, arg, watch);
    } else {
        compete(line, c, seen, work, out, arg, watch);
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
        int exponent;
        const bool power_of_two = std::frexp(count, &exponent) == T(0.5) && exponent < 64;
        if (power_of_two)  // times the inverse is the same to the last bit, and much faster
            fill(hat, gamma, scale, n, [inverse = T(1) / count](Vec<T> x) { return x * inverse; });
        else
            fill(hat, gamma, scale, n, [count](Vec<T> x) { return x / count; });
    }

  private:
    template <class F> void fill(const T *hat, const T *gamma, const T *scale, int64_t n, F shared) {
        for (int64_t i = 0; i < n; i += LANES<T>) {
            const int64_t some = n - i;
            const Vec<T> x = load(hat + i, some), s = load(scale + i, some), a = gamma ? load(gamma + i, some) * s : s;
            store(own.data() + i, a * (T(1) - shared(T(1) + x * x)), some);
            store(left0.data() + i, shared(-a), some);
            store(left1.data() + i, shared(-a * x), some);
        }
    }
};

// Numbers in a wider type.
template <class T, class F> const T *widened(const F *x, int64_t n, std::vector<T> &room) {
    if constexpr (std::is_same_v<T, F>) return x;
    room.assign(x, x + n);
    return room.data();
}

template <class T, class F> Summary standard_range(const Standard<T, F> &r, int64_t begin, int64_t end) {
    const Sizes sizes{r.n1, r.n2};
    const int64_t n = sizes.n();
    Watch<T> watch;
    Reader<T> g(r.g, sizes);
    Reader<F> hat(r.hat, sizes), gamma(r.gamma, sizes), scale(r.scale, sizes);
    Writer<T> writer(r.out, r.arg, sizes, r.short_arg);
    Workspace<T> work(n);
    Factors<F> factors(n);
    std::vector<T> own, left0, left1, t;
    for (int64_t x = begin; x < end; x++) {
        const F *narrow = hat.line(x);
        factors.fill(narrow, gamma.line(x), scale.line(x), F(r.count), n);
        const Line<T> line{g.line(x), widened(factors.own.data(), n, own), widened(factors.left0.data(), n, left0),
                           widened(factors.left1.data(), n, left1), widened(narrow, n, t), n};
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
template <class T, class F> Summary standard(const Standard<T, F> &r, int threads) {
    const int64_t n = r.n1 * r.n2;
    if (n == 0 || r.rows == 0) return nothing_seen();
    return share(r.rows, 16 * r.rows * n, threads, [&](int64_t begin, int64_t end) { return standard_range(r, begin, end); });
}

template Summary rank_two(const RankTwo<float> &, int);
template Summary rank_two(const RankTwo<double> &, int);
template Summary standard(const Standard<float> &, int);
template Summary standard(const Standard<double> &, int);
template Summary standard(const Standard<double, float> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
