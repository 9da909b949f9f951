#include "product.hpp"

#include <cmath>
#include <limits>

namespace gradtrace {

struct Prepared {};

namespace GRADTRACE_ISA {
namespace {

template <class T> Summary reference(const Product<T> &p) {
    Summary out{0, std::numeric_limits<double>::infinity(), 0};
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t j = 0; j < p.n; j++) {
                const T *a = p.a.data + b * p.a.batch_stride + i * p.a.row_stride;
                const T *w = p.w.data + b * p.w.batch_stride + j * p.w.row_stride;
                T best = 0;
                int32_t arg = -1;
                bool edge = false;
                for (int64_t k = 0; k < p.k; k++) {
                    const T x = a[k * p.a.k_stride], y = w[k * p.w.k_stride] < 0 ? -w[k * p.w.k_stride] : w[k * p.w.k_stride];
                    if (x != x || y != y) out.flags |= NAN_SEEN;
                    if (x == 0 || y == 0) continue;
                    edge = true;
                    if (x * y > best) best = x * y, arg = static_cast<int32_t>(k);
                }
                if (edge && best < std::numeric_limits<T>::min()) out.flags |= LOST;
                if (best > out.max) out.max = best;
                if (best > 0 && best < out.min) out.min = best;
                const int64_t at = (b * p.m + i) * p.n + j;
                p.out[at] = best;
                if (p.arg) p.arg[at] = arg;
            }
    return out;
}

template <class T> Summary product(const Product<T> &p, const Prepared *, int, Variant) { return reference(p); }

template <class T> Prepared *prepare(int64_t, int64_t, int64_t, const Operand<T> &) { return new Prepared; }

void release(Prepared *prepared) { delete prepared; }

}  // namespace

template <class T> Summary max_product(const Product<T> &p) { return product(p, nullptr, 1, Variant::automatic); }
template Summary max_product(const Product<float> &);
template Summary max_product(const Product<double> &);

extern const ProductTable product_table = {product<float>, product<double>, prepare<float>, prepare<double>, release};

}  // namespace GRADTRACE_ISA
}  // namespace gradtrace
