// Units: what leaf scalars send along their traces, moved from value to value through winners. One pass does it for groups of
// leaves: what has come to a scalar is kept by group, and of the many scalars of a value only those at which something came.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace {

using Pointer = uintptr_t;
using Numbers = std::vector<int64_t>;
using Hop = std::pair<int64_t, int64_t>;  // from a call, or a leaf, to the argument of a call that is entered, by its number

// What has come to a scalar from one group of leaves: how many paths, and their weight.
struct Unit {
    uint32_t place;
    int32_t group;
    double count, weight;
};
using List = std::vector<Unit>;

// What has come from one group of leaves; of the many groups few are at one place.
struct Amount {
    int32_t group;
    double count, weight;
};
using Amounts = std::vector<Amount>;

void add_up(Amounts &sum, const Amounts &more) {
    for (const Amount &m : more) {
        const auto known = std::find_if(sum.begin(), sum.end(), [&](const Amount &a) { return a.group == m.group; });
        if (known == sum.end()) {
            sum.push_back(m);
        } else {
            known->count += m.count;
            known->weight += m.weight;
        }
    }
}

// What has come to one row of a value, and all of it together.
struct Arrived {
    List units;
    Amounts total;

    void take(List more, const Amounts &amounts) {
        if (units.size() < more.size()) units.swap(more);
        units.insert(units.end(), more.begin(), more.end());
        add_up(total, amounts);
    }
};

// Units that are being added up: `next` says for each where another group's at its place is, from 1 on.
struct Sum {
    List units;
    std::vector<uint32_t> next;
};

// Flat positions of a shape, as places by strides. Axes along which places go on as along the next are one with it.
struct Axes {
    Numbers size, step;

    Axes(const Numbers &shape, const Numbers &stride, size_t skip = 0) {
        for (size_t d = skip; d < shape.size(); d++) {
            const int64_t n = shape[d], s = stride[d];
            if (n == 1) continue;
            if (!size.empty() && step.back() == s * n) {
                size.back() *= n;
                step.back() = s;
            } else {
                size.push_back(n);
                step.push_back(s);
            }
        }
        if (size.empty()) size = {1}, step = {0};
    }
    // Gives the place, and how many positions from here on go on by the last step.
    std::pair<int64_t, int64_t> at(int64_t flat) const {
        int64_t place = 0, left = 0;
        for (size_t d = size.size(); d-- > 0;) {
            const int64_t n = size[d];
            const bool narrow = uint64_t(flat | n) >> 32 == 0;  // short divisions take a third of the time
            const int64_t above = !d ? 0 : narrow ? int64_t(uint32_t(flat) / uint32_t(n)) : flat / n, here = flat - above * n;
            place += here * step[d];
            if (d + 1 == size.size()) left = n - here;
            flat = above;
        }
        return {place, left};
    }
    int64_t along() const { return step.back(); }
    // Whether no two positions are surely one place.
    bool apart() const {
        std::vector<std::pair<int64_t, int64_t>> by_step;
        for (size_t d = 0; d < size.size(); d++) by_step.emplace_back(std::abs(step[d]), size[d]);
        std::sort(by_step.begin(), by_step.end());
        int64_t reach = 0;
        for (const auto &[s, n] : by_step) {
            if (n > 1 && s <= reach) return false;
            reach += s * (n - 1);
        }
        return true;
    }
};

// What kernels stored of the winners of a value, batch × shape.
struct Plane {
    const char *data;
    int width;  // bytes of an integer; those of one byte have no sign
    int64_t row;
    Axes axes;

    explicit operator bool() const { return data; }
    int64_t operator()(int64_t at) const {
        switch (width) {
        case 1: return reinterpret_cast<const uint8_t *>(data)[at];
        case 2: return reinterpret_cast<const int16_t *>(data)[at];
        default: return reinterpret_cast<const int32_t *>(data)[at];
        }
    }
};

// A way on: to a value, through one call or two. Where strides and stored numbers don't say to which place, Python does.
struct Way {
    std::vector<Hop> hops;
    int64_t target;
    bool rows, straight, split, strided;  // straight: nobody has to know the place
    Axes axes;
    int64_t offset, step;
    const int64_t *table;
    int64_t size, begin;  // of the target; where the target's places begin among those of all ways

    int64_t moved(int64_t stored) const { return table ? table[stored] : step * stored; }
};

struct Winners {
    int64_t numel;
    Plane raw, choice;
    const int64_t *ordinal, *local;  // of each stored number, where several products were put into one
    std::vector<Way> ways;
};

// (address, bytes of an integer, strides of batch × shape); address 0: there is none.
using GivenPlane = std::tuple<Pointer, int, Numbers>;
// (shape, stored numbers, choices, ordinals and their numbers, ways)
using GivenWinners = std::tuple<Numbers, GivenPlane, GivenPlane, std::pair<Pointer, Pointer>, nb::list>;

Plane plane(const GivenPlane &given, const Numbers &shape) {
    const auto &[data, width, stride] = given;
    if (!data) return {nullptr, 0, 0, Axes({}, {})};
    return {reinterpret_cast<const char *>(data), width, stride[0], Axes(shape, Numbers(stride.begin() + 1, stride.end()))};
}

Winners winners(const GivenWinners &given) {
    const auto &[shape, raw, choice, terms, ways] = given;
    Winners w{1, plane(raw, shape), plane(choice, shape), reinterpret_cast<const int64_t *>(terms.first), reinterpret_cast<const int64_t *>(terms.second), {}};
    for (int64_t n : shape) w.numel *= n;
    int64_t begin = 0;
    for (nb::handle h : ways) {
        const nb::tuple t = nb::cast<nb::tuple>(h);
        const bool straight = nb::cast<bool>(t[3]), strided = nb::cast<bool>(t[5]);
        const Numbers seen = nb::cast<Numbers>(t[6]), stride = nb::cast<Numbers>(t[7]);
        w.ways.push_back({nb::cast<std::vector<Hop>>(t[0]), nb::cast<int64_t>(t[1]), nb::cast<bool>(t[2]), straight, nb::cast<bool>(t[4]), strided,
                          Axes(seen, stride), nb::cast<int64_t>(t[8]), nb::cast<int64_t>(t[9]),
                          reinterpret_cast<const int64_t *>(nb::cast<Pointer>(t[10])), nb::cast<int64_t>(t[11]), begin});
        if (!straight) begin += w.ways.back().size;
    }
    for (const Way &way : w.ways)
        if (std::max(way.size, w.numel) >> 32) throw nb::value_error("a value of more than 2^32 scalars");
    return w;
}

// Zeros that are only there once they are written to: where the unit of a place is, while units are being added up.
class Slots {
  public:
    uint32_t *room(int64_t n) {
        if (n > size) {
            slots.reset(static_cast<uint32_t *>(std::calloc(size_t(n), sizeof(uint32_t))));
            if (!slots) throw std::bad_alloc();
            size = n;
        }
        return slots.get();
    }

  private:
    struct Free {
        void operator()(uint32_t *p) const { std::free(p); }
    };
    std::unique_ptr<uint32_t[], Free> slots;
    int64_t size = 0;
};

class Units {
  public:
    // Sends what the scalars of a leaf do: those that are live one path each, of a weight. The group is that of the row and the way.
    nb::list leave(const GivenWinners &given, const std::vector<std::vector<int32_t>> &groups, bool is_double, Pointer weight, Pointer live, double factor) {
        const Winners w = winners(given);
        if (is_double)
            all_of(w, groups, reinterpret_cast<const double *>(weight), reinterpret_cast<const bool *>(live), factor);
        else
            all_of(w, groups, reinterpret_cast<const float *>(weight), reinterpret_cast<const bool *>(live), factor);
        return told();
    }

    // Gives the groups of which something waits at a value.
    std::vector<int32_t> groups_at(int64_t value) const {
        Amounts all;
        if (const auto come = arrived.find(value); come != arrived.end())
            for (const Arrived &row : come->second) add_up(all, row.total);
        if (const auto come = totals.find(value); come != totals.end()) add_up(all, come->second);
        std::vector<int32_t> out;
        for (const Amount &a : all) out.push_back(a.group);
        return out;
    }

    // Counts what waits at a value to other groups from here on.
    void regroup(int64_t value, int64_t numel, const std::unordered_map<int32_t, int32_t> &groups) {
        const auto renamed = [&](Amounts amounts) {
            Amounts out;
            for (Amount &a : amounts) {
                a.group = groups.at(a.group);
                add_up(out, {a});
            }
            return out;
        };
        if (const auto come = totals.find(value); come != totals.end()) come->second = renamed(come->second);
        const auto come = arrived.find(value);
        if (come == arrived.end()) return;
        for (Arrived &row : come->second) {
            if (row.units.empty()) continue;
            const Way here{{}, value, false, false, false, false, Axes({}, {}), 0, 0, nullptr, numel, 0};
            outs.assign(1, {});
            slots = room.room(numel);
            for (const Unit &u : row.units) add(here, 0, u.place, groups.at(u.group), u.count, u.weight);
            clear(here, outs[0].units);
            row.units = std::move(outs[0].units);
            row.total = renamed(row.total);
        }
    }

    // Gives what waits at a value: (row, place, group, count, weight).
    std::vector<std::tuple<int64_t, int64_t, int32_t, double, double>> at(int64_t value) const {
        std::vector<std::tuple<int64_t, int64_t, int32_t, double, double>> out;
        if (const auto come = arrived.find(value); come != arrived.end())
            for (size_t row = 0; row < come->second.size(); row++)
                for (const Unit &u : come->second[row].units) out.emplace_back(row, u.place, u.group, u.count, u.weight);
        return out;
    }

    // Moves all that has come to a value on to its consumers.
    nb::list send(int64_t value, const GivenWinners &given) {
        const auto come = arrived.find(value);
        std::vector<Arrived> rows = std::move(come->second);
        arrived.erase(come);
        const Winners w = winners(given);
        const Way &only = w.ways[0];
        const bool apart = w.ways.size() == 1 && only.strided && !only.straight && !only.step && !only.table && only.axes.apart();
        for (size_t row = 0; row < rows.size(); row++) {
            if (apart && rows[row].units.size() <= size_t(2 * w.numel)) {  // nothing meets; and where little has, nothing has to
                for (Unit &u : rows[row].units) u.place = uint32_t(only.offset + only.axes.at(u.place + (only.split ? int64_t(row) * w.numel : 0)).first);
                arrive(only, int64_t(row), std::move(rows[row].units), rows[row].total);
                continue;
            }
            begin(w);
            for (const Unit &u : rows[row].units) {
                const auto [way, stored] = chosen(w, int64_t(row), u.place);
                if (w.ways[way].straight) {
                    add_total(way, u.group, u.count, u.weight);
                } else if (!w.ways[way].strided) {
                    leave_open(way, u, stored);
                } else {
                    const Way &to = w.ways[way];
                    const int64_t flat = u.place + (to.split ? int64_t(row) * w.numel : 0);
                    add(to, way, to.offset + to.axes.at(flat).first + to.moved(stored), u.group, u.count, u.weight);
                }
            }
            end(w, int64_t(row));
        }
        return told();
    }

    // Moves all that has come to a value on to a value of the same scalars.
    void pass_on(int64_t value, Hop hop, int64_t target, bool rows) {
        const auto come = arrived.find(value);
        std::vector<Arrived> units = std::move(come->second);
        arrived.erase(come);
        for (size_t row = 0; row < units.size(); row++) {
            if (units[row].units.empty()) continue;
            add_up(edges[hop], units[row].total);
            row_of(target, rows ? row : 0).take(std::move(units[row].units), units[row].total);
        }
    }

    // Moves what has come to a value of which all scalars go the same way on, from call to call.
    void send_straight(int64_t value, Hop hop, int64_t target) {
        const auto come = totals.find(value);
        const Amounts amounts = std::move(come->second);
        totals.erase(come);
        add_up(edges[hop], amounts);
        add_up(totals[target], amounts);
    }

    // Says the places of units that `leave` or `send` could not tell.
    void place(size_t number, Pointer places) {
        Open &o = open[number];
        const int64_t *at = reinterpret_cast<const int64_t *>(places);
        Way way = o.way;
        way.begin = 0;
        outs.assign(1, {});
        slots = room.room(way.size);
        for (size_t i = 0; i < o.units.size(); i++) add(way, 0, at[i], o.units[i].group, o.units[i].count, o.units[i].weight);
        clear(way, outs[0].units);
        row_of(way.target, way.rows ? size_t(o.row) : 0).take(std::move(outs[0].units), o.total);
        o = Open();
        if (number + 1 == open.size()) open.clear();
    }

    bool waits(int64_t value) const { return arrived.count(value) > 0; }
    bool waits_straight(int64_t value) const { return totals.count(value) > 0; }

    // What went along every edge: (from, to, group, count, weight).
    std::vector<std::tuple<int64_t, int64_t, int32_t, double, double>> found() const {
        std::vector<std::tuple<int64_t, int64_t, int32_t, double, double>> out;
        for (const auto &[hop, amounts] : edges)
            for (const Amount &a : amounts) out.emplace_back(hop.first, hop.second, a.group, a.count, a.weight);
        return out;
    }

  private:
    // Units of one row and way, whose places Python has to say.
    struct Open {
        Way way{{}, 0, false, false, false, false, Axes({}, {}), 0, 0, nullptr, 0, 0};
        int64_t row = 0;
        size_t ordinal = 0;
        List units;
        Numbers stored;
        Amounts total;
    };

    std::unordered_map<int64_t, std::vector<Arrived>> arrived;  // by value and row
    std::unordered_map<int64_t, Amounts> totals;
    std::map<Hop, Amounts> edges;
    std::vector<Open> open;
    std::vector<std::pair<List, Numbers>> opening;  // of the row that is being sent on, by way
    std::vector<Sum> outs;
    std::vector<Amounts> straight;
    mutable std::vector<Amount> summed;  // by group, while units are summed
    Slots room;
    uint32_t *slots = nullptr;

    static std::pair<size_t, int64_t> chosen(const Winners &w, int64_t row, int64_t flat) {
        const int64_t stored = w.raw ? std::max<int64_t>(w.raw(row * w.raw.row + w.raw.axes.at(flat).first), 0) : 0;
        if (w.ordinal) return {size_t(w.ordinal[stored]), w.local[stored]};
        return {w.choice ? size_t(w.choice(row * w.choice.row + w.choice.axes.at(flat).first)) : 0, stored};
    }

    template <class T> void all_of(const Winners &w, const std::vector<std::vector<int32_t>> &groups, const T *weight, const bool *live, double factor) {
        const int64_t rows = int64_t(groups.size());
        std::vector<int64_t> base(w.ways.size()), along(w.ways.size());
        const bool looks = w.raw || w.choice;
        for (int64_t row = 0; row < rows; row++, weight += w.numel, live += live ? w.numel : 0) {
            begin(w);
            for (int64_t x = 0; x < w.numel;) {  // a run, along which every way and plane goes on by one step
                int64_t run = w.numel - x, raw = 0, choice = 0;
                const auto shorter = [&](std::pair<int64_t, int64_t> found) {
                    run = std::min(run, found.second);
                    return found.first;
                };
                for (size_t n = 0; n < w.ways.size(); n++) {
                    const Way &way = w.ways[n];
                    if (way.straight || !way.strided || !way.size) continue;  // nobody goes to a result without scalars
                    base[n] = way.offset + shorter(way.axes.at(x + (way.split ? row * w.numel : 0)));
                    along[n] = way.axes.along();
                }
                if (w.raw) raw = row * w.raw.row + shorter(w.raw.axes.at(x));
                if (w.choice) choice = row * w.choice.row + shorter(w.choice.axes.at(x));
                for (int64_t i = 0; i < run; i++) {
                    if (live ? !live[x + i] : weight[x + i] == 0) continue;
                    const double amount = double(weight[x + i]) * factor;
                    size_t n = 0;
                    int64_t stored = 0;
                    if (looks) {
                        stored = w.raw ? std::max<int64_t>(w.raw(raw + i * w.raw.axes.along()), 0) : 0;
                        if (w.ordinal)
                            n = size_t(w.ordinal[stored]), stored = w.local[stored];
                        else if (w.choice)
                            n = size_t(w.choice(choice + i * w.choice.axes.along()));
                    }
                    const Way &way = w.ways[n];
                    const int32_t group = groups[size_t(row)][n];
                    if (way.straight)
                        add_total(n, group, 1.0, amount);
                    else if (way.strided)
                        add(way, n, base[n] + i * along[n] + way.moved(stored), group, 1.0, amount);
                    else
                        leave_open(n, {uint32_t(x + i), group, 1.0, amount}, stored);
                }
                x += run;
            }
            end(w, row);
        }
    }

    void begin(const Winners &w) {
        outs.assign(w.ways.size(), {});
        straight.assign(w.ways.size(), {});
        opening.assign(w.ways.size(), {});
        slots = room.room(w.ways.back().begin + w.ways.back().size);
    }

    void add(const Way &way, size_t number, int64_t place, int32_t group, double count, double weight) {
        if (place < 0 || place >= way.size) throw std::out_of_range("a winner leads out of its consumer's results");
        Sum &sum = outs[number];
        uint32_t &slot = slots[way.begin + place];
        for (uint32_t at = slot; at; at = sum.next[at - 1]) {
            Unit &known = sum.units[at - 1];
            if (known.group == group) {
                known.count += count;
                known.weight += weight;
                return;
            }
        }
        sum.units.push_back({uint32_t(place), group, count, weight});
        sum.next.push_back(slot);
        slot = uint32_t(sum.units.size());
    }

    void add_total(size_t number, int32_t group, double count, double weight) {
        Amounts &amounts = straight[number];
        if (!amounts.empty() && amounts.back().group == group) {  // as all of a leaf are
            amounts.back().count += count;
            amounts.back().weight += weight;
        } else {
            add_up(amounts, {{group, count, weight}});
        }
    }

    void leave_open(size_t number, const Unit &unit, int64_t stored) {
        opening[number].first.push_back(unit);
        opening[number].second.push_back(stored);
    }

    void clear(const Way &way, const List &units) {
        for (const Unit &u : units) slots[way.begin + u.place] = 0;
    }

    void end(const Winners &w, int64_t row) {
        for (size_t n = 0; n < w.ways.size(); n++) {
            const Way &way = w.ways[n];
            if (List &units = outs[n].units; !units.empty()) {
                clear(way, units);
                const Amounts total = sum(units);
                arrive(way, row, std::move(units), total);
            }
            if (!straight[n].empty()) {
                went(way, straight[n]);
                add_up(totals[way.target], straight[n]);
            }
            if (List &units = opening[n].first; !units.empty()) {
                const Amounts total = sum(units);
                went(way, total);
                open.push_back({way, row, n, std::move(units), std::move(opening[n].second), total});
            }
        }
    }

    Amounts sum(const List &units) const {
        std::vector<int32_t> met;
        for (const Unit &u : units) {
            if (size_t(u.group) >= summed.size()) summed.resize(size_t(u.group) + 1, {-1, 0.0, 0.0});
            Amount &a = summed[size_t(u.group)];
            if (a.group < 0) met.push_back(a.group = u.group);
            a.count += u.count;
            a.weight += u.weight;
        }
        Amounts out;
        for (const int32_t group : met) {
            out.push_back(summed[size_t(group)]);
            summed[size_t(group)] = {-1, 0.0, 0.0};
        }
        return out;
    }

    void went(const Way &way, const Amounts &amounts) {
        for (const Hop &hop : way.hops) add_up(edges[hop], amounts);
    }

    void arrive(const Way &way, int64_t row, List units, const Amounts &total) {
        if (units.empty()) return;
        went(way, total);
        row_of(way.target, way.rows ? size_t(row) : 0).take(std::move(units), total);
    }

    Arrived &row_of(int64_t value, size_t row) {
        std::vector<Arrived> &rows = arrived[value];
        if (rows.size() <= row) rows.resize(row + 1);
        return rows[row];
    }

    // (number, ordinal of the way, row, positions, stored numbers) of what is to be placed.
    nb::list told() const {
        nb::list out;
        for (size_t n = 0; n < open.size(); n++) {
            Numbers places;
            for (const Unit &u : open[n].units) places.push_back(u.place);
            const nb::bytes at(reinterpret_cast<const char *>(places.data()), places.size() * sizeof(int64_t));
            const nb::bytes stored(reinterpret_cast<const char *>(open[n].stored.data()), places.size() * sizeof(int64_t));
            out.append(nb::make_tuple(n, open[n].ordinal, open[n].row, at, stored));
        }
        return out;
    }
};

}  // namespace

void bind_units(nb::module_ &m);
void bind_units(nb::module_ &m) {
    using nb::arg;
    nb::class_<Units>(m, "Units", "Units of groups of leaves, on their way along winners")
        .def(nb::init<>())
        .def("leave", &Units::leave, arg("winners"), arg("groups"), arg("double_"), arg("weight_ptr"), arg("live_ptr"), arg("factor"),
             "Send what a leaf's scalars do, for the group of each row and way: what is to be placed")
        .def("groups_at", &Units::groups_at, arg("value"), "The groups of which something waits at a value")
        .def("regroup", &Units::regroup, arg("value"), arg("numel"), arg("groups"), "Count what waits at a value to other groups from here on")
        .def("at", &Units::at, arg("value"), "(row, place, group, count, weight) of what waits at a value")
        .def("send", &Units::send, arg("value"), arg("winners"), "Move on what has come to a value: what is to be placed")
        .def("pass_on", &Units::pass_on, arg("value"), arg("hop"), arg("target"), arg("rows"), "The same, where the consumer has the same scalars")
        .def("send_straight", &Units::send_straight, arg("value"), arg("hop"), arg("target"), "The same, where all go one way")
        .def("place", &Units::place, arg("number"), arg("places_ptr"), "Say where units go that strides don't lead")
        .def("waits", &Units::waits, arg("value"), "Whether something has come to a value")
        .def("waits_straight", &Units::waits_straight, arg("value"), "Whether something has come to a value of one way")
        .def("found", &Units::found, "(from, to, group, count, weight) of every edge");
}
