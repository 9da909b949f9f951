// Python's view of the (max, ×) product.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "product/product.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

std::atomic<Variant> forced{Variant::automatic};

// Owns what `prepare` gave, and remembers for which instruction set, type and sizes.
struct PreparedWeight {
    const ProductTable *table;
    Prepared *packed;
    bool is_double;
    int64_t batch, n, k;

    PreparedWeight(const PreparedWeight &) = delete;
    PreparedWeight(const ProductTable *table, Prepared *packed, bool is_double, int64_t batch, int64_t n, int64_t k)
        : table(table), packed(packed), is_double(is_double), batch(batch), n(n), k(k) {}
    ~PreparedWeight() { delete packed; }
};

template <class T> Operand<T> operand(uintptr_t data, int64_t batch_stride, int64_t row_stride, int64_t k_stride) {
    return {reinterpret_cast<const T *>(data), batch_stride, row_stride, k_stride};
}

std::tuple<double, double, int> max_product(bool is_double, int64_t batch, int64_t m, int64_t n, int64_t k,
                                            uintptr_t a, int64_t a_sb, int64_t a_sm, int64_t a_sk,  //
                                            uintptr_t w, int64_t w_sb, int64_t w_sn, int64_t w_sk,  //
                                            uintptr_t out, uintptr_t arg, const PreparedWeight *prepared, int threads,
                                            bool short_arg) {
    const ProductTable *table = prepared ? prepared->table : &GRADTRACE_PICK(product_table);
    if (prepared && (prepared->is_double != is_double || prepared->batch != batch || prepared->n != n || prepared->k != k))
        throw nb::value_error("prepared for other sizes");
    const Prepared *packed = prepared ? prepared->packed : nullptr;
    const Variant variant = forced.load(std::memory_order_relaxed);
    auto *indices = short_arg ? nullptr : reinterpret_cast<int32_t *>(arg);
    auto *short_indices = short_arg ? reinterpret_cast<int16_t *>(arg) : nullptr;
    Summary s;
    nb::gil_scoped_release unlocked;
    if (is_double)
        s = table->product_double({batch, m, n, k, operand<double>(a, a_sb, a_sm, a_sk), operand<double>(w, w_sb, w_sn, w_sk),
                                   reinterpret_cast<double *>(out), indices, 0, short_indices},
                                  packed, threads, variant);
    else
        s = table->product_float({batch, m, n, k, operand<float>(a, a_sb, a_sm, a_sk), operand<float>(w, w_sb, w_sn, w_sk),
                                  reinterpret_cast<float *>(out), indices, 0, short_indices},
                                 packed, threads, variant);
    return {s.max, s.min, s.flags};
}

PreparedWeight *prepare(bool is_double, int64_t batch, int64_t n, int64_t k, uintptr_t w, int64_t w_sb, int64_t w_sn,
                        int64_t w_sk) {
    const ProductTable *table = &GRADTRACE_PICK(product_table);
    Prepared *packed;
    {
        nb::gil_scoped_release unlocked;
        packed = is_double ? table->prepare_double(batch, n, k, operand<double>(w, w_sb, w_sn, w_sk))
                           : table->prepare_float(batch, n, k, operand<float>(w, w_sb, w_sn, w_sk));
    }
    return new PreparedWeight(table, packed, is_double, batch, n, k);
}

void use_variant(const char *name) {
    const char *names[] = {"automatic", "direct", "pruned", "pruned_typical", "pruned_swapped", "pruned_sorted"};
    std::string known;
    int number = 0;
    for (const char *each : names) {
        if (std::string(each) == name) {
            forced = static_cast<Variant>(number);
            return;
        }
        known += (number++ ? ", " : "") + std::string(each);
    }
    throw nb::value_error(("one of " + known).c_str());
}

}  // namespace

void bind_product(nb::module_ &m);
void bind_product(nb::module_ &m) {
    nb::class_<PreparedWeight>(m, "Prepared", "What many products with one weight share");
    m.def("max_product", &max_product, nb::arg("double_"), nb::arg("batch"), nb::arg("m"), nb::arg("n"), nb::arg("k"),
          nb::arg("a_ptr"), nb::arg("a_sb"), nb::arg("a_sm"), nb::arg("a_sk"),  //
          nb::arg("w_ptr"), nb::arg("w_sb"), nb::arg("w_sn"), nb::arg("w_sk"),  //
          nb::arg("out_ptr"), nb::arg("arg_ptr"), nb::arg("prepared").none(), nb::arg("threads"), nb::arg("short_arg") = false,
          "out[b,i,j] = max_k a[b,i,k]·|w[b,j,k]| and the smallest k that reaches it: (max, min, flags)");
    m.def("prepare", &prepare, nb::arg("double_"), nb::arg("batch"), nb::arg("n"), nb::arg("k"), nb::arg("w_ptr"),
          nb::arg("w_sb"), nb::arg("w_sn"), nb::arg("w_sk"), nb::rv_policy::take_ownership,
          "Pack |w| once for many products; w itself has to live and stay as it is");
    m.def("use_variant", &use_variant, nb::arg("name"), "Force one algorithm, for tests");
}
