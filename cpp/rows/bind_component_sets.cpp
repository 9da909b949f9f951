// What runs over whole tensors once, outside the reverse pass: sets of components along winners, counts, NaN.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
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

// One way from a scalar to the scalar of a result that it won through, and that result's sets, in words of `In`.
template <class In> struct Source {
    const In *bits;  // null: `also` is the whole set
    int64_t size, also, offset, step;
    const int64_t *table;  // null: step times the stored number
    std::vector<int64_t> stride;

    // A set by its place; of a scalar without a path the stored number means nothing.
    int64_t at(int64_t place) const { return place >= 0 && place < size ? also | int64_t(bits[place]) : also; }
    int64_t moved(int64_t stored) const { return table ? table[stored] : step * stored; }
};

template <class In> struct Walk {
    std::vector<int64_t> shape, raw_stride, choice_stride;
    const int16_t *short_raw;
    const int32_t *raw;
    const uint8_t *choice;
    const int32_t *wide_choice;
    const int64_t *ordinal, *local;  // by stored number, where several products were put into one
    std::vector<Source<In>> sources;

    bool stores() const { return raw || short_raw; }
    bool chooses() const { return choice || wide_choice; }
    int64_t stored(int64_t at) const { return std::max<int64_t>(raw ? raw[at] : short_raw[at], 0); }
    size_t chosen(int64_t at) const { return choice ? choice[at] : size_t(wide_choice[at]); }
};

// Some scalars along the last axis: where they and their steps begin.
struct Stretch {
    int64_t count, raw, raw_step, choice, choice_step;
    const int64_t *base, *along;  // of each source
};

// The sets of a stretch whose scalars have all won through one source, at places where the stored numbers lead. What the
// loop reads lies in its own variables: a byte written to `out` could be any of the others.
template <class In, class Out, class Raw, class Move>
void read_moved(const Source<In> &s, const Raw *raw, int64_t step, int64_t base, int64_t along, int64_t count, Out *out, Move moved) {
    const In *bits = s.bits;
    const int64_t size = s.size, also = s.also;
    for (int64_t i = 0; i < count; i++) {
        const int64_t place = base + i * along + moved(std::max<int64_t>(raw[i * step], 0));
        out[i] = Out(uint64_t(place) < uint64_t(size) ? also | int64_t(bits[place]) : also);
    }
}
template <class In, class Out, class Raw>
void read_stored(const Source<In> &s, const Raw *raw, int64_t raw_step, int64_t base, int64_t along, int64_t count, Out *out) {
    const int64_t step = s.step, *table = s.table;
    if (table)
        read_moved(s, raw, raw_step, base, along, count, out, [table](int64_t stored) { return table[stored]; });
    else
        read_moved(s, raw, raw_step, base, along, count, out, [step](int64_t stored) { return step * stored; });
}

template <class In, class Out> void walk_stretch(const Walk<In> &w, const Stretch &x, Out *out) {
    if (w.ordinal) {
        for (int64_t i = 0; i < x.count; i++) {
            const int64_t number = w.stored(x.raw + i * x.raw_step), chosen = w.ordinal[number];
            const Source<In> &s = w.sources[size_t(chosen)];
            out[i] = Out(s.bits ? s.at(x.base[chosen] + i * x.along[chosen] + s.moved(w.local[number])) : s.also);
        }
    } else if (w.chooses()) {
        for (int64_t i = 0; i < x.count; i++) {
            const size_t chosen = w.chosen(x.choice + i * x.choice_step);
            const Source<In> &s = w.sources[chosen];
            const int64_t stored = w.stores() ? w.stored(x.raw + i * x.raw_step) : 0;
            const int64_t moved = s.table ? s.table[stored] : s.step * stored;
            out[i] = Out(s.at(x.base[chosen] + i * x.along[chosen] + moved));
        }
    } else if (const Source<In> &s = w.sources[0]; !s.bits) {
        std::fill_n(out, x.count, Out(s.also));
    } else if (w.raw) {
        read_stored(s, w.raw + x.raw, x.raw_step, x.base[0], x.along[0], x.count, out);
    } else if (w.short_raw) {
        read_stored(s, w.short_raw + x.raw, x.raw_step, x.base[0], x.along[0], x.count, out);
    } else {
        for (int64_t i = 0; i < x.count; i++) out[i] = Out(s.at(x.base[0] + i * x.along[0]));
    }
}

// Axes along which everything goes on as along the next one become one with it.
template <class In> void join_axes(Walk<In> &w) {
    for (size_t d = w.shape.size(); d-- > 1;) {
        const auto goes_on = [&](const std::vector<int64_t> &stride) { return stride[d - 1] == stride[d] * w.shape[d]; };
        bool all = (!w.stores() || goes_on(w.raw_stride)) && (!w.chooses() || goes_on(w.choice_stride));
        for (const Source<In> &s : w.sources) all = all && goes_on(s.stride);
        if (!all) continue;
        const auto drop = [&](std::vector<int64_t> &of) { of.erase(of.begin() + int64_t(d) - 1); };
        w.shape[d] *= w.shape[d - 1];
        drop(w.shape);
        if (w.stores()) drop(w.raw_stride);
        if (w.chooses()) drop(w.choice_stride);
        for (Source<In> &s : w.sources) drop(s.stride);
    }
}

// Writes the sets of `count` scalars from flat position `begin` on. Coordinates are kept, not divided out.
template <class In, class Out> void walk_part(const Walk<In> &w, int64_t begin, int64_t count, Out *out) {
    const int dims = int(w.shape.size());
    std::vector<int64_t> at(size_t(dims), 0);
    for (int64_t rest = begin, d = dims - 1; d >= 0; d--) {
        at[size_t(d)] = rest % w.shape[size_t(d)];
        rest /= w.shape[size_t(d)];
    }
    const int64_t inner = dims ? w.shape[size_t(dims - 1)] : 1;
    std::vector<int64_t> base(w.sources.size()), along(w.sources.size());
    for (size_t s = 0; s < along.size(); s++) along[s] = dims && w.sources[s].bits ? w.sources[s].stride[size_t(dims - 1)] : 0;
    for (int64_t done = 0; done < count;) {
        const int64_t first = dims ? at[size_t(dims - 1)] : 0, n = std::min(inner - first, count - done);
        Stretch x{n, 0, w.stores() && dims ? w.raw_stride[size_t(dims - 1)] : 0, 0,
                  w.chooses() && dims ? w.choice_stride[size_t(dims - 1)] : 0, base.data(), along.data()};
        for (int d = 0; d < dims; d++) {
            x.raw += w.stores() ? at[size_t(d)] * w.raw_stride[size_t(d)] : 0;
            x.choice += w.chooses() ? at[size_t(d)] * w.choice_stride[size_t(d)] : 0;
        }
        for (size_t s = 0; s < base.size(); s++) {
            base[s] = w.sources[s].offset;
            for (int d = 0; d < dims; d++) base[s] += at[size_t(d)] * w.sources[s].stride[size_t(d)];
        }
        walk_stretch(w, x, out + done);
        done += n;
        for (int d = dims - 2, carry = 1; d >= 0 && carry; d--) {
            carry = ++at[size_t(d)] == w.shape[size_t(d)];
            if (carry) at[size_t(d)] = 0;
        }
        if (dims) at[size_t(dims - 1)] = 0;
    }
}

// Pointers as they come from Python: stored numbers of 16 or 32 bits, choices of 8 or 32.
struct Given {
    std::vector<int64_t> shape;
    Pointer raw;
    std::vector<int64_t> raw_stride;
    bool short_raw;
    Pointer choice;
    std::vector<int64_t> choice_stride;
    bool wide_choice;
    Pointer ordinal, local;
};

template <class In, class Out> void inherited(const Given &g, const nb::list &sources, int64_t begin, int64_t end, Pointer to, int threads) {
    Walk<In> w{g.shape, g.raw_stride, g.choice_stride,
               g.short_raw ? reinterpret_cast<const int16_t *>(g.raw) : nullptr, g.short_raw ? nullptr : reinterpret_cast<const int32_t *>(g.raw),
               g.wide_choice ? nullptr : reinterpret_cast<const uint8_t *>(g.choice), g.wide_choice ? reinterpret_cast<const int32_t *>(g.choice) : nullptr,
               reinterpret_cast<const int64_t *>(g.ordinal), reinterpret_cast<const int64_t *>(g.local), {}};
    for (nb::handle h : sources) {
        nb::tuple t = nb::cast<nb::tuple>(h);
        w.sources.push_back({reinterpret_cast<const In *>(nb::cast<Pointer>(t[0])), nb::cast<int64_t>(t[1]), nb::cast<int64_t>(t[2]),
                             nb::cast<int64_t>(t[3]), nb::cast<int64_t>(t[4]), reinterpret_cast<const int64_t *>(nb::cast<Pointer>(t[5])),
                             nb::cast<std::vector<int64_t>>(t[6])});
    }
    join_axes(w);
    nb::gil_scoped_release unlocked;
    Out *out = reinterpret_cast<Out *>(to);
    const int64_t numel = end - begin, block = 16384, blocks = (numel + block - 1) / block;
    [[maybe_unused]] const int crew = team(numel, threads);
#pragma omp parallel for num_threads(crew) schedule(static) if (crew > 1)
    for (int64_t b = 0; b < blocks; b++) walk_part(w, begin + b * block, std::min(block, numel - b * block), out + b * block);
}

// Of the scalars begin … end. sources: (bits, their number, also, offset, step, table, stride of each axis). Sets are read in
// words of `word` bytes, and written in words of that size or of eight.
void inherit(std::vector<int64_t> shape, Pointer raw, std::vector<int64_t> raw_stride, bool short_raw, Pointer choice,
             std::vector<int64_t> choice_stride, bool wide_choice, Pointer ordinal, Pointer local, nb::list sources, int64_t begin,
             int64_t end, int word, bool widen, Pointer out, int threads) {
    const Given g{std::move(shape), raw, std::move(raw_stride), short_raw, choice, std::move(choice_stride), wide_choice, ordinal, local};
    const auto run = [&](auto in) {
        using In = decltype(in);
        widen ? inherited<In, int64_t>(g, sources, begin, end, out, threads) : inherited<In, In>(g, sources, begin, end, out, threads);
    };
    word == 1 ? run(uint8_t()) : word == 2 ? run(int16_t()) : word == 4 ? run(int32_t()) : run(int64_t());
}

// Absolute values, in place, and (the largest, the smallest that is not 0, whether there is a NaN). Of a block without a
// sign nothing is written: zeros may be of memory that is not there before it is written to.
template <class T> std::tuple<double, double, int> absolute_of(T *data, int64_t n, int threads) {
    constexpr int64_t BLOCK = 4096;
    double high = 0, low = std::numeric_limits<double>::infinity();
    bool nan = false;
    [[maybe_unused]] const int crew = team(n, threads);
#pragma omp parallel for num_threads(crew) schedule(static) if (crew > 1) reduction(max : high) reduction(min : low) reduction(|| : nan)
    for (int64_t b = 0; b < (n + BLOCK - 1) / BLOCK; b++) {
        T *block = data + b * BLOCK;
        const int64_t count = std::min(BLOCK, n - b * BLOCK);
        T most = 0, least = std::numeric_limits<T>::infinity();
        bool odd = false, negative = false;
        for (int64_t i = 0; i < count; i++) {
            const T size = std::abs(block[i]);
            odd |= !(size == size);
            negative |= std::signbit(block[i]);
            most = std::max(most, size);
            least = std::min(least, size > 0 ? size : std::numeric_limits<T>::infinity());
        }
        if (negative)
            for (int64_t i = 0; i < count; i++) block[i] = std::abs(block[i]);
        high = std::max(high, double(most));
        low = std::min(low, double(least));
        nan = nan || odd;
    }
    return {high, low, nan ? 1 : 0};
}

std::tuple<double, double, int> absolute(bool is_double, Pointer data, int64_t n, int threads) {
    nb::gil_scoped_release unlocked;
    return is_double ? absolute_of(reinterpret_cast<double *>(data), n, threads) : absolute_of(reinterpret_cast<float *>(data), n, threads);
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
    m.def("inherit", &inherit, arg("shape"), arg("raw_ptr"), arg("raw_stride"), arg("short_raw"), arg("choice_ptr"), arg("choice_stride"), arg("wide_choice"),
          arg("ordinal_ptr"), arg("local_ptr"), arg("sources"), arg("begin"), arg("end"), arg("word"), arg("widen"), arg("out_ptr"), arg("threads"), "Sets of components, read through winners");
    m.def("absolute", &absolute, arg("double_"), arg("data_ptr"), arg("n"), arg("threads"), "Absolute values, in place: their range");
    m.def("any_nan", &any_nan, arg("double_"), arg("tensors"), arg("threads"), "Whether one of some (pointer, n) holds a NaN");
}
