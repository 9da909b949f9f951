// Units: what leaf scalars send along their traces, moved from value to value through winners. One pass does it for groups of
// leaves: what has come to a scalar is kept by group, and of the many scalars of a value only those at which something came.
#include "rows/departures.hpp"

#include <nanobind/stl/unordered_map.h>

#include <cmath>
#include <map>

namespace nb = nanobind;

namespace {

using namespace gradtrace::rows;

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

void add_up(Amounts &sum, const Amount &more) {
    const auto known = std::find_if(sum.begin(), sum.end(), [&](const Amount &a) { return a.group == more.group; });
    if (known == sum.end()) {
        sum.push_back(more);
    } else {
        known->count += more.count;
        known->weight += more.weight;
    }
}

void add_up(Amounts &sum, const Amounts &more) {
    for (const Amount &m : more) add_up(sum, m);
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

// Where a leaf's units go: hops, target, whether the target has rows, and whether nobody has to know the place there.
using GivenWay = std::tuple<std::vector<Hop>, int64_t, bool, bool>;

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

// Multiplies weights by 2^shift.
class Scaled {
  public:
    explicit Scaled(double shift) : whole(int(std::floor(shift))), part(std::exp2(shift - whole)), factor(near() ? std::ldexp(part, whole) : 0.0) {}
    double operator()(double weight) const { return near() ? weight * factor : std::ldexp(weight * part, whole); }

  private:
    bool near() const { return std::abs(whole) < 900; }  // so that a factor is a float, which takes a tenth of the time
    int whole;
    double part, factor;
};

class Units {
  public:
    // Sends what has departed from a leaf, for the group of each row and way. Weights are to be multiplied by 2^shift.
    void leave(const Departures &leaf, const std::vector<GivenWay> &ways, const std::vector<std::vector<int32_t>> &groups, double shift) {
        const Scaled scaled(shift);
        for (const Sent &s : leaf.sent) {
            const auto &[hops, target, rows, straight] = ways[s.ordinal];
            const int32_t group = groups[size_t(s.row)][s.ordinal];
            const Amount total{group, s.count, scaled(s.weight)};
            for (const Hop &hop : hops) add_up(edges[hop], total);
            if (straight) {
                add_up(totals[target], total);
                continue;
            }
            List units(s.units.size());
            for (size_t i = 0; i < units.size(); i++) units[i] = {s.units[i].place, group, double(s.units[i].count), scaled(s.units[i].weight)};
            row_of(target, rows ? size_t(s.row) : 0).take(std::move(units), {total});
        }
    }

    // Sends what all of a leaf's scalars do along one way to where nobody has to know the place.
    void leave_straight(const std::vector<Hop> &hops, int64_t target, int32_t group, double count, double weight, double shift) {
        const Amount total{group, count, Scaled(shift)(weight)};
        for (const Hop &hop : hops) add_up(edges[hop], total);
        add_up(totals[target], total);
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
                add_up(out, a);
            }
            return out;
        };
        if (const auto come = totals.find(value); come != totals.end()) come->second = renamed(come->second);
        const auto come = arrived.find(value);
        if (come == arrived.end()) return;
        for (Arrived &row : come->second) {
            if (row.units.empty()) continue;
            const Way here{{}, value, false, false, false, false, Axes({}, {}), 0, 0, nullptr, numel, 0, nullptr, 0, 1};
            outs.assign(1, {});
            slots = room.room(numel);
            for (const Unit &u : row.units) add(here, 0, u.place, groups.at(u.group), u.count, u.weight);
            clear(here, outs[0].units);
            row.units = std::move(outs[0].units);
            row.total = renamed(row.total);
        }
    }

    // Gives what waits at a value, of which parts of some size follow each other: (number of the part, group, count, weight).
    std::vector<std::tuple<size_t, int32_t, double, double>> parts(int64_t value, int64_t size, size_t count) const {
        std::vector<Amounts> sums(count);
        if (const auto come = arrived.find(value); come != arrived.end())
            for (const Arrived &row : come->second)
                for (const Unit &u : row.units) add_up(sums[size_t(u.place / size) % count], Amount{u.group, u.count, u.weight});
        std::vector<std::tuple<size_t, int32_t, double, double>> out;
        for (size_t n = 0; n < count; n++)
            for (const Amount &a : sums[n]) out.emplace_back(n, a.group, a.count, a.weight);
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
                for (Unit &u : rows[row].units) u.place = uint32_t(only.placed(only.offset + only.axes.at(u.place + (only.split ? int64_t(row) * w.numel : 0)).first));
                arrive(only, int64_t(row), std::move(rows[row].units), rows[row].total);
                continue;
            }
            begin(w);
            if (rows[row].total.size() == 1)
                send_group(w, int64_t(row), rows[row]);
            else
                follow(w, int64_t(row), rows[row].units, [&](size_t way, int64_t place, const Unit &u) { add(w.ways[way], way, place, u.group, u.count, u.weight); });
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
        Way way{{}, 0, false, false, false, false, Axes({}, {}), 0, 0, nullptr, 0, 0, nullptr, 0, 1};
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
    Scratch scratch;

    void begin(const Winners &w) {
        outs.assign(w.ways.size(), {});
        straight.assign(w.ways.size(), {});
        opening.assign(w.ways.size(), {});
        slots = room.room(w.ways.back().begin + w.ways.back().size);
    }

    void add(const Way &way, size_t number, int64_t place, int32_t group, double count, double weight) {
        if (place < 0 || place >= way.size) throw std::out_of_range(ASTRAY);
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

    // Says of each unit where it lands: land(way, place, unit). Where nobody has to know the place, or Python has to say it, it is kept.
    template <class Land> void follow(const Winners &w, int64_t row, const List &units, Land land) {
        for (const Unit &u : units) {
            const auto [number, stored] = w.chosen(row, u.place);
            const Way &way = w.ways[number];
            if (way.straight) {
                add_total(number, u.group, u.count, u.weight);
            } else if (!way.strided) {
                leave_open(number, u, stored);
            } else {
                const int64_t flat = u.place + (way.split ? row * w.numel : 0);
                land(number, way.placed(way.offset + way.axes.at(flat).first + way.moved(stored)), u);
            }
        }
    }

    // Moves on what one group has sent, which needs no list of groups at a place.
    void send_group(const Winners &w, int64_t row, const Arrived &come) {
        const int32_t group = come.total[0].group;
        if (scratch.cells.empty()) scratch.cells.resize(1);
        Cells &cells = scratch.cells[0];
        cells.reserve(w.ways.back().begin + w.ways.back().size);
        std::vector<Places> touched = cells.noting(w.ways);
        bool inside = true;
        follow(w, row, come.units, [&](size_t way, int64_t place, const Unit &u) {
            inside &= cells.add(w.ways[way].begin, w.ways[way].size, place, u.count, u.weight, &touched[way]);
        });
        if (!inside) astray(scratch);
        for (size_t n = 0; n < w.ways.size(); n++) {
            const Way &way = w.ways[n];
            List units(touched[n].size);
            Amount total{group, 0.0, 0.0};
            for (size_t i = 0; i < units.size(); i++) {
                const uint32_t place = touched[n].first[i];
                const auto [count, weight] = cells.taken(way.begin + place);
                units[i] = {place, group, count, weight};
                total.count += count;
                total.weight += weight;
            }
            arrive(way, row, std::move(units), {total});
        }
    }

    void add_total(size_t number, int32_t group, double count, double weight) {
        Amounts &amounts = straight[number];
        if (!amounts.empty() && amounts.back().group == group) {  // as all of a leaf are
            amounts.back().count += count;
            amounts.back().weight += weight;
        } else {
            add_up(amounts, Amount{group, count, weight});
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
    nb::class_<Scratch>(m, "Scratch", "Memory that leaves are added up in").def(nb::init<>());
    nb::class_<Departures>(m, "Departures", "What a leaf's scalars send, added up where it arrives first")
        .def(nb::init<Scratch &, const GivenWinners &, int64_t, bool, Pointer, Pointer, int>(), arg("scratch"), arg("winners"), arg("rows"), arg("double_"), arg("weight_ptr"), arg("live_ptr"), arg("threads"))
        .def("open", &Departures::open, "(number, ordinal, row, positions, stored numbers) of what is to be placed")
        .def("place", &Departures::place, arg("number"), arg("places_ptr"), arg("size"), "Say where units go that strides don't lead")
        .def("totals", &Departures::totals, arg("rows"), "By row (how many traces, their weight)")
        .def("tally", [](const Departures &d, int word, const std::vector<std::tuple<Pointer, int64_t, bool, int64_t>> &sources) {
            return word == 1 ? d.tally<uint8_t>(sources) : word == 2 ? d.tally<int16_t>(sources) : word == 4 ? d.tally<int32_t>(sources) : d.tally<int64_t>(sources);
        }, arg("word"), arg("sources"), "(row, set, count, weight) of the sets of components at the places");
    nb::class_<Units>(m, "Units", "Units of groups of leaves, on their way along winners")
        .def(nb::init<>())
        .def("leave", &Units::leave, arg("departures"), arg("ways"), arg("groups"), arg("shift"), "Send what a leaf does, for the group of each row and way")
        .def("leave_straight", &Units::leave_straight, arg("hops"), arg("target"), arg("group"), arg("count"), arg("weight"), arg("shift"), "The same of all that goes one way")
        .def("groups_at", &Units::groups_at, arg("value"), "The groups of which something waits at a value")
        .def("regroup", &Units::regroup, arg("value"), arg("numel"), arg("groups"), "Count what waits at a value to other groups from here on")
        .def("parts", &Units::parts, arg("value"), arg("size"), arg("count"), "(part, group, count, weight) of what waits at a value")
        .def("send", &Units::send, arg("value"), arg("winners"), "Move on what has come to a value: what is to be placed")
        .def("pass_on", &Units::pass_on, arg("value"), arg("hop"), arg("target"), arg("rows"), "The same, where the consumer has the same scalars")
        .def("send_straight", &Units::send_straight, arg("value"), arg("hop"), arg("target"), "The same, where all go one way")
        .def("place", &Units::place, arg("number"), arg("places_ptr"), "Say where units go that strides don't lead")
        .def("waits", &Units::waits, arg("value"), "Whether something has come to a value")
        .def("waits_straight", &Units::waits_straight, arg("value"), "Whether something has come to a value of one way")
        .def("found", &Units::found, "(from, to, group, count, weight) of every edge");
}
