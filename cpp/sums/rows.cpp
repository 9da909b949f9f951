// Sums along rows whose scalars are all connected by a Jacobian of rank one (softmax), and merges of two arrays.
#include <vector>

#include "rows/rows.hpp"
#include "sums/simd.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t BLOCK = 256;  // scalars that are asked together whether any of them isn't zero

// Elements by themselves and merged: how the p-norm and the entropy differ.
template <class T, int squarings> struct Power {
    static constexpr bool has_h = false;

    T term(T v, T) const { return raised<squarings>(v); }
    // The element that a sum of terms stands for, v being in some unit.
    void element(T terms, T, T unit, T &z, T &h) const { z = unit * rooted<squarings>(terms), h = 0; }
    void join(T z1, T, T z2, T, T &z, T &h) const {
        const T high = z1 > z2 ? z1 : z2, low = z1 > z2 ? z2 : z1;
        z = high * rooted<squarings>(1 + raised<squarings>(low / (high > 0 ? high : T(1))));
        h = 0;
    }
};

template <class T> struct Shared {
    static constexpr bool has_h = true;

    T term(T v, T h) const { return surprise(v, h); }
    void element(T terms, T total, T unit, T &z, T &h) const {
        const bool some = total > 0;
        const T spread = terms / (some ? total : T(1)) + log2_of(some ? total : T(1));
        z = unit * total;
        h = some & (spread > 0) ? spread : T(0);
    }
    void join(T z1, T h1, T z2, T h2, T &z, T &h) const {
        z = z1 + z2;
        const T share = 1 / (z > 0 ? z : T(1)), q1 = z1 * share, q2 = z2 * share;
        const T spread = surprise(q1, h1) + surprise(q2, h2);
        h = spread > 0 ? spread : T(0);
    }
};

// Merges some neighbours; where one of the arrays is zero in all of them, that is a copy.
template <class T, class Kind> int join_some(const Join<T> &s, Kind kind, int64_t begin, int64_t end) {
    // what loops read are variables of their own: of members gcc doesn't believe that they stay as they are
    const T *z1 = s.z1, *z2 = s.z2, *h1 = s.h1, *h2 = s.h2;
    T *out = s.z, *out_h = s.h;
    int found = 0, some1 = 0, some2 = 0;
#pragma omp simd reduction(| : some1, some2)
    for (int64_t i = begin; i < end; i++) some1 |= z1[i] != 0, some2 |= z2[i] != 0;
    if (!some1 || !some2) {
        const T *z = some2 ? z2 : z1, *h = some2 ? h2 : h1;
        if (z != out) std::copy(z + begin, z + end, out + begin);
        if (Kind::has_h && h != out_h) std::copy(h + begin, h + end, out_h + begin);
        return 0;
    }
#pragma omp simd reduction(| : found)
    for (int64_t i = begin; i < end; i++) {
        T z, h;
        kind.join(z1[i], Kind::has_h ? h1[i] : T(0), z2[i], Kind::has_h ? h2[i] : T(0), z, h);
        found |= z < INF<T> ? 0 : UNBOUNDED;
        out[i] = z;
        if (Kind::has_h) out_h[i] = h;
    }
    return found;
}

template <class T, class Kind> int join_by(const Join<T> &s, Kind kind, int threads) {
    return share_flags(s.n, s.n, threads, [&](int64_t begin, int64_t end) {
        int found = 0;
        for (int64_t at = begin; at < end; at += BLOCK) found |= join_some(s, kind, at, std::min(end, at + BLOCK));
        return found;
    });
}

// Writes what sums in units of the largest stand for.
template <class T, class Kind> int reduced(const SumAlong<T> &s, Kind kind, int64_t at, T unit, double total, double terms) {
    T z, h;
    kind.element(T(terms), T(total), unit, z, h);
    s.out[at] = z;
    if (Kind::has_h) s.out_h[at] = h;
    return z < INF<T> ? 0 : UNBOUNDED;
}

// Merges along some neighbouring columns, side by side.
template <class T, class Kind> int columns_of(const SumAlong<T> &s, Kind kind, int64_t batch, int64_t begin, int64_t end) {
    constexpr int64_t WIDTH = 64;
    const int64_t rows = s.z.rows, stride = s.z.row_stride, first = batch * s.z.columns;
    const T *z = s.z.data + batch * s.z.batch_stride, *h = s.h ? s.h + batch * s.z.batch_stride : z;
    int found = 0;
    for (int64_t at = begin; at < end; at += WIDTH) {
        const int64_t n = std::min(WIDTH, end - at);
        T unit[WIDTH] = {};
        double total[WIDTH] = {}, terms[WIDTH] = {};
        for (int64_t r = 0; r < rows; r++) {
            const T *line = z + r * stride + at;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) unit[i] = line[i] > unit[i] ? line[i] : unit[i];
        }
        for (int64_t i = 0; i < n; i++) unit[i] = unit[i] > 0 ? unit[i] : T(1);
        for (int64_t r = 0; r < rows; r++) {
            const T *line = z + r * stride + at, *beside = h + r * stride + at;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                const T v = line[i] / unit[i];
                terms[i] += kind.term(v, Kind::has_h ? beside[i] : T(0));
                if (Kind::has_h) total[i] += v;
            }
        }
        for (int64_t i = 0; i < n; i++) found |= reduced(s, kind, first + at + i, unit[i], total[i], terms[i]);
    }
    return found;
}

// Merges along a row.
template <class T, class Kind> int row_of(const SumAlong<T> &s, Kind kind, int64_t batch, int64_t row) {
    const int64_t n = s.z.columns, from = batch * s.z.batch_stride + row * s.z.row_stride;
    const T *line = s.z.data + from, *beside = s.h ? s.h + from : line;
    T most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = line[i] > most ? line[i] : most;
    const T unit = most > 0 ? most : T(1);
    double total = 0, terms = 0;
#pragma omp simd reduction(+ : total, terms)
    for (int64_t i = 0; i < n; i++) {
        const T v = line[i] / unit;
        terms += kind.term(v, Kind::has_h ? beside[i] : T(0));
        total += v;
    }
    return reduced(s, kind, batch * s.z.rows + row, unit, total, terms);
}

template <class T, class Kind> int reduce_by(const SumAlong<T> &s, Kind kind, int threads) {
    const int64_t each = s.along_columns ? s.z.columns : s.z.rows, all = s.z.batch * each;
    return share_flags(all, s.z.batch * s.z.rows * s.z.columns, threads, [&](int64_t begin, int64_t end) {
        int found = 0;
        for (int64_t at = begin; at < end;) {
            const int64_t batch = at / each, first = at % each, some = s.along_columns ? std::min(each - first, end - at) : 1;
            found |= s.along_columns ? columns_of(s, kind, batch, first, first + some) : row_of(s, kind, batch, first);
            at += some;
        }
        return found;
    });
}

// Sums of a row's terms: all of them, and those beside the largest.
template <class T> struct Beside {
    T unit, total = 0, terms = 0;     // all, in units of the largest
    int64_t largest;
    T of_largest, of_largest_h;       // the element that the others make
};

// One row. Loops read variables of their own, see `join_some`.
template <class T, class Kind> struct Row {
    Kind kind;
    RankOneKind form;
    int64_t n;
    const T *z, *h, *own, *left, *right;
    T *out, *out_h;
    T *c;  // |left|·z
    Beside<T> all{};

    int run() {
        int found = incoming();
        sums();
        for (int64_t at = 0; at < n; at += BLOCK) found |= block(at, std::min(n, at + BLOCK));
        return found;
    }

    int incoming() {
        if (form == RankOneKind::log_softmax) {
            std::copy_n(z, n, c);
            return 0;
        }
        const T *weight = form == RankOneKind::softmax ? right : left, *g = z;
        T *to = c;
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t i = 0; i < n; i++) {
            to[i] = std::fabs(weight[i]) * g[i];
            found |= flags_of(to[i], g[i], weight[i]);
        }
        return found;
    }

    T most() const {
        const T *from = c;
        T out = 0;
#pragma omp simd reduction(max : out)
        for (int64_t i = 0; i < n; i++) out = from[i] > out ? from[i] : out;
        return out;
    }

    static T scale_of(T most) { return most > 0 ? two_to<T>(-1 - std::ilogb(most)) : T(1); }  // to below 1

    void sums() {
        const T largest = most();
        while (all.largest < n - 1 && c[all.largest] != largest) all.largest++;
        T scale = scale_of(largest), total = 0, terms = 0;
        all.unit = 1 / scale;
        merged(scale, all.total, all.terms);
        const T held = c[all.largest];
        c[all.largest] = 0;
        const T next = most();
        scale = scale_of(next);
        if (next > 0) merged(scale, total, terms);
        kind.element(terms, total, 1 / scale, all.of_largest, all.of_largest_h);
        c[all.largest] = held;
    }

    void merged(T scale, T &total, T &terms) const {
        const T *from = c, *spread = h;
        T sum = 0, mixed = 0;
#pragma omp simd reduction(+ : sum, mixed)
        for (int64_t i = 0; i < n; i++) {
            const T v = from[i] * scale;
            sum += v;
            mixed += kind.term(v, Kind::has_h ? spread[i] : T(0));
        }
        total = sum;
        terms = mixed;
    }

    int block(int64_t begin, int64_t end) {
        const T *g = z;
        int some = 0;
#pragma omp simd reduction(| : some)
        for (int64_t i = begin; i < end; i++) some |= g[i] != 0;
        if (!some) return only_others(begin, end);
        T straight[BLOCK];
        diagonal(begin, end, straight);
        const bool here = begin <= all.largest && all.largest < end;
        const T p_of_largest = here ? right[all.largest] : T(0);  // `out` may lie where `right` does
        int found = merge(begin, end, straight);
        if (here) {
            const int64_t i = all.largest;
            found |= finish(p_of_largest, straight[i - begin], z[i], h ? h[i] : T(0), all.of_largest, all.of_largest_h, out[i],
                            out_h ? out_h[i] : all.of_largest_h);
        }
        return found;
    }

    // Where g is 0 throughout.
    int only_others(int64_t begin, int64_t end) const {
        const T *p = right;
        T *to = out, *to_h = out_h;
        T beside, spread;
        kind.element(all.terms, all.total, all.unit, beside, spread);
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t i = begin; i < end; i++) {
            const T value = std::fabs(p[i]) * beside;
            found |= flags_of(value, p[i], beside);
            to[i] = value;
            if (Kind::has_h) to_h[i] = spread;
        }
        return found;
    }

    // The magnitude of the Jacobian's diagonal.
    void diagonal(int64_t begin, int64_t end, T *straight) const {
        const int64_t some = end - begin;
        const T *p = right + begin, *given = own + (own ? begin : 0);
        if (form == RankOneKind::given)
            for (int64_t i = 0; i < some; i++) straight[i] = std::fabs(given[i]);
        else if (form == RankOneKind::softmax)
            for (int64_t i = 0; i < some; i++) straight[i] = p[i] * (1 - p[i]);
        else
            for (int64_t i = 0; i < some; i++) straight[i] = 1 - p[i];
    }

    // Everywhere but at the largest, of which a difference would leave nothing.
    int merge(int64_t begin, int64_t end, const T *straight) const {
        const T *p = right, *from = c, *g = z, *entropy = h;
        T *to = out, *to_h = out_h;
        const T unit = all.unit, scale = 1 / unit, total = all.total, terms = all.terms;
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t i = begin; i < end; i++) {
            const T own_h = Kind::has_h ? entropy[i] : T(0), v = from[i] * scale, rest = terms - kind.term(v, own_h), left_over = total - v;
            T beside, spread, value, mixed;
            kind.element(rest > 0 ? rest : T(0), left_over > 0 ? left_over : T(0), unit, beside, spread);
            found |= finish(p[i], straight[i - begin], g[i], own_h, beside, spread, value, mixed);
            to[i] = value;
            if (Kind::has_h) to_h[i] = mixed;
        }
        return found;
    }

    // Merges what comes to a scalar straight and from the others.
    inline int finish(T p, T straight, T g, T own_h, T beside, T spread, T &value, T &mixed) const {
        const T direct = straight * g, across = std::fabs(p) * beside;
        kind.join(direct, own_h, across, spread, value, mixed);
        return flags_of(direct, straight, g) | flags_of(across, p, beside);
    }
};

template <class T, class Kind> int one_by(const OneRows<T> &s, Kind kind, int threads) {
    return share_flags(s.rows, s.rows * s.n, threads, [&](int64_t begin, int64_t end) {
        std::vector<T> c(s.n);
        int found = 0;
        for (int64_t row = begin; row < end; row++) {
            const auto at = [&](auto *p) { return p ? p + row * s.n : p; };
            Row<T, Kind> r{kind, RankOneKind(s.kind), s.n, at(s.z), at(s.h), at(s.own), at(s.left), at(s.right), at(s.out), at(s.out_h), c.data()};
            found |= r.run();
        }
        return found;
    });
}

}  // namespace

template <class T> int join(const Join<T> &s, int threads) {
    if (s.h) return join_by(s, Shared<T>{}, threads);
    return with_power(s.squarings, [&](auto squarings) { return join_by(s, Power<T, squarings()>{}, threads); });
}
template <class T> int reduce(const SumAlong<T> &s, int threads) {
    if (s.h) return reduce_by(s, Shared<T>{}, threads);
    return with_power(s.squarings, [&](auto squarings) { return reduce_by(s, Power<T, squarings()>{}, threads); });
}
template <class T> int one_rows(const OneRows<T> &s, int threads) {
    if (s.h) return one_by(s, Shared<T>{}, threads);
    return with_power(s.squarings, [&](auto squarings) { return one_by(s, Power<T, squarings()>{}, threads); });
}

template int join(const Join<float> &, int);
template int join(const Join<double> &, int);
template int reduce(const SumAlong<float> &, int);
template int reduce(const SumAlong<double> &, int);
template int one_rows(const OneRows<float> &, int);
template int one_rows(const OneRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
