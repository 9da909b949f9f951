// Convolution under max, towards the input.
//
// Results whose coordinates are alike modulo the stride meet the same taps: they are a phase. Within one, each
// step (channel, tap) of the reduced axis is a constant offset into a zero-padded copy of the cotangent. A tile reads
// it through those offsets; where pruning pays, patches are written out instead, for the product with argmax.
#include <memory>
#include <vector>

#include "conv/patches.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t ROOM = 8 << 20;        // bytes of padded cotangent that one thread holds
constexpr int64_t MOST_STEPS = 1 << 15;  // of one patch
constexpr int64_t TOGETHER = 256 << 10;  // bytes of patches at a time: a part of the second-level cache

// One axis of one phase: result t lies at start + t·step and reads the cotangent at t·stride + shift[tap].
struct Axis {
    int64_t start, step, count, stride, size;  // size: of the cotangent
    std::vector<int64_t> tap, shift;           // in ascending order of what they read
};

Axis axis_towards_large(const ConvShape &s, int d, int64_t residue) {
    Axis axis{residue, s.stride[d], (s.large[d] - residue + s.stride[d] - 1) / s.stride[d], 1, s.small[d], {}, {}};
    for (int64_t k = s.taps[d] - 1; k >= 0; k--) {
        const int64_t place = residue + s.padding[d] - k * s.dilation[d];
        if (place % s.stride[d] != 0) continue;
        axis.tap.push_back(k);
        axis.shift.push_back(place / s.stride[d]);
    }
    return axis;
}

Axis axis_towards_small(const ConvShape &s, int d) {
    Axis axis{0, 1, s.small[d], s.stride[d], s.large[d], {}, {}};
    for (int64_t k = 0; k < s.taps[d]; k++) {
        axis.tap.push_back(k);
        axis.shift.push_back(k * s.dilation[d] - s.padding[d]);
    }
    return axis;
}

// The coordinates of the cotangent that a range of results reads: from low on, size many.
struct Span {
    int64_t low, size;
};
Span span(const Axis &axis, int64_t begin, int64_t end) {
    const int64_t low = begin * axis.stride + axis.shift.front();
    return {low, (end - 1) * axis.stride + axis.shift.back() - low + 1};
}

// What all threads share in one phase.
template <class T> struct Phase {
    const ConvInput<T> &job;
    Axis axis[3];
    int64_t from, to;                    // channels that are reduced, and of the results, in one group
    int64_t inputs, outputs;             // scalars of one channel of the cotangent, and of the results
    int64_t taps, steps, panels;         // steps: from · taps
    bool patched;                        // by patches and the product
    std::vector<T> weight;               // group × panel × step × WIDTH; for the product, group × result channel × step
    std::vector<int32_t> b_at, decoded;  // decoded: what a step adds to a winner's flat index
    Packed<T> packed;
    std::vector<std::unique_ptr<Prepared>> prepared;  // of each group, for the product

    int64_t weight_at(int64_t group, int64_t step, int64_t j) const {
        if (patched) return (group * to + j) * steps + step;
        return ((group * panels + j / WIDTH<T>) * steps + step) * WIDTH<T> + j % WIDTH<T>;
    }
    Operand<T> rows(int64_t group) const { return {weight.data() + group * to * steps, 0, steps, 1}; }
    const T *panel(int64_t group, int64_t p) const { return weight.data() + (group * panels + p) * steps * WIDTH<T>; }
    // Calls f(number, tap index and shift per axis) in order.
    template <class F> void each_tap(F f) const {
        int64_t number = 0;
        for (size_t x = 0; x < axis[0].tap.size(); x++)
            for (size_t y = 0; y < axis[1].tap.size(); y++)
                for (size_t z = 0; z < axis[2].tap.size(); z++, number++) {
                    const int64_t tap[3] = {axis[0].tap[x], axis[1].tap[y], axis[2].tap[z]};
                    const int64_t shift[3] = {axis[0].shift[x], axis[1].shift[y], axis[2].shift[z]};
                    f(number, tap, shift);
                }
    }

    void pack(int threads) {
        const ConvShape &s = job.shape;
        const int64_t all_taps = s.taps[0] * s.taps[1] * s.taps[2];
        taps = int64_t(axis[0].tap.size() * axis[1].tap.size() * axis[2].tap.size());
        steps = from * taps;
        panels = (to + WIDTH<T> - 1) / WIDTH<T>;
        patched = worth_patches(axis[0].count * axis[1].count * axis[2].count, to, steps, ENOUGH_TO_COPY) && steps <= MOST_STEPS;
        weight.assign(s.groups * steps * (patched ? to : panels * WIDTH<T>), T(0));
        b_at.resize(steps);
        decoded.resize(steps);
        for (int64_t k = 0; k < steps; k++) b_at[k] = int32_t(k * WIDTH<T>);
        std::vector<int64_t> tap_at(taps);
        each_tap([&](int64_t number, const int64_t *tap, const int64_t *shift) {
            tap_at[number] = (tap[0] * s.taps[1] + tap[1]) * s.taps[2] + tap[2];
            const int64_t moved = (shift[0] * axis[1].size + shift[1]) * axis[2].size + shift[2];
            for (int64_t i = 0; i < from; i++) decoded[i * taps + number] = int32_t(i * inputs + moved);
        });
        share(s.groups * to, s.groups * to * steps, threads, [&](int64_t begin, int64_t end) {
            for (int64_t x = begin; x < end; x++) {
                const int64_t g = x / to, j = x % to, stride = patched ? 1 : WIDTH<T>;
                T *out = weight.data() + weight_at(g, 0, j);
                for (int64_t i = 0; i < from; i++) {
                    // small channel × large channel × tap
                    const int64_t small = job.transposed ? j : i, large = job.transposed ? i : j;
                    const T *w = job.w + ((g * s.small_channels + small) * s.large_channels + large) * all_taps;
                    for (int64_t number = 0; number < taps; number++) out[(i * taps + number) * stride] = w[tap_at[number]];
                }
            }
            return nothing_seen();
        });
        packed.take(weight.data(), weight.data(), int64_t(weight.size()), all(T(1)));
        for (int64_t g = 0; patched && g < s.groups; g++) prepared.emplace_back(prepare_product(to, steps, rows(g)));
    }
};

// One example, one group, some of the results: those with begin ≤ t < end along the axis that is cut.
struct Slab {
    int64_t example, group, begin, end;
};

template <class T> class SlabRun {
  public:
    SlabRun(const Phase<T> &phase, int cut) : phase(phase), cut(cut) {}

    Summary run(const Slab &slab) {
        this->slab = slab;
        for (int d = 0; d < 3; d++) {
            begin[d] = d == cut ? slab.begin : 0;
            end[d] = d == cut ? slab.end : phase.axis[d].count;
            spans[d] = span(phase.axis[d], begin[d], end[d]);
        }
        pad();
        address_steps();
        risky = may_lose(packed, phase.packed);
        lost = false;
        if (phase.patched)
            patches();
        else
            for (int64_t p = 0; p < phase.panels; p++) panel(p);
        Summary s = nothing_seen();
        s.flags = packed.flags() | (lost ? LOST : 0);
        return s;
    }

  private:
    // Copies the cotangent with zeros around it.
    void pad() {
        const int64_t plane = spans[0].size * spans[1].size * spans[2].size;
        image.assign(phase.from * plane, T(0));
        packed = {};
        const Vec<T> f = all(T(phase.job.f));
        const T *g = phase.job.g + (slab.example * phase.job.shape.groups + slab.group) * phase.from * phase.inputs;
        for (int64_t c = 0; c < phase.from; c++)
            for (int64_t x = 0; x < spans[0].size; x++)
                for (int64_t y = 0; y < spans[1].size; y++) {
                    const int64_t at0 = x + spans[0].low, at1 = y + spans[1].low;
                    if (at0 < 0 || at0 >= phase.axis[0].size || at1 < 0 || at1 >= phase.axis[1].size) continue;
                    const T *row = g + c * phase.inputs + (at0 * phase.axis[1].size + at1) * phase.axis[2].size;
                    T *to = image.data() + c * plane + (x * spans[1].size + y) * spans[2].size;
                    const int64_t stop = std::min(phase.axis[2].size, spans[2].low + spans[2].size);
                    const int64_t start = std::max<int64_t>(0, spans[2].low);
                    packed.take(row + start, to + start - spans[2].low, stop - start, f);
                }
    }
    void address_steps() {
        const int64_t plane = spans[0].size * spans[1].size * spans[2].size;
        a_at.resize(phase.steps);
        phase.each_tap([&](int64_t number, const int64_t *, const int64_t *shift) {
            int64_t at = 0;
            for (int d = 0; d < 3; d++) at = at * spans[d].size + shift[d] - phase.axis[d].shift.front();
            for (int64_t c = 0; c < phase.from; c++) a_at[c * phase.taps + number] = int32_t(c * plane + at);
        });
    }

    struct Point {
        int64_t image, input, output;  // where it starts to read, in the padded copy and in g; where it writes
    };
    Point point(const int64_t *t) const {
        Point p{0, 0, 0};
        const ConvShape &s = phase.job.shape;
        for (int d = 0; d < 3; d++) {
            const Axis &axis = phase.axis[d];
            p.image = p.image * spans[d].size + (t[d] - begin[d]) * axis.stride;
            p.input = p.input * axis.size + t[d] * axis.stride;
            p.output = p.output * (phase.job.transposed ? s.small[d] : s.large[d]) + axis.start + t[d] * axis.step;
        }
        return p;
    }

    // ---- by patches: point × step, some points at a time

    // Points that follow each other along the last axis.
    struct Stretch {
        Point start;
        int64_t count;
    };

    void patches() {
        const int64_t limit = std::max<int64_t>(LANES<T>, TOGETHER / int64_t(sizeof(T)) / phase.steps);
        int64_t t[3], count = 0;
        for (t[0] = begin[0]; t[0] < end[0]; t[0]++)
            for (t[1] = begin[1]; t[1] < end[1]; t[1]++)
                for (t[2] = begin[2]; t[2] < end[2];) {
                    const int64_t some = std::min(end[2] - t[2], limit - count);
                    stretches.push_back({point(t), some});
                    t[2] += some, count += some;
                    if (count == limit) multiply(count), count = 0;
                }
        if (count) multiply(count);
    }

    void multiply(int64_t count) {
        patch.resize(phase.steps * count);
        best.resize(count * phase.to);
        step_of.resize(count * phase.to);
        T *to = patch.data();
        for (const Stretch &x : stretches) {
            write_rows(image.data() + x.start.image, x.count, to);
            to += x.count * phase.steps;
        }
        const Product<T> product{1, count, phase.to, phase.steps, {patch.data(), 0, phase.steps, 1}, phase.rows(slab.group),
                                 best.data(), step_of.data()};
        lost |= (max_product(product, phase.prepared[slab.group].get(), Variant::pruned).flags & LOST) != 0;
        write_stretches();
        stretches.clear();
    }

    // A row of steps for each point of a stretch: squares of them are read along the points, and turned.
    void write_rows(const T *from, int64_t count, T *to) const {
        constexpr int64_t SIDE = 16 / int64_t(sizeof(T));
        typedef T Quad __attribute__((vector_size(16)));
        const int64_t stride = phase.axis[2].stride, steps = phase.steps;
        const int64_t points = stride == 1 ? count / SIDE * SIDE : 0, whole = steps / SIDE * SIDE;
        for (int64_t k = 0; k < whole; k += SIDE)
            for (int64_t i = 0; i < points; i += SIDE) {
                Quad square[SIDE];
                for (int64_t s = 0; s < SIDE; s++) std::memcpy(&square[s], from + a_at[k + s] + i, sizeof(Quad));
                turn(square);
                for (int64_t s = 0; s < SIDE; s++) std::memcpy(to + (i + s) * steps + k, &square[s], sizeof(Quad));
            }
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = i < points ? whole : 0; k < steps; k++) to[i * steps + k] = from[a_at[k] + i * stride];
    }
    template <class Quad> static void turn(Quad (&x)[4]) {
        const Quad a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5), b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
        const Quad c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7), d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
        x[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5), x[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
        x[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5), x[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
    }
    template <class Pair> static void turn(Pair (&x)[2]) {
        const Pair a = __builtin_shufflevector(x[0], x[1], 0, 2), b = __builtin_shufflevector(x[0], x[1], 1, 3);
        x[0] = a, x[1] = b;
    }

    // Steps to winners, and point × channel to channel × point, a stretch at a time: what is read of it stays in the cache.
    void write_stretches() {
        const int64_t base = slab.group * phase.from * phase.inputs, stride = phase.axis[2].stride;
        const T *from = best.data();
        int32_t *won = step_of.data();
        for (const Stretch &x : stretches) {
            for (int64_t i = 0; i < x.count; i++) {
                const int32_t at = int32_t(base + x.start.input + i * stride), *decoded = phase.decoded.data();
                int32_t *here = won + i * phase.to;
                for (int64_t c = 0; c < phase.to; c++) here[c] = here[c] < 0 ? -1 : at + decoded[std::max(here[c], 0)];
            }
            write_turned(from, x, phase.job.out);
            write_turned(won, x, phase.job.arg);
            from += x.count * phase.to, won += x.count * phase.to;
        }
    }
    template <class U> void write_turned(const U *from, const Stretch &x, U *out) const {
        constexpr int64_t SIDE = 16 / int64_t(sizeof(U));
        typedef U Quad __attribute__((vector_size(16)));
        const int64_t step = phase.axis[2].step, points = x.count / SIDE * SIDE, whole = phase.to / SIDE * SIDE;
        out += (slab.example * phase.job.shape.groups + slab.group) * phase.to * phase.outputs + x.start.output;
        for (int64_t c = 0; c < whole; c += SIDE)
            for (int64_t i = 0; i < points; i += SIDE) {
                Quad square[SIDE];
                for (int64_t s = 0; s < SIDE; s++) std::memcpy(&square[s], from + (i + s) * phase.to + c, sizeof(Quad));
                turn(square);
                for (int64_t s = 0; s < SIDE; s++) {
                    U *line = out + (c + s) * phase.outputs + i * step;
                    if (step == 1)
                        std::memcpy(line, &square[s], sizeof(Quad));
                    else
                        for (int64_t l = 0; l < SIDE; l++) line[l * step] = square[s][l];
                }
            }
        for (int64_t c = 0; c < phase.to; c++)
            for (int64_t i = c < whole ? points : 0; i < x.count; i++) out[c * phase.outputs + i * step] = from[i * phase.to + c];
    }

    // ---- by tiles

    void panel(int64_t p) {
        int64_t t[3];
        staged = 0;
        for (t[0] = begin[0]; t[0] < end[0]; t[0]++)
            for (t[1] = begin[1]; t[1] < end[1]; t[1]++)
                for (t[2] = begin[2]; t[2] < end[2]; t[2]++) {
                    points[staged++] = point(t);
                    if (staged % ROWS == 0) tile(p, staged - ROWS, ROWS);
                    if (staged == STAGE) write(p);
                }
        if (staged % ROWS) tile(p, staged - staged % ROWS, int(staged % ROWS));
        write(p);
    }

    // The results of some staged points, and the steps that won.
    void tile(int64_t p, int64_t from, int filled) {
        Tile<T> tile;
        for (int r = 0; r < ROWS; r++) tile.a[r] = image.data() + points[from + (r < filled ? r : 0)].image;
        tile.b = phase.panel(slab.group, p);
        tile.a_at = a_at.data();
        tile.b_at = phase.b_at.data();
        tile.steps = phase.steps;
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) tile.best[r][v] = Vec<T>{};
        gradtrace::GRADTRACE_ISA::run(tile, phase.to - p * WIDTH<T>);
        for (int v = 0; v < VECTORS && p * WIDTH<T> + v * LANES<T> < phase.to; v++)
            for (int r = 0; r < filled; r++) {
                store(values[from + r] + v * LANES<T>, tile.best[r][v]);
                store_index<T>(steps[from + r] + v * LANES<T>, tile.step[r][v]);
                if (risky && any(tile.best[r][v] < TINY<T>)) lost |= any((tile.best[r][v] < TINY<T>)&possible(tile, r, v));
            }
    }

    // Channels lie far apart, so neighbouring points of one channel are written together.
    void write(int64_t p) {
        const int64_t count = std::min<int64_t>(WIDTH<T>, phase.to - p * WIDTH<T>), groups = phase.job.shape.groups;
        const int64_t base = slab.group * phase.from * phase.inputs;
        for (int64_t c = 0; c < count; c++) {
            const int64_t to = ((slab.example * groups + slab.group) * phase.to + p * WIDTH<T> + c) * phase.outputs;
            for (int64_t x = 0; x < staged; x++) {
                const int32_t step = steps[x][c];
                phase.job.out[to + points[x].output] = values[x][c];
                phase.job.arg[to + points[x].output] = step < 0 ? -1 : int32_t(base + points[x].input + phase.decoded[step]);
            }
        }
        staged = 0;
    }

    const Phase<T> &phase;
    const int cut;
    Slab slab{};
    static constexpr int64_t STAGE = 8 * ROWS;
    int64_t staged = 0;
    Point points[STAGE];
    T values[STAGE][WIDTH<T>];
    int32_t steps[STAGE][WIDTH<T>];
    int64_t begin[3], end[3];
    Span spans[3];
    std::vector<T> image;
    std::vector<int32_t> a_at;
    std::vector<Stretch> stretches;
    std::vector<T> patch, best;
    std::vector<int32_t> step_of;
    Packed<T> packed;
    bool risky = false, lost = false;
};

// Cuts a phase along its first axis that has something to cut, so that padded copies stay small and every
// thread has some.
template <class T> Summary run_phase(const Phase<T> &phase, int threads) {
    const ConvShape &s = phase.job.shape;
    int cut = 0;
    while (cut < 2 && phase.axis[cut].count == 1) cut++;
    const int64_t rows = phase.axis[cut].count, images = s.batch * s.groups;
    int64_t size = phase.from * int64_t(sizeof(T));
    for (int d = 0; d < 3; d++) size *= span(phase.axis[d], 0, phase.axis[d].count).size;
    int64_t slabs = std::max((size + ROOM - 1) / ROOM, (threads + images - 1) / images);
    slabs = std::min(slabs, rows);
    const int64_t work = images * phase.to * phase.outputs * phase.steps / 16;
    return share(images * slabs, work, threads, [&](int64_t from, int64_t to) {
        SlabRun<T> runner(phase, cut);
        Summary out = nothing_seen();
        for (int64_t x = from; x < to; x++) {
            const int64_t image = x / slabs, part = x % slabs;
            add(out, runner.run({image / s.groups, image % s.groups, rows * part / slabs, rows * (part + 1) / slabs}));
        }
        return out;
    });
}

template <class T> Summary phase_at(const ConvInput<T> &job, const int64_t *residue, int threads) {
    const ConvShape &s = job.shape;
    Phase<T> phase{job, {}, s.small_channels, s.large_channels, 1, 1, 0, 0, 0, false, {}, {}, {}, {}, {}};
    if (job.transposed) std::swap(phase.from, phase.to);
    for (int d = 0; d < 3; d++) {
        phase.axis[d] = job.transposed ? axis_towards_small(s, d) : axis_towards_large(s, d, residue[d]);
        phase.inputs *= job.transposed ? s.large[d] : s.small[d];
        phase.outputs *= job.transposed ? s.small[d] : s.large[d];
    }
    for (const Axis &axis : phase.axis)
        if (axis.count <= 0 || axis.tap.empty()) return nothing_seen();
    phase.pack(threads);
    if (phase.steps == 0) return nothing_seen();
    Summary out = run_phase(phase, threads);
    out.flags |= phase.packed.flags();
    return out;
}

}  // namespace

template <class T> Summary conv_input(const ConvInput<T> &job, int threads) {
    const ConvShape &s = job.shape;
    int64_t numel = s.batch * s.groups * (job.transposed ? s.small_channels : s.large_channels);
    for (int d = 0; d < 3; d++) numel *= job.transposed ? s.small[d] : s.large[d];
    if (numel == 0) return nothing_seen();
    Summary out = share(numel, numel, threads, [&](int64_t begin, int64_t end) {
        std::fill(job.out + begin, job.out + end, T(0));  // where no tap reaches, there is no path
        std::fill(job.arg + begin, job.arg + end, -1);
        return nothing_seen();
    });
    const int64_t phases[3] = {job.transposed ? 1 : s.stride[0], job.transposed ? 1 : s.stride[1], job.transposed ? 1 : s.stride[2]};
    int64_t residue[3];
    for (residue[0] = 0; residue[0] < phases[0]; residue[0]++)
        for (residue[1] = 0; residue[1] < phases[1]; residue[1]++)
            for (residue[2] = 0; residue[2] < phases[2]; residue[2]++) add(out, phase_at(job, residue, threads));
    add(out, share(numel, numel, threads, [&](int64_t begin, int64_t end) {
        Watch<T> watch;
        for (int64_t x = begin; x < end; x += LANES<T>) watch.result(load(job.out + x, end - x), Int<T>{});
        return watch.summary();
    }));
    return out;
}

template Summary conv_input(const ConvInput<float> &, int);
template Summary conv_input(const ConvInput<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
