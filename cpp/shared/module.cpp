// The Python module gradtrace._native. Each family's bind.cpp adds its functions.
#include "shared/isa.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

void bind_product(nb::module_ &m);
void bind_rows(nb::module_ &m);
void bind_crossing(nb::module_ &m);
void bind_units(nb::module_ &m);
void bind_topk(nb::module_ &m);
void bind_sums(nb::module_ &m);
void bind_signed(nb::module_ &m);

NB_MODULE(_native, m) {
    m.doc() = "Fast CPU kernels of gradtrace: raw pointers and strides in, no checks. Use gradtrace.kernels instead.";
    m.def("instruction_sets", &gradtrace::instruction_sets, "Names of the instruction sets that can run here, best last");
    m.def("instruction_set", &gradtrace::instruction_set, "The one in use");
    m.def(
        "use_instruction_set",
        [](const std::string &name) {
            if (gradtrace::use_instruction_set(name)) return;
            std::string valid;
            for (const std::string &set : gradtrace::instruction_sets()) valid += (valid.empty() ? "" : ", ") + set;
            throw nb::value_error(("one of " + valid).c_str());
        },
        nb::arg("name"), "Use one of `instruction_sets()` from now on");
    bind_product(m);
    bind_rows(m);
    bind_crossing(m);
    bind_units(m);
    bind_topk(m);
    bind_sums(m);
    bind_signed(m);
}
