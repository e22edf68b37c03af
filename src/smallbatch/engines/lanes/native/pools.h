// Pooling and its gradients.

#pragma once

#include <algorithm>
#include <limits>

#include "norms.h"

namespace {

// Calls `body` with each tap (row · 3 + column) of a 3×3 window of stride 2 that lies in the image.
template <class Body>
inline void taps_of(const Layer &l, int y, int x, Body body) {
    for (int tap = 0; tap < 9; tap++) {
        const int row = 2 * y - l.pool_top + tap / 3, column = 2 * x - l.pool_left + tap % 3;
        if (row >= 0 && row < l.out.height && column >= 0 && column < l.out.width)
            body(tap, row, column);
    }
}

void pool(const Layer &l) {
    const Shape &s = l.pooled;
    if (l.pool == MEAN_POOL) {
        const REAL pixels = REAL(l.out.height) * l.out.width;
        for (int c = 0; c < s.channels; c++)
            for (int n = 0; n < s.examples; n++) {
                const vec sum =
                    sum_band(l.out, c, n, 0, l.out.height, [&](count i) { return l.y[i]; });
                l.pooled_y[s.at(c, n, 0)] = sum / pixels;
            }
        return;
    }
    for (int c = 0; c < s.channels; c++)
        for (int n = 0; n < s.examples; n++)
            for (int y = 0; y < s.height; y++)
                for (int x = 0; x < s.width; x++) {
                    vec best = all(-std::numeric_limits<REAL>::infinity()), winner = all(-1);
                    taps_of(l, y, x, [&](int tap, int row, int column) {
                        const vec value = l.y[l.out.at(c, n, row) + column];
                        const auto better = (value > best) | (value != value) | (winner < 0);
                        best = better ? value : best;
                        winner = better ? all(REAL(tap)) : winner;
                    });
                    l.pooled_y[s.at(c, n, y) + x] = best;
                    l.winner[s.at(c, n, y) + x] = winner;
                }
}

void pool_gradient(const Layer &l) {
    const Shape &s = l.pooled;
    if (l.pool == MEAN_POOL) {
        const REAL pixels = REAL(l.out.height) * l.out.width;
        for (int c = 0; c < s.channels; c++)
            for (int n = 0; n < s.examples; n++) {
                const vec share = l.pooled_dy[s.at(c, n, 0)] / pixels;
                rows_of(l.out, c, c + 1, n, n + 1, [&](count at) {
                    std::fill(l.dy + at, l.dy + at + l.out.width, share);
                });
            }
        return;
    }
    rows_of(l.out, 0, s.channels, 0, s.examples,
            [&](count at) { std::fill(l.dy + at, l.dy + at + l.out.width, vec{}); });
    for (int c = 0; c < s.channels; c++)
        for (int n = 0; n < s.examples; n++)
            for (int y = 0; y < s.height; y++)
                for (int x = 0; x < s.width; x++) {
                    const count at = s.at(c, n, y) + x;
                    taps_of(l, y, x, [&](int tap, int row, int column) {
                        l.dy[l.out.at(c, n, row) + column] +=
                            l.winner[at] == all(REAL(tap)) ? l.pooled_dy[at] : vec{};
                    });
                }
}

}  // namespace
