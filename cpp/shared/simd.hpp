// Vectors of float and double for the instruction set this file is compiled for.
//
// Simd<T> has `lanes` lanes; `reg` holds numbers, `ind` integers as wide as T, `mask` the outcome of a comparison.
// `larger(p, best)` gives p where p > best and best elsewhere, also where p is a NaN: zero times infinity loses.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef GRADTRACE_ISA
#error "compile this file once per instruction set, with -DGRADTRACE_ISA=<namespace>"
#endif
#if defined(GRADTRACE_ISA_v3) || defined(GRADTRACE_ISA_v4)
#include <immintrin.h>
#endif

namespace gradtrace::GRADTRACE_ISA {

template <class T> struct Simd;

#if defined(GRADTRACE_ISA_v4)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

// Keeps a value in a register. Without it gcc repeats a broadcast from a general register for every blend.
template <class Reg> inline Reg settled(Reg x) {
#if defined(GRADTRACE_ISA_v3) || defined(GRADTRACE_ISA_v4)
    __asm__("" : "+v"(x));
#endif
    return x;
}

#if defined(GRADTRACE_ISA_v4)

template <> struct Simd<float> {
    static constexpr int lanes = 16;
    using reg = __m512;
    using ind = __m512i;
    using mask = __mmask16;
    static reg zero() { return _mm512_setzero_ps(); }
    static reg set(float x) { return _mm512_set1_ps(x); }
    static reg load(const float *p) { return _mm512_loadu_ps(p); }
    static reg load_part(const float *p, int count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
    static void store(float *p, reg x) { _mm512_storeu_ps(p, x); }
    static reg abs(reg x) { return _mm512_abs_ps(x); }
    static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
    static reg larger(reg p, reg best) { return _mm512_max_ps(p, best); }
    static reg smaller(reg a, reg b) { return _mm512_min_ps(a, b); }
    static mask greater(reg a, reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    static mask at_least(reg a, reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
    static mask equal(reg a, reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static reg blend(mask m, reg yes, reg no) { return _mm512_mask_blend_ps(m, no, yes); }
    static ind blend(mask m, ind yes, ind no) { return _mm512_mask_blend_epi32(m, no, yes); }
    static uint32_t bits(mask m) { return m; }
    static ind set_index(int32_t k) { return _mm512_set1_epi32(k); }
    static ind load_index(const int32_t *p) { return _mm512_loadu_si512(p); }
    static void store_index(int32_t *p, ind x) { _mm512_storeu_si512(p, x); }
    static float max_of(reg x) { return _mm512_reduce_max_ps(x); }
    static float min_of(reg x) { return _mm512_reduce_min_ps(x); }
    static float sum_of(reg x) { return _mm512_reduce_add_ps(x); }
    // at, but index where m. In place: gcc's own choice takes a copy for each.
    static ind update(ind at, mask m, ind index) {
        __asm__("vmovdqa32 %2, %0%{%1%}" : "+v"(at) : "Yk"(m), "v"(index));
        return at;
    }
    // Writes first + lane for every lane of m, and something behind them, `lanes` entries in all. Gives how many count.
    static int compress(mask m, int32_t first, uint16_t *out) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // the register form and a full store: compressing straight to memory is microcoded on some processors
        const __m512i found = _mm512_maskz_compress_epi32(m, _mm512_add_epi32(lane, _mm512_set1_epi32(first)));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm512_cvtepi32_epi16(found));
        return __builtin_popcount(m);
    }
};

template <> struct Simd<double> {
    static constexpr int lanes = 8;
    using reg = __m512d;
    using ind = __m512i;
    using mask = __mmask8;
    static reg zero() { return _mm512_setzero_pd(); }
    static reg set(double x) { return _mm512_set1_pd(x); }
    static reg load(const double *p) { return _mm512_loadu_pd(p); }
    static reg load_part(const double *p, int count) {
        return _mm512_maskz_loadu_pd(static_cast<mask>((1u << count) - 1), p);
    }
    static void store(double *p, reg x) { _mm512_storeu_pd(p, x); }
    static reg abs(reg x) { return _mm512_abs_pd(x); }
    static reg add(reg a, reg b) { return _mm512_add_pd(a, b); }
    static reg mul(reg a, reg b) { return _mm512_mul_pd(a, b); }
    static reg larger(reg p, reg best) { return _mm512_max_pd(p, best); }
    static reg smaller(reg a, reg b) { return _mm512_min_pd(a, b); }
    static mask greater(reg a, reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
    static mask at_least(reg a, reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
    static mask equal(reg a, reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
    static reg blend(mask m, reg yes, reg no) { return _mm512_mask_blend_pd(m, no, yes); }
    static ind blend(mask m, ind yes, ind no) { return _mm512_mask_blend_epi64(m, no, yes); }
    static uint32_t bits(mask m) { return m; }
    static ind set_index(int32_t k) { return _mm512_set1_epi64(k); }
    static ind load_index(const int32_t *p) {
        return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static void store_index(int32_t *p, ind x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi64_epi32(x));
    }
    static double max_of(reg x) { return _mm512_reduce_max_pd(x); }
    static double min_of(reg x) { return _mm512_reduce_min_pd(x); }
    static double sum_of(reg x) { return _mm512_reduce_add_pd(x); }
    static ind update(ind at, mask m, ind index) {
        __asm__("vmovdqa64 %2, %0%{%1%}" : "+v"(at) : "Yk"(m), "v"(index));
        return at;
    }
    static int compress(mask m, int32_t first, uint16_t *out) {
        const __m256i k = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm256_cvtepi32_epi16(_mm256_maskz_compress_epi32(m, k)));
        return __builtin_popcount(m);
    }
};

#elif defined(GRADTRACE_ISA_v3)

// For each byte, the positions of its bits, packed into eight bytes.
struct BitPositions {
    uint64_t of[256];
    constexpr BitPositions() : of() {
        for (int byte = 0; byte < 256; byte++) {
            uint64_t packed = 0;
            for (int bit = 0, at = 0; bit < 8; bit++)
                if (byte >> bit & 1) packed |= static_cast<uint64_t>(bit) << (8 * at++);
            of[byte] = packed;
        }
    }
};
constexpr BitPositions bit_positions;

template <> struct Simd<float> {
    static constexpr int lanes = 8;
    using reg = __m256;
    using ind = __m256i;
    using mask = __m256;
    static reg zero() { return _mm256_setzero_ps(); }
    static reg set(float x) { return _mm256_set1_ps(x); }
    static reg load(const float *p) { return _mm256_loadu_ps(p); }
    static reg load_part(const float *p, int count) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
    }
    static void store(float *p, reg x) { _mm256_storeu_ps(p, x); }
    static reg abs(reg x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
    static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
    static reg larger(reg p, reg best) { return _mm256_max_ps(p, best); }
    static reg smaller(reg a, reg b) { return _mm256_min_ps(a, b); }
    static mask greater(reg a, reg b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    static mask at_least(reg a, reg b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
    static mask equal(reg a, reg b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    static reg blend(mask m, reg yes, reg no) { return _mm256_blendv_ps(no, yes, m); }
    static ind blend(mask m, ind yes, ind no) { return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m)); }
    static uint32_t bits(mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
    static ind set_index(int32_t k) { return _mm256_set1_epi32(k); }
    static ind load_index(const int32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static void store_index(int32_t *p, ind x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x); }
    static float max_of(reg x) {
        __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_max_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
    }
    static float min_of(reg x) {
        __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_min_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_min_ss(y, _mm_shuffle_ps(y, y, 1)));
    }
    static float sum_of(reg x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
    }
    static ind update(ind at, mask m, ind index) { return blend(m, index, at); }
    static int compress(mask m, int32_t first, uint16_t *out) {
        const uint32_t which = bits(m);
        const __m128i lane = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(bit_positions.of[which])));
        const __m128i found = _mm_add_epi16(lane, _mm_set1_epi16(static_cast<int16_t>(first)));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), found);
        return __builtin_popcount(which);
    }
};

template <> struct Simd<double> {
    static constexpr int lanes = 4;
    using reg = __m256d;
    using ind = __m256i;
    using mask = __m256d;
    static reg zero() { return _mm256_setzero_pd(); }
    static reg set(double x) { return _mm256_set1_pd(x); }
    static reg load(const double *p) { return _mm256_loadu_pd(p); }
    static reg load_part(const double *p, int count) {
        const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
        return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
    }
    static void store(double *p, reg x) { _mm256_storeu_pd(p, x); }
    static reg abs(reg x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
    static reg add(reg a, reg b) { return _mm256_add_pd(a, b); }
    static reg mul(reg a, reg b) { return _mm256_mul_pd(a, b); }
    static reg larger(reg p, reg best) { return _mm256_max_pd(p, best); }
    static reg smaller(reg a, reg b) { return _mm256_min_pd(a, b); }
    static mask greater(reg a, reg b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
    static mask at_least(reg a, reg b) { return _mm256_cmp_pd(a, b, _CMP_GE_OQ); }
    static mask equal(reg a, reg b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
    static reg blend(mask m, reg yes, reg no) { return _mm256_blendv_pd(no, yes, m); }
    static ind blend(mask m, ind yes, ind no) { return _mm256_blendv_epi8(no, yes, _mm256_castpd_si256(m)); }
    static uint32_t bits(mask m) { return static_cast<uint32_t>(_mm256_movemask_pd(m)); }
    static ind set_index(int32_t k) { return _mm256_set1_epi64x(k); }
    static ind load_index(const int32_t *p) {
        return _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static void store_index(int32_t *p, ind x) {
        const __m256i low = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_castsi256_si128(low));
    }
    static double max_of(reg x) {
        const __m128d y = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        return _mm_cvtsd_f64(_mm_max_sd(y, _mm_unpackhi_pd(y, y)));
    }
    static double min_of(reg x) {
        const __m128d y = _mm_min_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        return _mm_cvtsd_f64(_mm_min_sd(y, _mm_unpackhi_pd(y, y)));
    }
    static double sum_of(reg x) {
        const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
    }
    static ind update(ind at, mask m, ind index) { return blend(m, index, at); }
    static int compress(mask m, int32_t first, uint16_t *out) {
        const uint32_t which = bits(m);
        const __m128i lane = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(bit_positions.of[which])));
        const __m128i found = _mm_add_epi16(lane, _mm_set1_epi16(static_cast<int16_t>(first)));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(out), found);
        return __builtin_popcount(which);
    }
};

#else  // portable: 16-byte vectors as GCC and Clang have them on every processor

template <class T> struct Integer;
template <> struct Integer<float> { using type = int32_t; };
template <> struct Integer<double> { using type = int64_t; };

template <class T> struct Simd {
    static constexpr int lanes = 16 / sizeof(T);
    typedef T reg __attribute__((vector_size(16)));
    typedef typename Integer<T>::type ind __attribute__((vector_size(16)));
    typedef ind mask;
    static reg zero() { return reg{}; }
    static reg set(T x) { return x - reg{}; }
    static reg load(const T *p) {
        reg x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static reg load_part(const T *p, int count) {
        reg x{};
        std::memcpy(&x, p, static_cast<size_t>(count) * sizeof(T));
        return x;
    }
    static void store(T *p, reg x) { std::memcpy(p, &x, sizeof x); }
    static reg abs(reg x) { return reinterpret_cast<reg>(reinterpret_cast<ind>(x) & ~reinterpret_cast<ind>(set(T(-0.0)))); }
    static reg add(reg a, reg b) { return a + b; }
    static reg mul(reg a, reg b) { return a * b; }
    static reg larger(reg p, reg best) { return p > best ? p : best; }
    static reg smaller(reg a, reg b) { return a < b ? a : b; }
    static mask greater(reg a, reg b) { return a > b; }
    static mask at_least(reg a, reg b) { return a >= b; }
    static mask equal(reg a, reg b) { return a == b; }
    static reg blend(mask m, reg yes, reg no) { return m ? yes : no; }
    static ind blend(mask m, ind yes, ind no) { return m ? yes : no; }
    static uint32_t bits(mask m) {
        uint32_t out = 0;
        for (int lane = 0; lane < lanes; lane++) out |= static_cast<uint32_t>(m[lane] & 1) << lane;
        return out;
    }
    static ind set_index(int32_t k) { return k + ind{}; }
    static ind load_index(const int32_t *p) {
        ind x;
        for (int lane = 0; lane < lanes; lane++) x[lane] = p[lane];
        return x;
    }
    static void store_index(int32_t *p, ind x) {
        for (int lane = 0; lane < lanes; lane++) p[lane] = static_cast<int32_t>(x[lane]);
    }
    static T max_of(reg x) {
        T out = x[0];
        for (int lane = 1; lane < lanes; lane++) out = x[lane] > out ? x[lane] : out;
        return out;
    }
    static T min_of(reg x) {
        T out = x[0];
        for (int lane = 1; lane < lanes; lane++) out = x[lane] < out ? x[lane] : out;
        return out;
    }
    static T sum_of(reg x) {
        T out = x[0];
        for (int lane = 1; lane < lanes; lane++) out += x[lane];
        return out;
    }
    static ind update(ind at, mask m, ind index) { return m ? index : at; }
    static int compress(mask m, int32_t first, uint16_t *out) {
        int count = 0;
        for (int lane = 0; lane < lanes; lane++) {
            out[count] = static_cast<uint16_t>(first + lane);
            count += static_cast<int>(m[lane] & 1);
        }
        return count;
    }
};

#endif

}  // namespace gradtrace::GRADTRACE_ISA
