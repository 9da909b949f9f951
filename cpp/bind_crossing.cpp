// What runs over whole tensors once, outside the reverse pass: sets of components along winners, counts, NaN.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace nb = nanobind;

namespace {

using Pointer = uintptr_t;
constexpr int64_t SERIAL = 1 << 18;  // elements below which waking a thread costs more than it saves

int team(int64_t elements, int threads) {
    return elements < SERIAL ? 1 : threads;
}

// One way from a scalar to the scalar of a result that it won through, and that result's sets.
struct Source {
    const int64_t *bits;  // null: `also` is the whole set
    int64_t size, also, offset, step;
    const int64_t *table;  // null: step times the stored number
    std::vector<int64_t> stride;
};

struct Walk {
    std::vector<int64_t> shape, raw_stride, choice_stride;
    const int32_t *raw;
    const uint8_t *choice;
    const int32_t *wide_choice;
    const int64_t *ordinal, *local;  // by stored number, where several products were put into one
    std::vector<Source> sources;
    int64_t *out;
};

// Writes the sets of `count` scalars from flat position `begin` on to w.out + shift. Coordinates are kept, not divided out.
void walk_part(const Walk &w, int64_t begin, int64_t count, int64_t shift) {
    const int dims = int(w.shape.size());
    std::vector<int64_t> at(size_t(dims), 0);
    for (int64_t rest = begin, d = dims - 1; d >= 0; d--) {
        at[size_t(d)] = rest % w.shape[size_t(d)];
        rest /= w.shape[size_t(d)];
    }
    const int64_t inner = dims ? w.shape[size_t(dims - 1)] : 1;
    std::vector<int64_t> base(w.sources.size());
    for (int64_t done = 0; done < count;) {
        const int64_t first = dims ? at[size_t(dims - 1)] : 0, n = std::min(inner - first, count - done);
        int64_t raw_at = 0, choice_at = 0;
        for (int d = 0; d < dims; d++) {
            raw_at += w.raw ? at[size_t(d)] * w.raw_stride[size_t(d)] : 0;
            choice_at += w.choice || w.wide_choice ? at[size_t(d)] * w.choice_stride[size_t(d)] : 0;
        }
        for (size_t s = 0; s < base.size(); s++) {
            base[s] = w.sources[s].offset;
            for (int d = 0; d < dims; d++) base[s] += at[size_t(d)] * w.sources[s].stride[size_t(d)];
        }
        const int64_t raw_step = w.raw && dims ? w.raw_stride[size_t(dims - 1)] : 0;
        const int64_t choice_step = (w.choice || w.wide_choice) && dims ? w.choice_stride[size_t(dims - 1)] : 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t stored = w.raw ? std::max<int64_t>(w.raw[raw_at + i * raw_step], 0) : 0;
            size_t chosen = 0;
            if (w.ordinal) {
                chosen = size_t(w.ordinal[stored]);
                stored = w.local[stored];
            } else if (w.choice) {
                chosen = w.choice[choice_at + i * choice_step];
            } else if (w.wide_choice) {
                chosen = size_t(w.wide_choice[choice_at + i * choice_step]);
            }
            const Source &s = w.sources[chosen];
            int64_t set = s.also;
            if (s.bits) {
                const int64_t along = dims ? s.stride[size_t(dims - 1)] * i : 0;
                // of a scalar without a path the stored number means nothing
                const int64_t place = base[chosen] + along + (s.table ? s.table[stored] : s.step * stored);
                if (place >= 0 && place < s.size) set |= s.bits[place];
            }
            w.out[shift + done + i] = set;
        }
        done += n;
        for (int d = dims - 2, carry = 1; d >= 0 && carry; d--) {
            carry = ++at[size_t(d)] == w.shape[size_t(d)];
            if (carry) at[size_t(d)] = 0;
        }
        if (dims) at[size_t(dims - 1)] = 0;
    }
}

// Of the scalars begin … end. sources: (bits, their number, also, offset, step, table, stride of each axis).
void inherit(std::vector<int64_t> shape, Pointer raw, std::vector<int64_t> raw_stride, Pointer choice, std::vector<int64_t> choice_stride,
             bool wide_choice, Pointer ordinal, Pointer local, nb::list sources, int64_t begin, int64_t end,
             Pointer out, int threads) {
    Walk w{std::move(shape), std::move(raw_stride), std::move(choice_stride), reinterpret_cast<const int32_t *>(raw),
           wide_choice ? nullptr : reinterpret_cast<const uint8_t *>(choice), wide_choice ? reinterpret_cast<const int32_t *>(choice) : nullptr,
           reinterpret_cast<const int64_t *>(ordinal), reinterpret_cast<const int64_t *>(local), {}, reinterpret_cast<int64_t *>(out)};
    for (nb::handle h : sources) {
        nb::tuple t = nb::cast<nb::tuple>(h);
        w.sources.push_back({reinterpret_cast<const int64_t *>(nb::cast<Pointer>(t[0])), nb::cast<int64_t>(t[1]), nb::cast<int64_t>(t[2]),
                             nb::cast<int64_t>(t[3]), nb::cast<int64_t>(t[4]), reinterpret_cast<const int64_t *>(nb::cast<Pointer>(t[5])),
                             nb::cast<std::vector<int64_t>>(t[6])});
    }
    nb::gil_scoped_release unlocked;
    const int64_t numel = end - begin, block = 16384, blocks = (numel + block - 1) / block;
    [[maybe_unused]] const int crew = team(numel, threads);
#pragma omp parallel for num_threads(crew) schedule(static) if (crew > 1)
    for (int64_t b = 0; b < blocks; b++) walk_part(w, begin + b * block, std::min(block, numel - b * block), b * block);
}

template <class T> std::pair<int64_t, double> measured(const T *data, int64_t n, int threads) {
    int64_t live = 0;
    double sum = 0;
    [[maybe_unused]] const int crew = team(n, threads);
#pragma omp parallel for num_threads(crew) schedule(static) if (crew > 1) reduction(+ : live, sum)
    for (int64_t b = 0; b < (n + 4095) / 4096; b++) {
        double part[8] = {};  // independent sums, so that the loop is wide
        int64_t count = 0;
        const int64_t end = std::min<int64_t>(n, (b + 1) * 4096);
        for (int64_t i = b * 4096; i < end; i++) {
            part[i % 8] += double(data[i]);
            count += data[i] > 0;
        }
        live += count;
        for (double p : part) sum += p;
    }
    return {live, sum};
}

// How many of n weights are above zero, and their sum.
std::pair<int64_t, double> measure(bool is_double, Pointer data, int64_t n, int threads) {
    nb::gil_scoped_release unlocked;
    return is_double ? measured(reinterpret_cast<const double *>(data), n, threads) : measured(reinterpret_cast<const float *>(data), n, threads);
}

template <class T> bool has_nan(const T *data, int64_t n) {
    bool found = false;
    for (int64_t i = 0; i < n; i++) found |= data[i] != data[i];
    return found;
}

// Whether any of several contiguous tensors holds a NaN. All of them are one loop: waking threads for each costs more.
bool any_nan(bool is_double, const std::vector<std::pair<Pointer, int64_t>> &tensors, int threads) {
    nb::gil_scoped_release unlocked;
    constexpr int64_t BLOCK = 16384;
    std::vector<std::pair<Pointer, int64_t>> blocks;
    int64_t total = 0;
    for (const auto &[data, n] : tensors) {
        total += n;
        for (int64_t at = 0; at < n; at += BLOCK)
            blocks.emplace_back(data + Pointer(at) * (is_double ? sizeof(double) : sizeof(float)), std::min(BLOCK, n - at));
    }
    bool found = false;
    [[maybe_unused]] const int crew = team(total, threads);
#pragma omp parallel for num_threads(crew) schedule(static) if (crew > 1) reduction(|| : found)
    for (size_t b = 0; b < blocks.size(); b++) {
        const auto [data, n] = blocks[b];
        found = found || (is_double ? has_nan(reinterpret_cast<const double *>(data), n) : has_nan(reinterpret_cast<const float *>(data), n));
    }
    return found;
}

}  // namespace

void bind_crossing(nb::module_ &m);
void bind_crossing(nb::module_ &m) {
    using nb::arg;
    m.def("inherit", &inherit, arg("shape"), arg("raw_ptr"), arg("raw_stride"), arg("choice_ptr"), arg("choice_stride"), arg("wide_choice"),
          arg("ordinal_ptr"), arg("local_ptr"), arg("sources"), arg("begin"), arg("end"), arg("out_ptr"), arg("threads"), "Sets of components, read through winners");
    m.def("measure", &measure, arg("double_"), arg("data_ptr"), arg("n"), arg("threads"), "(how many are above zero, their sum)");
    m.def("any_nan", &any_nan, arg("double_"), arg("tensors"), arg("threads"), "Whether one of some (pointer, n) holds a NaN");
}
