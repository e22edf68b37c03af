// Norms with the shortcut and the ReLU that follow them, and their gradients.

#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

// Calls `row` with the offset of each row in a part of a buffer.
template <class Row>
inline void rows_of(const Shape &s, int c0, int c1, int n0, int n1, Row row) {
    for (int c = c0; c < c1; c++)
        for (int n = n0; n < n1; n++)
            for (int y = 0; y < s.height; y++) row(s.at(c, n, y));
}

// Calls `body` for bands of rows that fit in the first-level cache.
constexpr int BAND = 256;  // vectors
template <class Body>
inline void each_band(const Shape &s, int n0, int n1, Body body) {
    const int rows = std::max(1, BAND / s.width);
    for (int n = n0; n < n1; n++)
        for (int y = 0; y < s.height; y += rows) body(n, y, std::min(y + rows, s.height));
}

constexpr int TERMS = 64;

// A sum of many terms. They are first added by 64, so that its rounding does not grow with the batch:
// of 4,096 terms each goes through 128 additions at most.
struct Sum {
    vec total{}, part{};
    int terms = 0;
    void operator+=(const vec &term) {
        part += term;
        if (++terms < TERMS) return;
        total += part;
        part = vec{};
        terms = 0;
    }
    vec value() const { return total + part; }
};

// Mean of a number of values, and the sum of squared differences from it.
struct Moments {
    vec mean{}, squares{};
    REAL values = 0;
    // Combines those of two sets of values (Chan et al., 1979).
    void operator+=(const Moments &other) {
        // With none the difference of the means is no difference: its square may overflow.
        if (values == 0) {
            *this = other;
            return;
        }
        const REAL share = other.values / (values + other.values);
        const vec step = other.mean - mean;
        squares += other.squares;
        squares += step * step * (values * share);
        mean += step * share;
        values += other.values;
    }
};

// The sum over a band. Each row is summed first.
template <class Term>
inline vec sum_band(const Shape &s, int c, int n, int y0, int y1, Term term) {
    vec band{};
    for (int y = y0; y < y1; y++) {
        vec sum[4] = {};  // four sums, as one alone would wait for each addition to finish
        const count at = s.at(c, n, y);
        int i = 0;
        for (; i + 4 <= s.width; i += 4)
            for (int j = 0; j < 4; j++) sum[j] += term(at + i + j);
        for (; i < s.width; i++) sum[0] += term(at + i);
        band += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return band;
}

// The groups of a norm. Batch and ghost norm: a channel over a sub-batch. Group norm: a group of
// channels of one example.
struct Groups {
    int c0, c1, n0, n1, number;
};

template <class Body>
inline void each_group(const Layer &l, Body body) {
    const Shape &s = l.out;
    int number = 0;
    for (int c = 0; c < s.channels; c += l.channels_per_group)
        for (int n = 0; n < s.examples; n += l.examples_per_group)
            body(Groups{c, std::min(c + l.channels_per_group, s.channels), n,
                        std::min(n + l.examples_per_group, s.examples), number++});
}

inline REAL values(const Shape &s, const Groups &g) {
    return REAL(g.c1 - g.c0) * (g.n1 - g.n0) * s.height * s.width;
}

// Mean and inverse deviation of a group. Sums of squares are taken by band and then combined, first
// 64 bands, as in `Sum`. A band is read twice, but the second time from the first-level cache.
void norm_moments(const Layer &l, const Groups &g) {
    const Shape &s = l.out;
    Moments all, some;
    int bands = 0;
    for (int c = g.c0; c < g.c1; c++)
        each_band(s, g.n0, g.n1, [&](int n, int y0, int y1) {
            const REAL pixels = REAL(y1 - y0) * s.width;
            const vec own = sum_band(s, c, n, y0, y1, [&](count i) { return l.z[i]; }) / pixels;
            const vec squares = sum_band(s, c, n, y0, y1, [&](count i) {
                const vec d = l.z[i] - own;
                return d * d;
            });
            some += Moments{own, squares, pixels};
            if (++bands < TERMS) return;
            all += some;
            some = Moments{};
            bands = 0;
        });
    if (bands) all += some;
    const vec mean = across(all.mean, l.parts_per_group) / REAL(l.parts_per_group);
    vec squares = all.squares + (all.mean - mean) * (all.mean - mean) * all.values;
    squares = across(squares, l.parts_per_group);
    const REAL n = values(s, g) * l.parts_per_group;
    l.mean[g.number] = mean;
    l.invstd[g.number] = 1 / root(squares / n + REAL(l.eps));
    l.variance[g.number] = squares / (n - 1);
}

// Moves the running statistics of a channel towards the mean over its groups.
void update_statistics(const Layer &l, const PerLane &statistics) {
    const int parts = V / statistics.lanes;
    Sum means, variances;
    each_group(l, [&](const Groups &g) {
        const REAL share = REAL(g.n1 - g.n0) / l.out.examples;
        if (g.n0 == 0) means = variances = Sum{};
        means += share * l.mean[g.number];
        variances += share * l.variance[g.number];
        if (g.n1 < l.out.examples) return;
        const vec mean = across(means.value(), parts) / REAL(parts);
        const vec variance = across(variances.value(), parts) / REAL(parts);
        const REAL momentum = REAL(l.momentum);
        const auto move = [&](count i, const vec &to) {
            statistics.put(i, (1 - momentum) * statistics[i] + momentum * to);
        };
        move(l.running_mean + g.c0, mean);
        move(l.running_var + g.c0, variance);
    });
}

// What a norm does to a channel of a group: y = a·z + b.
struct Norming {
    vec a, b;
    Norming(const Layer &l, const PerLane &theta, int c, int group)
        : a(theta[l.scale + c] * l.invstd[group]), b(theta[l.shift + c] - l.mean[group] * a) {}
};

// y = relu(a·z + b + shortcut) of one channel of one example. Channels that the shortcut's source
// does not have get nothing added (option A).
void activate(const Layer &l, int c, int n, vec a, vec b) {
    const Shape &s = l.out;
    const bool skip = l.stride && c < l.skip.channels;
    for (int y = 0; y < s.height; y++) {
        const count at = s.at(c, n, y);
        const vec *from = skip ? l.skip_x + l.skip.at(c, n, y * l.stride) : nullptr;
        for (int i = 0; i < s.width; i++) {
            vec value = l.norm ? a * l.z[at + i] + b : l.z[at + i];
            if (skip) value += from[i * l.stride];
            // Unlike a maximum, this keeps NaN.
            l.y[at + i] = l.relu ? (value < 0 ? vec{} : value) : value;
        }
    }
}

void norm_and_activate(const Layer &l, const PerLane &theta, const PerLane &statistics,
                       bool training) {
    const Shape &s = l.out;
    if (l.norm && (training || l.norm == OWN)) {
        each_group(l, [&](const Groups &g) {
            norm_moments(l, g);
            for (int c = g.c0; c < g.c1; c++) {
                const Norming norming(l, theta, c, g.number);
                for (int n = g.n0; n < g.n1; n++) activate(l, c, n, norming.a, norming.b);
            }
        });
        if (l.norm == RUNNING) update_statistics(l, statistics);
        return;
    }
    for (int c = 0; c < s.channels; c++) {
        vec a{}, b{};
        if (l.norm) {
            a = theta[l.scale + c] / root(statistics[l.running_var + c] + REAL(l.eps));
            b = theta[l.shift + c] - statistics[l.running_mean + c] * a;
        }
        for (int n = 0; n < s.examples; n++) activate(l, c, n, a, b);
    }
}

// Turns dy into the gradient of the ReLU's input, here called g.
void relu_gradient(const Layer &l, int c, int n, int y0, int y1) {
    if (!l.relu) return;
    for (int y = y0; y < y1; y++) {
        const count at = l.out.at(c, n, y);
        for (int i = 0; i < l.out.width; i++)
            l.dy[at + i] = l.y[at + i] > 0 ? l.dy[at + i] : vec{};
    }
}

// Adds Σ g and Σ g·(z − mean) of a band. If dz is not dy, dy is replaced by g, which the shortcut
// needs. Otherwise the ReLU's mask is computed from z, so that y need not be read nor dy written.
void gradient_sums(const Layer &l, int c, int n, int y0, int y1, vec mean, const Norming &norming,
                   Sum &sum, Sum &dot) {
    const bool apart = l.dz != l.dy;
    vec sums{}, dots{};
    for (int y = y0; y < y1; y++) {
        vec own[4] = {}, product[4] = {};
        const count at = l.out.at(c, n, y);
        const auto add = [&](int i, int j) {
            const vec z = l.z[at + i];
            vec g = l.dy[at + i];
            if (l.relu) g = (apart ? l.y[at + i] : norming.a * z + norming.b) > 0 ? g : vec{};
            if (apart) l.dy[at + i] = g;
            own[j] += g;
            product[j] += g * (z - mean);
        };
        int i = 0;
        for (; i + 4 <= l.out.width; i += 4)
            for (int j = 0; j < 4; j++) add(i + j, j);
        for (; i < l.out.width; i++) add(i, 0);
        sums += (own[0] + own[1]) + (own[2] + own[3]);
        dots += (product[0] + product[1]) + (product[2] + product[3]);
    }
    sum += sums;
    dot += dots;
}

void norm_gradient(const Layer &l, const PerLane &theta, const PerLane &gradient) {
    const Shape &s = l.out;
    const bool mask = l.relu && l.dz == l.dy;
    std::vector<Sum> shifts(l.channels_per_group), scales(l.channels_per_group);
    each_group(l, [&](const Groups &g) {
        const vec mean = l.mean[g.number], invstd = l.invstd[g.number];
        vec first{}, second{};  // Σ scale·g and Σ scale·g·x̂ over the group
        for (int c = g.c0; c < g.c1; c++) {
            const Norming norming(l, theta, c, g.number);
            const vec scale = theta[l.scale + c];
            Sum sums, dots;
            each_band(s, g.n0, g.n1, [&](int n, int y0, int y1) {
                gradient_sums(l, c, n, y0, y1, mean, norming, sums, dots);
            });
            const vec sum = sums.value(), dot = dots.value() * invstd;
            Sum &of_shift = shifts[c - g.c0], &of_scale = scales[c - g.c0];
            if (g.n0 == 0) of_shift = of_scale = Sum{};
            of_shift += sum;
            of_scale += dot;
            gradient.put_sum(l.shift + c, of_shift.value());
            gradient.put_sum(l.scale + c, of_scale.value());
            first += scale * sum;
            second += scale * dot;
        }
        first = across(first, l.parts_per_group);
        second = across(second, l.parts_per_group);
        const REAL n = values(s, g) * l.parts_per_group;
        const vec slope = -invstd * invstd * second / n;
        const vec constant = -invstd * first / n - slope * mean;
        for (int c = g.c0; c < g.c1; c++) {
            const Norming norming(l, theta, c, g.number);
            const vec factor = invstd * theta[l.scale + c];
            rows_of(s, c, c + 1, g.n0, g.n1, [&](count at) {
                for (int i = 0; i < s.width; i++) {
                    const vec z = l.z[at + i];
                    vec dy = l.dy[at + i];
                    if (mask) dy = norming.a * z + norming.b > 0 ? dy : vec{};
                    l.dz[at + i] = factor * dy + slope * z + constant;
                }
            });
        }
    });
}

}  // namespace
