// Vectors for the row kernels, on GCC's vector extensions: one register of this object's instruction set.
// Comparisons give masks of integers as wide as the numbers, and those masks select: `m ? a : b`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace gradtrace::GRADTRACE_ISA {

#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

template <class T> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(REGISTER)));
    typedef int32_t I __attribute__((vector_size(REGISTER)));
    typedef int32_t Stored __attribute__((vector_size(REGISTER)));
    typedef int8_t Bytes __attribute__((vector_size(REGISTER / 4)));
    using Int = int32_t;
    static constexpr int32_t SIGN_OFF = 0x7fffffff;
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(REGISTER)));
    typedef int64_t I __attribute__((vector_size(REGISTER)));
    typedef int32_t Stored __attribute__((vector_size(REGISTER / 2)));  // indices in memory are 32 bits
    typedef int8_t Bytes __attribute__((vector_size(REGISTER / 8)));
    using Int = int64_t;
    static constexpr int64_t SIGN_OFF = 0x7fffffffffffffff;
};
template <class T> using Vec = typename Simd<T>::V;
template <class T> using Int = typename Simd<T>::I;  // masks and indices
template <class T> constexpr int LANES = REGISTER / int(sizeof(T));
template <class T> constexpr T INF = std::numeric_limits<T>::infinity();
template <class T> constexpr T TINY = std::numeric_limits<T>::min();  // the smallest normal number

template <class T> inline Vec<T> all(T x) { return x - Vec<T>{}; }
template <class T> inline Int<T> all_int(int64_t x) { return typename Simd<T>::Int(x) - Int<T>{}; }

template <class T> inline Int<T> lane_numbers() {
    Int<T> out;
    for (int l = 0; l < LANES<T>; l++) out[l] = l;
    return out;
}

template <class T> inline Vec<T> load(const T *p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
// The first n lanes, zeros behind.
template <class T> inline Vec<T> load(const T *p, int64_t n) {
    if (n >= LANES<T>) return load(p);
    Vec<T> v{};
    for (int64_t l = 0; l < n; l++) v[l] = p[l];
    return v;
}
template <class T> inline Vec<T> load_strided(const T *p, int64_t stride, int64_t n) {
    if (stride == 1) return load(p, n);
    Vec<T> v{};
    for (int64_t l = 0; l < LANES<T> && l < n; l++) v[l] = p[l * stride];
    return v;
}
template <class T> inline void store(T *p, Vec<T> v) { std::memcpy(p, &v, sizeof v); }
template <class T> inline void store(T *p, Vec<T> v, int64_t n) {
    if (n >= LANES<T>) return store(p, v);
    for (int64_t l = 0; l < n; l++) p[l] = v[l];
}
template <class T> inline Int<T> load_index(const int32_t *p, int64_t n = LANES<T>) {
    typename Simd<T>::Stored s{};
    if (n >= LANES<T>)
        std::memcpy(&s, p, sizeof s);
    else
        for (int64_t l = 0; l < n; l++) s[l] = p[l];
    return __builtin_convertvector(s, Int<T>);
}
template <class T> inline void store_index(int32_t *p, Int<T> v, int64_t n = LANES<T>) {
    auto s = __builtin_convertvector(v, typename Simd<T>::Stored);
    if (n >= LANES<T>)
        std::memcpy(p, &s, sizeof s);
    else
        for (int64_t l = 0; l < n; l++) p[l] = s[l];
}

template <class T> inline Int<T> load_bytes(const uint8_t *p, int64_t n) {
    typename Simd<T>::Bytes b{};
    if (n >= LANES<T>)
        std::memcpy(&b, p, sizeof b);
    else
        for (int64_t l = 0; l < n; l++) b[l] = int8_t(p[l]);
    return __builtin_convertvector(b, Int<T>);
}

template <class T> inline Vec<T> magnitude(Vec<T> v) { return (Vec<T>)((Int<T>)v & Simd<T>::SIGN_OFF); }
// 1 - a·a with one rounding.
template <class T> inline Vec<T> one_minus_square(Vec<T> a) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_fnmadd_ps((__m512)a, (__m512)a, _mm512_set1_ps(1));
    else
        return (Vec<T>)_mm512_fnmadd_pd((__m512d)a, (__m512d)a, _mm512_set1_pd(1));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm256_fnmadd_ps((__m256)a, (__m256)a, _mm256_set1_ps(1));
    else
        return (Vec<T>)_mm256_fnmadd_pd((__m256d)a, (__m256d)a, _mm256_set1_pd(1));
#else
    for (int l = 0; l < LANES<T>; l++) a[l] = std::fma(-a[l], a[l], T(1));
    return a;
#endif
}
template <class V> inline V larger(V a, V b) { return a > b ? a : b; }   // b where a is NaN
template <class V> inline V smaller(V a, V b) { return a < b ? a : b; }  // b where a is NaN
// What exp(x) = 2^n · exp(r), |r| ≤ ln(2)/2, is worked out with.
template <class T> struct Exponential;
template <> struct Exponential<float> {
    using Bits = int32_t;
    static constexpr int TERMS = 7, BIAS = 127, FRACTION = 23;
    static constexpr float LEAST = -105, MOST = 89;          // 0 and infinity are reached before
    static constexpr float HIGH = 0.693359375f, LOW = -2.12194440e-4f;  // ln 2; n·HIGH is exact
};
template <> struct Exponential<double> {
    using Bits = int64_t;
    static constexpr int TERMS = 13, BIAS = 1023, FRACTION = 52;
    static constexpr double LEAST = -746, MOST = 710;
    static constexpr double HIGH = 6.93145751953125e-1, LOW = 1.42860682030941723212e-6;
};
// exp(x), within 2 units in the last place: Taylor's series.
template <class T> inline Vec<T> exponential(Vec<T> x) {
    using E = Exponential<T>;
    const Vec<T> inside = smaller(larger(x, all(E::LEAST)), all(E::MOST));
    const Vec<T> round = all(T(3) * T(typename E::Bits(1) << (E::FRACTION - 1)));  // nothing behind the point is left
    Vec<T> n = inside * T(1.4426950408889634) + round;
    n = n - round;
    const Vec<T> r = (inside - n * E::HIGH) - n * E::LOW;
    double factor = 1;
    for (int k = 2; k <= E::TERMS; k++) factor /= k;
    Vec<T> sum = all(T(factor));
    for (int k = E::TERMS; k > 0; k--) sum = sum * r + T(factor *= k);
    const Int<T> whole = __builtin_convertvector(n, Int<T>), half = whole >> 1;
    const auto power = [](Int<T> k) { return (Vec<T>)((k + E::BIAS) << E::FRACTION); };
    return x != x ? x : sum * power(half) * power(whole - half);  // in two steps: 2^n may be out of range
}

// Zero where a product was zero times infinity.
template <class V> inline V present(V product) { return larger(product, V{}); }

template <class I> inline bool any(I mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int64_t parts[sizeof mask / 8], found = 0;
    std::memcpy(parts, &mask, sizeof mask);
    for (int64_t part : parts) found |= part;
    return found != 0;
#endif
}
// A bit for each lane that is set.
template <class T> inline uint32_t lane_bits(Int<T> mask) {
#if defined(__AVX512F__)
    if (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)mask);
    return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
    if (sizeof(T) == 4) return uint32_t(_mm256_movemask_ps((__m256)mask));
    return uint32_t(_mm256_movemask_pd((__m256d)mask));
#else
    uint32_t bits = 0;
    for (int l = 0; l < LANES<T>; l++) bits |= uint32_t(mask[l] & 1) << l;
    return bits;
#endif
}
// The first lane that is set; only called where one is.
template <class T> inline int first(Int<T> mask) { return __builtin_ctz(lane_bits<T>(mask)); }

template <int by, class V, size_t... lane> inline V rotated(V v, std::index_sequence<lane...>) {
    return __builtin_shufflevector(v, v, ((lane + by) % sizeof...(lane))...);
}
// Applies f to halves, quarters, … until one number is left.
template <class T, class F, int by = LANES<T> / 2> inline T folded(Vec<T> v, F f) {
    v = f(rotated<by>(v, std::make_index_sequence<LANES<T>>{}), v);
    if constexpr (by > 1)
        return folded<T, F, by / 2>(v, f);
    else
        return v[0];
}
template <class T> inline T highest(Vec<T> v) {
    return folded<T>(v, [](Vec<T> a, Vec<T> b) { return larger(a, b); });
}
template <class T> inline T lowest(Vec<T> v) {
    return folded<T>(v, [](Vec<T> a, Vec<T> b) { return smaller(a, b); });
}

}  // namespace gradtrace::GRADTRACE_ISA
