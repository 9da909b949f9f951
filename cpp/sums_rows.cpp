// Sums along rows whose scalars are all connected by a Jacobian of rank one (softmax), and merges of two arrays.
#include <vector>

#include "rows.hpp"
#include "sums_simd.hpp"

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
    int found = 0, some1 = 0, some2 = 0;
#pragma omp simd reduction(| : some1, some2)
    for (int64_t i = begin; i < end; i++) some1 |= s.z1[i] != 0, some2 |= s.z2[i] != 0;
    if (!some1 || !some2) {
        const T *z = some2 ? s.z2 : s.z1, *h = some2 ? s.h2 : s.h1;
        if (z != s.z) std::copy(z + begin, z + end, s.z + begin);
        if (Kind::has_h && h != s.h) std::copy(h + begin, h + end, s.h + begin);
        return 0;
    }
#pragma omp simd reduction(| : found)
    for (int64_t i = begin; i < end; i++) {
        T z, h;
        kind.join(s.z1[i], Kind::has_h ? s.h1[i] : T(0), s.z2[i], Kind::has_h ? s.h2[i] : T(0), z, h);
        found |= z < INF<T> ? 0 : UNBOUNDED;
        s.z[i] = z;
        if (Kind::has_h) s.h[i] = h;
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

// Sums of a row's terms: all of them, and those beside the largest.
template <class T> struct Beside {
    T unit, total = 0, terms = 0;     // all, in units of the largest
    int64_t largest;
    T of_largest, of_largest_h;       // the element that the others make
};

template <class T, class Kind> class Row {
  public:
    Row(const OneRows<T> &s, Kind kind, int64_t row, T *c)
        : s(s), kind(kind), n(s.n), z(s.z + row * n), h(Kind::has_h ? s.h + row * n : nullptr),
          own(s.own ? s.own + row * n : nullptr), left(s.left ? s.left + row * n : nullptr),
          right(s.right + row * n), out(s.out + row * n), out_h(Kind::has_h ? s.out_h + row * n : nullptr), c(c) {}

    int run() {
        int found = incoming();
        sums();
        for (int64_t at = 0; at < n; at += BLOCK) found |= block(at, std::min(n, at + BLOCK));
        return found;
    }

  private:
    const OneRows<T> &s;
    Kind kind;
    int64_t n;
    const T *z, *h, *own, *left, *right;
    T *out, *out_h;
    T *c;  // |left|·z
    Beside<T> all;

    T h_at(int64_t i) const { return Kind::has_h ? h[i] : T(0); }

    int incoming() {
        int found = 0;
        if (s.kind == int(RankOneKind::log_softmax)) {
            std::copy_n(z, n, c);
            return 0;
        }
        const T *weight = s.kind == int(RankOneKind::softmax) ? right : left;
#pragma omp simd reduction(| : found)
        for (int64_t i = 0; i < n; i++) {
            c[i] = std::fabs(weight[i]) * z[i];
            found |= flags_of(c[i], z[i], weight[i]);
        }
        return found;
    }

    static T scale_of(T most) { return most > 0 ? two_to<T>(-1 - std::ilogb(most)) : T(1); }  // to below 1

    void sums() {
        T most = 0, next = 0;
        all.largest = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < n; i++) most = c[i] > most ? c[i] : most;
        while (all.largest < n - 1 && c[all.largest] != most) all.largest++;
        const T held = c[all.largest];
        T scale = scale_of(most);
        all.unit = 1 / scale;
        merged(scale, all.total, all.terms);
        c[all.largest] = 0;
#pragma omp simd reduction(max : next)
        for (int64_t i = 0; i < n; i++) next = c[i] > next ? c[i] : next;
        T total = 0, terms = 0;
        scale = scale_of(next);
        if (next > 0) merged(scale, total, terms);
        kind.element(terms, total, 1 / scale, all.of_largest, all.of_largest_h);
        c[all.largest] = held;
    }

    void merged(T scale, T &total, T &terms) const {
        T sum = 0, mixed = 0;
#pragma omp simd reduction(+ : sum, mixed)
        for (int64_t i = 0; i < n; i++) {
            const T v = c[i] * scale;
            sum += v;
            mixed += kind.term(v, h_at(i));
        }
        total = sum;
        terms = mixed;
    }

    int block(int64_t begin, int64_t end) {
        int some = 0, found = 0;
#pragma omp simd reduction(| : some)
        for (int64_t i = begin; i < end; i++) some |= z[i] != 0;
        if (!some) {
            T beside, spread;
            kind.element(all.terms, all.total, all.unit, beside, spread);
#pragma omp simd reduction(| : found)
            for (int64_t i = begin; i < end; i++) {
                const T value = std::fabs(right[i]) * beside;
                found |= flags_of(value, right[i], beside);
                out[i] = value;
                if (Kind::has_h) out_h[i] = spread;
            }
            return found;
        }
        T straight[BLOCK];
        diagonal(begin, end, straight);
        const T scale = 1 / all.unit;
        const bool here = begin <= all.largest && all.largest < end;
        const T p_of_largest = here ? std::fabs(right[all.largest]) : T(0);  // `out` may lie where `right` does
#pragma omp simd reduction(| : found)
        for (int64_t i = begin; i < end; i++) {
            const T v = c[i] * scale, rest = all.terms - kind.term(v, h_at(i)), left_over = all.total - v;
            T beside, spread;
            kind.element(rest > 0 ? rest : T(0), left_over > 0 ? left_over : T(0), all.unit, beside, spread);
            found |= finish(i, std::fabs(right[i]), straight[i - begin], beside, spread);
        }
        if (here)
            found |= finish(all.largest, p_of_largest, straight[all.largest - begin], all.of_largest, all.of_largest_h);
        return found;
    }

    // The magnitude of the Jacobian's diagonal.
    void diagonal(int64_t begin, int64_t end, T *straight) const {
        const int64_t some = end - begin;
        const T *p = right + begin;
        if (s.kind == int(RankOneKind::given))
            for (int64_t i = 0; i < some; i++) straight[i] = std::fabs(own[begin + i]);
        else if (s.kind == int(RankOneKind::softmax))
            for (int64_t i = 0; i < some; i++) straight[i] = p[i] * (1 - p[i]);
        else
            for (int64_t i = 0; i < some; i++) straight[i] = 1 - p[i];
    }

    // Merges what comes to i straight and from the others.
    inline int finish(int64_t i, T p, T straight, T beside, T spread) {
        const T direct = straight * z[i], across = p * beside;
        T value, mixed;
        kind.join(direct, h_at(i), across, spread, value, mixed);
        out[i] = value;
        if (Kind::has_h) out_h[i] = mixed;
        return flags_of(direct, straight, z[i]) | flags_of(across, p, beside);
    }
};

template <class T, class Kind> int one_by(const OneRows<T> &s, Kind kind, int threads) {
    return share_flags(s.rows, s.rows * s.n, threads, [&](int64_t begin, int64_t end) {
        std::vector<T> c(s.n);
        int found = 0;
        for (int64_t row = begin; row < end; row++) found |= Row<T, Kind>(s, kind, row, c.data()).run();
        return found;
    });
}

}  // namespace

template <class T> int join(const Join<T> &s, int threads) {
    if (s.h) return join_by(s, Shared<T>{}, threads);
    return with_power(s.squarings, [&](auto squarings) { return join_by(s, Power<T, squarings()>{}, threads); });
}
template <class T> int one_rows(const OneRows<T> &s, int threads) {
    if (s.h) return one_by(s, Shared<T>{}, threads);
    return with_power(s.squarings, [&](auto squarings) { return one_by(s, Power<T, squarings()>{}, threads); });
}

template int join(const Join<float> &, int);
template int join(const Join<double> &, int);
template int one_rows(const OneRows<float> &, int);
template int one_rows(const OneRows<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
