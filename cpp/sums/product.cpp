// What goes on around a matrix product of powers, or of shares and their logarithms.
#include <type_traits>
#include <vector>

#include "sums/simd.hpp"

namespace gradtrace::GRADTRACE_ISA {

template <class T> void unit(const Units<T> &s, T most, int64_t at) {
    constexpr int reach = Bits<T>::bias - 2;  // of powers of two that are normal numbers
    int e = 0;
    if (most < INF<T>) std::frexp(most, &e);
    e = std::min(std::max(e, s.room - reach), s.room + reach);
    s.scale[at] = two_to<T>(s.room - e);
    s.exponent[at] = most == 0 ? NOTHING : e - s.room;
}

template <class T> int units(const Units<T> &s, int threads) {
    const auto &x = s.x;
    if (!s.of_columns)
        return share_flags(x.batch * x.rows, x.batch * x.rows * x.columns, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row++) {
                const T *from = x.data + row / x.rows * x.batch_stride + row % x.rows * x.row_stride;
                T most = 0;
#pragma omp simd reduction(max : most)
                for (int64_t c = 0; c < x.columns; c++) most = std::fabs(from[c]) > most ? std::fabs(from[c]) : most;
                unit(s, most, row);
            }
            return 0;
        });
    constexpr int64_t WIDE = 512;  // columns that stay in the nearest cache
    const int64_t parts = (x.columns + WIDE - 1) / WIDE;
    return share_flags(x.batch * parts, x.batch * x.rows * x.columns, threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++) {
            const int64_t b = part / parts, first = part % parts * WIDE, n = std::min(WIDE, x.columns - first);
            T out[WIDE] = {};
            for (int64_t row = 0; row < x.rows; row++) {
                const T *from = x.data + b * x.batch_stride + row * x.row_stride + first;
#pragma omp simd
                for (int64_t c = 0; c < n; c++) out[c] = std::fabs(from[c]) > out[c] ? std::fabs(from[c]) : out[c];
            }
            for (int64_t c = 0; c < n; c++) unit(s, out[c], b * x.columns + first + c);
        }
        return 0;
    });
}

// Calls f(a row's place in x, its place in a contiguous array, its number in its batch entry, the batch entry).
template <class T, class F> int each_row(const Matrices<T> &x, int threads, F f) {
    return share_flags(x.batch * x.rows, x.batch * x.rows * x.columns, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++)
            f(row / x.rows * x.batch_stride + row % x.rows * x.row_stride, row * x.columns, row, row / x.rows);
        return 0;
    });
}

template <class T, class U, int squarings> int raise_by(const Raise<T, U> &s, int threads) {
    return each_row(s.x, threads, [&](int64_t at, int64_t to, int64_t row, int64_t b) {
        const T *from = s.x.data + at;
        U *out = s.out + to;
        if (s.by_column) {
            const T *scale = s.scale + b * s.x.columns;
#pragma omp simd
            for (int64_t c = 0; c < s.x.columns; c++) out[c] = raised<squarings>(U(std::fabs(from[c]) * scale[c]));
        } else {
            const T scale = s.scale[row];
#pragma omp simd
            for (int64_t c = 0; c < s.x.columns; c++) out[c] = raised<squarings>(U(std::fabs(from[c]) * scale));
        }
    });
}

template <class T, class U> int raise(const Raise<T, U> &s, int threads) {
    return with_power(s.squarings, [&](auto squarings) { return raise_by<T, U, squarings()>(s, threads); });
}

template <class T, class U> int shares(const Shares<T, U> &s, int threads) {
    return each_row(s.x, threads, [&](int64_t at, int64_t to, int64_t row, int64_t b) {
        const T *from = s.x.data + at, *h = s.h ? s.h + at : nullptr;
        const T *scale = s.by_column ? s.scale + b * s.x.columns : s.scale + row;
        const int64_t step = s.by_column;
        U *out = s.out + to, *out_h = s.out_h + to;
#pragma omp simd
        for (int64_t c = 0; c < s.x.columns; c++) out[c] = U(std::fabs(from[c]) * scale[c * step]);
        if (h)
#pragma omp simd
            for (int64_t c = 0; c < s.x.columns; c++) out_h[c] = surprise(out[c], U(h[c]));
        else
#pragma omp simd
            for (int64_t c = 0; c < s.x.columns; c++) out_h[c] = surprise(out[c], U(0));
    });
}

// What results of each column have to be above: where there are edges, sums that underflow cannot have changed, and
// normal numbers.
template <class T, class U> struct Limits {
    std::vector<U> sum;
    std::vector<T> result;

    Limits(const int32_t *of_column, int64_t columns, double least) : sum(columns), result(columns) {
        for (int64_t c = 0; c < columns; c++) {
            const bool some = of_column[c] > NOTHING / 2;
            sum[c] = some ? U(least) : U(-1);
            result[c] = some ? TINY<T> : T(-1);
        }
    }
};

// Calls f(the place of a row, its exponent, its columns' exponents, their limits) for every row that isn't zero.
template <class T, class S, class F, class Z> int each_settled(const S &s, int threads, Z zero, F f) {
    const int64_t rows = s.batch * s.rows;
    return share_flags(rows, rows * s.columns, threads, [&](int64_t begin, int64_t end) {
        int seen = 0;
        for (int64_t b = begin / s.rows; b * s.rows < end; b++) {
            const int32_t *of_column = s.of_column + b * s.columns;
            const Limits<T, std::decay_t<decltype(*s.total)>> limits(of_column, s.columns, s.least);
            for (int64_t row = std::max(begin, b * s.rows); row < std::min(end, (b + 1) * s.rows); row++)
                if (s.of_row[row] > NOTHING / 2)
                    seen |= f(row * s.columns, s.of_row[row], of_column, limits.sum.data(), limits.result.data());
                else
                    zero(row * s.columns);
        }
        return seen;
    });
}

template <class T, class U, int squarings> int settle_by(const Settle<T, U> &s, int threads) {
    const auto zero = [&](int64_t at) { std::fill_n(s.out + at, s.columns, T(0)); };
    return each_settled<T>(s, threads, zero, [&](int64_t at, int32_t of_row, const int32_t *of_column, const U *sum, const T *least) {
        const U *total = s.total + at;
        T *out = s.out + at;
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t c = 0; c < s.columns; c++) {
            const T value = scaled(T(rooted<squarings>(total[c])), of_row + of_column[c]);
            const bool doubtful = total[c] <= sum[c];
            found |= doubtful ? AGAIN : value < least[c] ? LOST : value < INF<T> ? 0 : UNBOUNDED;
            out[c] = doubtful ? T(-1) : value;
        }
        return found;
    });
}

template <class T, class U> int settle(const Settle<T, U> &s, int threads) {
    return with_power(s.squarings, [&](auto squarings) { return settle_by<T, U, squarings()>(s, threads); });
}

template <class T, class U> int settle_shares(const SettleShares<T, U> &s, int threads) {
    const auto zero = [&](int64_t at) { std::fill_n(s.z + at, s.columns, T(0)), std::fill_n(s.h + at, s.columns, T(0)); };
    return each_settled<T>(s, threads, zero, [&](int64_t at, int32_t of_row, const int32_t *of_column, const U *sum, const T *least) {
        const U *total = s.total + at, *mixed = s.mixed + at;
        T *z = s.z + at, *h = s.h + at;
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t c = 0; c < s.columns; c++) {
            const T value = scaled(T(total[c]), of_row + of_column[c]);
            const bool doubtful = total[c] <= sum[c];
            const U safe = total[c] > 0 ? total[c] : U(1);
            const U spread = mixed[c] / safe + log2_of(safe);
            found |= doubtful ? AGAIN : value < least[c] ? LOST : value < INF<T> ? 0 : UNBOUNDED;
            z[c] = doubtful ? T(-1) : value;
            h[c] = spread > 0 ? T(spread) : T(0);
        }
        return found;
    });
}

template int units(const Units<float> &, int);
template int units(const Units<double> &, int);
template int raise(const Raise<float, float> &, int);
template int raise(const Raise<double, float> &, int);
template int raise(const Raise<double, double> &, int);
template int settle(const Settle<float, float> &, int);
template int settle(const Settle<double, float> &, int);
template int settle(const Settle<double, double> &, int);
template int shares(const Shares<float, float> &, int);
template int shares(const Shares<double, float> &, int);
template int shares(const Shares<double, double> &, int);
template int settle_shares(const SettleShares<float, float> &, int);
template int settle_shares(const SettleShares<double, float> &, int);
template int settle_shares(const SettleShares<double, double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
