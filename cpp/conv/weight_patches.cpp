// Convolution under max, towards the kernel, as a pruned product: out[(c, tap), o] = max over k = (example, l) of
// |large[c, place(l, tap)]|·|small[o, l]|. Rows are patches (c, tap), columns the channels o of the small side.
//
// No patch is written out. Along an axis, place(l, tap) = (l + shift)·stride + residue, where the tap decides shift and residue:
// of each residue the large side is copied once, with zeros around it, and a tap's row lies in that plane from its shift on.
// So k runs over the plane's positions, and where it is beyond the small side the columns are zero and never win.
// The reduced axis is gone through in chunks of lines (rows of positions along the last axis); the product continues from what
// earlier chunks found, so that an equal value found later never wins.
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "conv/patches.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t CHUNK = 2048;         // k's at a time, as the product likes them
constexpr int64_t LONGEST_LINE = 4096;  // longer ones would need too much memory for each plane
constexpr int64_t PLANE_BYTES = 4 << 20;  // of planes that one thread holds
constexpr int64_t MOST_ZEROS = 4;       // k's for each position of the small side

int64_t volume(const int64_t *size) { return size[0] * size[1] * size[2]; }

// One axis of the planes.
struct Axis {
    int64_t size, low;                      // low: the smallest shift, that of the plane's first position
    std::vector<int64_t> residue;           // different ones
    std::vector<int64_t> which, shift;      // of each tap: its residue, by number, and its shift beyond `low`

    Axis(const ConvShape &s, int d) : low(0) {
        for (int64_t k = 0; k < s.taps[d]; k++) {
            const int64_t at = k * s.dilation[d] - s.padding[d], rest = (at % s.stride[d] + s.stride[d]) % s.stride[d];
            const auto known = std::find(residue.begin(), residue.end(), rest);
            which.push_back(known - residue.begin());
            if (known == residue.end()) residue.push_back(rest);
            shift.push_back((at - rest) / s.stride[d]);
        }
        low = *std::min_element(shift.begin(), shift.end());
        for (int64_t &x : shift) x -= low;
        size = s.small[d] + *std::max_element(shift.begin(), shift.end());
    }
};
using Axes = std::array<Axis, 3>;
Axes axes_of(const ConvShape &s) { return {Axis(s, 0), Axis(s, 1), Axis(s, 2)}; }
int64_t volume(const Axes &axes) { return axes[0].size * axes[1].size * axes[2].size; }

// What all threads read: where each k lies in g, but for the channel and, in the large side, for the tap.
template <class T> struct Places {
    std::vector<int32_t> of_k;
    int64_t step[3], positions, channels;  // scalars of g for a step of l along each axis, and in a channel; channels of g

    Places(const ConvWeight<T> &job, const Axes &axes) {
        const ConvShape &s = job.shape;
        const int64_t *size = job.transposed ? s.large : s.small;
        positions = volume(size), channels = s.groups * (job.transposed ? s.large_channels : s.small_channels);
        step[0] = size[1] * size[2], step[1] = size[2], step[2] = 1;
        of_k.reserve(size_t(s.batch * volume(axes)));
        int64_t start = 0, l[3];
        for (int d = 0; d < 3 && job.transposed; d++) start -= s.padding[d] * step[d];
        for (int64_t n = 0; n < s.batch; n++, start += channels * positions)
            for (l[0] = 0; l[0] < axes[0].size; l[0]++)
                for (l[1] = 0; l[1] < axes[1].size; l[1]++)
                    for (l[2] = 0; l[2] < axes[2].size; l[2]++) {
                        int64_t at = start;
                        for (int d = 0; d < 3; d++) at += l[d] * step[d] * (job.transposed ? s.stride[d] : 1);
                        of_k.push_back(int32_t(at));
                    }
    }
};

// Results (c, tap) of one group from begin on.
struct RowRange {
    int64_t group, begin, end;
    int64_t count() const { return end - begin; }
};

template <class T> class Patches {
  public:
    Patches(const ConvWeight<T> &job, const Axes &axes, const Places<T> &places)
        : job(job), s(job.shape), axes(axes), places(places), taps(volume(s.taps)), lines(s.batch * axes[0].size * axes[1].size),
          lines_together(std::min(lines, std::max<int64_t>(1, CHUNK / axes[2].size))),
          reach(((axes[0].size - s.small[0]) * axes[1].size + axes[1].size - s.small[1]) + (axes[2].size > s.small[2] ? 1 : 0)),
          residues(int64_t(axes[0].residue.size() * axes[1].residue.size() * axes[2].residue.size())),
          plane((lines_together + reach) * axes[2].size), small_data(job.transposed ? job.x : job.g),
          large_data(job.transposed ? job.g : job.x), small_f(job.transposed ? T(1) : T(job.f)),
          large_f(job.transposed ? T(job.f) : T(1)) {}

    // Rows are numbered through all groups.
    Summary run(int64_t begin, int64_t end) {
        const int64_t rows = s.large_channels * taps;
        const int64_t room = std::max<int64_t>(1, PLANE_BYTES / int64_t(sizeof(T)) / (residues * plane));
        Summary out = nothing_seen();
        for (int64_t x = begin; x < end;) {
            const int64_t group = x / rows, stop = std::min({end, (group + 1) * rows, (x / taps + room) * taps});
            add(out, run_rows({group, x - group * rows, stop - group * rows}));
            x = stop;
        }
        return out;
    }

  private:
    Summary run_rows(const RowRange &range) {
        best.assign(range.count() * s.small_channels, T(0));
        step.assign(range.count() * s.small_channels, -1);
        Summary out = nothing_seen();
        for (int64_t line = 0; line < lines; line += lines_together) {
            const int64_t end = std::min(lines, line + lines_together), depth = (end - line) * axes[2].size;
            write_planes(range, line, end + reach);
            write_columns(range.group, line, end);
            prepared.reset(prepare_product<T>(s.small_channels, depth, {columns.data(), 0, depth, 1}, prepared.release()));
            each_tap(range, [&](int64_t tap, int64_t first, int64_t last, int64_t at) {
                const T *from = planes.data() + (first - range.begin / taps) * residues * plane + start_of(tap);
                const Product<T> product{1, last - first, s.small_channels, depth,
                                         {from, 0, residues * plane, 1},
                                         {columns.data(), 0, depth, 1},
                                         best.data() + at, step.data() + at, line * axes[2].size};
                out.flags |= max_product(product, prepared.get(), Variant::pruned).flags;
            });
        }
        write_results(range);
        return out;
    }

    // Calls f(tap, first and last channel of the large side, where their results begin) for all taps in a range of rows.
    template <class F> void each_tap(const RowRange &range, F f) const {
        int64_t at = 0;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t first = (range.begin - tap + taps - 1) / taps, last = (range.end - tap + taps - 1) / taps;
            if (first < last) f(tap, first, last, at);
            at += (last - first) * s.small_channels;
        }
    }
    void coordinates(int64_t tap, int64_t *k) const {
        k[0] = tap / (s.taps[1] * s.taps[2]), k[1] = tap / s.taps[2] % s.taps[1], k[2] = tap % s.taps[2];
    }
    // Where a tap's row begins in the planes of its channel.
    int64_t start_of(int64_t tap) const {
        int64_t k[3], which = 0, shift = 0;
        coordinates(tap, k);
        for (int d = 0; d < 3; d++) {
            which = which * int64_t(axes[d].residue.size()) + axes[d].which[k[d]];
            shift = shift * axes[d].size + axes[d].shift[k[d]];
        }
        return which * plane + shift;
    }

    // channel × residue × position: lines from one to another, of magnitudes.
    void write_planes(const RowRange &range, int64_t line, int64_t end) {
        const int64_t first = range.begin / taps, last = (range.end + taps - 1) / taps;
        planes.resize((last - first) * residues * plane);
        T *to = planes.data();
        for (int64_t c = first; c < last; c++)
            for (const int64_t r0 : axes[0].residue)
                for (const int64_t r1 : axes[1].residue)
                    for (const int64_t r2 : axes[2].residue) {
                        write_plane(range.group * s.large_channels + c, r0, r1, r2, line, end, to);
                        to += plane;
                    }
    }
    void write_plane(int64_t channel, int64_t r0, int64_t r1, int64_t r2, int64_t line, int64_t end, T *to) const {
        const int64_t width = axes[2].size, stride = s.stride[2], shifted = axes[2].low * stride + r2;
        const int64_t from = std::min(width, shifted < 0 ? (-shifted + stride - 1) / stride : 0);
        const int64_t stop = std::max(from, std::min(width, (s.large[2] - shifted + stride - 1) / stride));
        int64_t l1 = line % axes[1].size, l0 = line / axes[1].size % axes[0].size, n = line / axes[1].size / axes[0].size;
        for (int64_t x = line; x < end; x++, to += width) {
            const int64_t at0 = (l0 + axes[0].low) * s.stride[0] + r0, at1 = (l1 + axes[1].low) * s.stride[1] + r1;
            if (n >= s.batch || at0 < 0 || at0 >= s.large[0] || at1 < 0 || at1 >= s.large[1]) {
                std::fill_n(to, width, T(0));
            } else {
                const T *row = large_data + (n * s.groups * s.large_channels + channel) * volume(s.large) +
                               (at0 * s.large[1] + at1) * s.large[2] + shifted;
                std::fill_n(to, from, T(0));
                copy(row, stride, from, stop, large_f, to);
                std::fill_n(to + stop, width - stop, T(0));
            }
            if (++l1 == axes[1].size) l1 = 0, l0++;
            if (l0 == axes[0].size) l0 = 0, n++;
        }
    }
    // Magnitudes times f of what lies at begin … end.
    static void copy(const T *from, int64_t stride, int64_t begin, int64_t end, T f, T *to) {
        if (stride == 1)  // a loop of its own, which is wide
            for (int64_t l = begin; l < end; l++) to[l] = std::abs(from[l]) * f;
        else
            for (int64_t l = begin; l < end; l++) to[l] = std::abs(from[l * stride]) * f;
    }

    // channel × k
    void write_columns(int64_t group, int64_t line, int64_t end) {
        const int64_t width = axes[2].size, depth = (end - line) * width;
        columns.resize(s.small_channels * depth);
        for (int64_t o = 0; o < s.small_channels; o++) {
            T *to = columns.data() + o * depth;
            int64_t l1 = line % axes[1].size, l0 = line / axes[1].size % axes[0].size, n = line / axes[1].size / axes[0].size;
            for (int64_t x = line; x < end; x++, to += width) {
                const bool there = l0 < s.small[0] && l1 < s.small[1];
                const T *from = small_data + ((n * s.groups + group) * s.small_channels + o) * volume(s.small);
                if (there) copy(from + (l0 * s.small[1] + l1) * s.small[2], 1, 0, s.small[2], small_f, to);
                std::fill(to + (there ? s.small[2] : 0), to + width, T(0));
                if (++l1 == axes[1].size) l1 = 0, l0++;
                if (l0 == axes[0].size) l0 = 0, n++;
            }
        }
    }

    // tap × c × o to o × (c, tap), and steps to winners.
    void write_results(const RowRange &range) const {
        constexpr int64_t SOME = 64;  // rows at a time: what is read of them stays in the cache for the next channels
        std::vector<int64_t> start(range.count()), moved(range.count());
        each_tap(range, [&](int64_t tap, int64_t first, int64_t last, int64_t at) {
            int64_t k[3], there = 0;
            coordinates(tap, k);
            for (int d = 0; d < 3; d++) there += k[d] * s.dilation[d] * places.step[d];
            for (int64_t c = first; c < last; c++, at += s.small_channels) {
                start[c * taps + tap - range.begin] = at;
                if (job.transposed) moved[c * taps + tap - range.begin] = there + c * places.positions;
            }
        });
        const int64_t channel = range.group * (job.transposed ? s.large_channels : s.small_channels);
        for (int64_t from = range.begin; from < range.end; from += SOME)
            for (int64_t o = 0; o < s.small_channels; o++) {
                const int64_t to = (range.group * s.small_channels + o) * s.large_channels * taps;
                const int64_t here = (channel + (job.transposed ? 0 : o)) * places.positions;
                for (int64_t row = from; row < std::min(range.end, from + SOME); row++) {
                    const int64_t at = start[row - range.begin] + o;
                    job.out[to + row] = best[at];
                    job.arg[to + row] = step[at] < 0 ? -1 : int32_t(places.of_k[step[at]] + here + moved[row - range.begin]);
                }
            }
    }

    const ConvWeight<T> &job;
    const ConvShape &s;
    const Axes &axes;
    const Places<T> &places;
    const int64_t taps, lines, lines_together;  // lines: of planes, through all examples
    const int64_t reach, residues, plane;       // reach: lines that taps read behind the last one
    const T *small_data, *large_data;
    const T small_f, large_f;
    std::vector<T> planes, columns, best;
    std::vector<int32_t> step;
    std::unique_ptr<Prepared> prepared;
};

// NaN anywhere in an operand, also where no tap reaches, and cotangents that vanish when scaled.
template <class T> int look_through(const T *data, int64_t n, T f, int threads) {
    const auto look = [&](int64_t begin, int64_t end) {
        Packed<T> learned;
        for (int64_t i = begin; i < end; i += LANES<T>) learned.take(load(data + i, end - i), all(f));
        Summary out = nothing_seen();
        out.flags = learned.flags();
        return out;
    };
    return share(n, n, threads, look).flags;
}

}  // namespace

template <class T> bool weight_suits_patches(const ConvWeight<T> &job) {
    const ConvShape &s = job.shape;
    const Axes axes = axes_of(s);
    return axes[2].size <= LONGEST_LINE && volume(axes) <= MOST_ZEROS * volume(s.small) &&
           worth_patches(s.large_channels * volume(s.taps), s.small_channels, s.batch * volume(s.small), ENOUGH_IN_PLACE);
}

template <class T> Summary weight_by_patches(const ConvWeight<T> &job, int threads) {
    const ConvShape &s = job.shape;
    const int64_t rows = s.groups * s.large_channels * volume(s.taps), small = s.groups * s.small_channels * s.batch * volume(s.small);
    const int64_t large = s.groups * s.large_channels * s.batch * volume(s.large);
    const int64_t work = rows * s.small_channels * s.batch * volume(s.small) / 16;
    const Axes axes = axes_of(s);
    const Places<T> places(job, axes);
    Summary out = share(rows, work, threads, [&](int64_t begin, int64_t end) { return Patches<T>(job, axes, places).run(begin, end); });
    out.flags |= look_through(job.x, job.transposed ? small : large, T(1), threads);
    out.flags |= look_through(job.g, job.transposed ? large : small, T(job.f), threads);
    return out;
}

template bool weight_suits_patches(const ConvWeight<float> &);
template bool weight_suits_patches(const ConvWeight<double> &);
template Summary weight_by_patches(const ConvWeight<float> &, int);
template Summary weight_by_patches(const ConvWeight<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
