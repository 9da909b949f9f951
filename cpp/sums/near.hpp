// Shares of edges |a_i + b_i t| into many t, without a logarithm for each pair.
//
// Over a short interval of t around m, what is not near its zero is c (1 + ρ), c = a + b m, |ρ| ≤ REACH. Of these,
// z (h - log2 z) = |c| (1 + ρ) (h - log2 |c|) - |c| (1 + ρ) log2(1 + ρ), and (1 + ρ) ln(1 + ρ) is ρ and the series
// Σ (-1)^k ρ^k / (k (k - 1)) from k = 2: in powers of t - m, of which sums over i are found once for all t there. Beyond
// TERMS it is at most REACH^(TERMS+1) / (TERMS (TERMS + 1) (1 - REACH)) of |c|: 2e-8 in single, 1e-15 in double precision.
// The others are met one by one.
#pragma once

#include <vector>

#include "sums/simd.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

template <class T> constexpr T REACH = T(0.25);
template <class T> constexpr int TERMS = sizeof(T) == 4 ? 9 : 20;

// Places in the order of their t, roughly.
template <class T> std::vector<int32_t> ordered(const T *t, int64_t n) {
    constexpr int BUCKETS = 512;
    std::vector<int32_t> order(n), bucket(n);
    T least = t[0], most = t[0];
    for (int64_t i = 1; i < n; i++) least = std::min(least, t[i]), most = std::max(most, t[i]);
    const T scale = most > least ? BUCKETS / (most - least) : T(0);
    int32_t begin[BUCKETS + 1] = {};
    for (int64_t i = 0; i < n; i++) {
        const T at = (t[i] - least) * scale;
        begin[1 + (bucket[i] = at >= 0 && at < BUCKETS ? int32_t(at) : BUCKETS - 1)]++;
    }
    for (int x = 0; x < BUCKETS; x++) begin[x + 1] += begin[x];
    for (int64_t i = 0; i < n; i++) order[begin[bucket[i]]++] = int32_t(i);
    return order;
}

// Sums over the far ones of n edges, as polynomials in (t - middle) / half.
template <class T> struct Far {
    T middle = 0, half = 0;
    T power[TERMS<T> + 1] = {};  // Σ |c| σ^k, σ being ρ where t is `half` away
    T series[TERMS<T> + 1] = {};  // of (1 + ρ) ln(1 + ρ)
    T straight = 0, sloped = 0;  // Σ |c| (h - log2 |c|), Σ |c| σ (h - log2 |c|)

    // Finds the sums, and which are near; those from `skip` to `end` are neither.
    void find(const T *a, const T *b, const T *h, int64_t n, int64_t skip, int64_t end, std::vector<T> &room, std::vector<int32_t> &near) {
        constexpr int64_t STEP = 2 * LANES<T>;
        const int64_t whole = (n + STEP - 1) / STEP * STEP;
        room.assign(2 * whole, T(0));
        near.resize(size_t(whole));
        straight = sloped = 0;
        T *size = room.data(), *sigma = size + whole;
        part(a, b, h, 0, skip, size, sigma);
        part(a, b, h, end, n, size, sigma);
        size_t count = 0;
        for (int64_t i = 0; i < whole; i += LANES<T>) {  // in the order of t the near ones are side by side
            if (!any(load(sigma + i) > all(T(1)))) continue;
            for (int64_t l = i; l < i + LANES<T>; l++) {
                near[count] = int32_t(l);
                count += sigma[l] > 1;
            }
        }
        near.resize(count);
        Vec<T> sums[TERMS<T> + 1] = {};  // of all powers in one go, in registers: what is near has a size of 0
        for (int64_t i = 0; i < whole; i += STEP) {
            Vec<T> one = load(size + i), other = load(size + i + LANES<T>);
            const Vec<T> by_one = load(sigma + i), by_other = load(sigma + i + LANES<T>);
#pragma GCC unroll 32
            for (int k = 0; k <= TERMS<T>; k++) {
                sums[k] += one + other;
                one *= by_one, other *= by_other;
            }
        }
        for (int k = 0; k <= TERMS<T>; k++) {
            power[k] = 0;
            for (int l = 0; l < LANES<T>; l++) power[k] += sums[k][l];
        }
        for (int k = 2; k <= TERMS<T>; k++) series[k] = (k % 2 ? -1 : 1) * power[k] / T(k * (k - 1));
        series[1] = power[1];
    }

    // Those from `begin` to `end`: |c| and σ, or 0 and 2 where i is near.
    void part(const T *a, const T *b, const T *h, int64_t begin, int64_t end, T *size, T *sigma) {
        const T m = middle, d = half;
        T plain = 0, slope = 0;
#pragma omp simd reduction(+ : plain, slope)
        for (int64_t i = begin; i < end; i++) {
            const T c = a[i] + b[i] * m, s = b[i] * d, x = std::fabs(c);
            const bool far = std::fabs(s) <= REACH<T> * x;
            const T kept = far ? x : T(0), ratio = far ? s / (x > 0 ? c : T(1)) : T(0);
            const T spread = surprise(kept, h[i]);
            size[i] = kept, sigma[i] = far ? ratio : T(2);
            plain += spread;
            slope += spread * ratio;
        }
        straight += plain, sloped += slope;
    }

    // Adds z and z (h - log2 z) of them all at t.
    void add(T t, T &total, T &mixed) const {
        constexpr T LN2 = T(0.69314718055994530942);
        const T v = half > 0 ? (t - middle) / half : T(0);
        T sum = 0;
        for (int k = TERMS<T>; k >= 1; k--) sum = (sum + series[k]) * v;
        total += power[0] + v * power[1];
        mixed += straight + v * sloped - sum / LN2;
    }
};

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
