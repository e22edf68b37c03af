// Sums of products over tables of offsets. They compute fully connected layers, convolutions for
// which there is no quicker algorithm, and the gradients of both.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int CHUNK = 72;   // terms of a sum whose weights fit in the first-level cache
constexpr int RUN = 64;     // positions in the inner loop of a weight gradient

// A function of its own: where GCC inlines it, it keeps too few values in registers.
template <int O, int L>
__attribute__((noinline)) void product_block(const Product &f, const vec *x, const REAL *w,
                                             vec *y, const REAL *bias, int p, int from, int to) {
    vec sum[O][P];
    const char *xs[P];
    vec *ys[P];
    for (int j = 0; j < P; j++) xs[j] = bytes_from(x, f.x_base[p + j]);
    for (int j = 0; j < P; j++)
        ys[j] = const_cast<vec *>(&vector_at(bytes_from(y, f.y_base[p + j])));
    for (int o = 0; o < O; o++)
        for (int j = 0; j < P; j++)
            sum[o][j] = from ? ys[j][count(o) * f.out_stride]
                             : (bias ? unpack<L>(bias + o * L) : vec{});
    const count *x_offset = f.x_offset;
    for (int r = from; r < to; r++, w += O * L) {
        vec xr[P];
        for (int j = 0; j < P; j++) keep(xr[j] = vector_at(xs[j] + x_offset[r]));
        for (int o = 0; o < O; o++) {
            vec wr = unpack<L>(w + o * L);
            keep(wr);
            for (int j = 0; j < P; j++) sum[o][j] += wr * xr[j];
        }
    }
    for (int o = 0; o < O; o++)
        for (int j = 0; j < P; j++) ys[j][count(o) * f.out_stride] = sum[o][j];
}

template <int O, int L>
void product_rows(const Product &f, const vec *x, const REAL *w, vec *y, const REAL *bias,
                  int begin, int end) {
    alignas(sizeof(vec)) REAL packed[CHUNK * O * L];  // weights in the order in which they are used
    for (int from = 0; from < f.rows; from += CHUNK) {
        const int to = std::min(from + CHUNK, f.rows);
        for (int o = 0; o < O; o++)
            for (int r = from; r < to; r++)
                std::memcpy(packed + ((r - from) * O + o) * L,
                            w + (count(o) * f.weight_stride + f.w_offset[r]) * L,
                            L * sizeof(REAL));
        for (int p = begin; p < end; p += P)
            product_block<O, L>(f, x, packed, y, bias, p, from, to);
    }
}

// Products of the same x. Each computes one block of positions in turn, while x is in the cache.
template <int L>
void products(const Product *each, int number, const vec *x, const REAL *w, vec *y,
              const REAL *bias) {
    int positions = 0;
    for (int i = 0; i < number; i++) positions = std::max(positions, each[i].positions);
    for (int begin = 0; begin < positions; begin += each->tile)
        for (int i = 0; i < number; i++) {
            // The tables repeat the last position up to a multiple of P; it is written twice.
            const Product &f = each[i];
            const int end = std::min(begin + each->tile, f.positions);
            const auto rows = [&](auto O, int o) {
                product_rows<O, L>(f, x, w + count(o) * f.weight_stride * L,
                                   y + count(o) * f.out_stride, bias ? bias + o * L : nullptr,
                                   begin, end);
            };
            int o = 0;
            for (; o + 4 <= f.outputs; o += 4) rows(std::integral_constant<int, 4>{}, o);
            for (; o < f.outputs; o++) rows(std::integral_constant<int, 1>{}, o);
        }
}

template <int O, int R>
__attribute__((noinline)) void gradient_block(const Product &f, const vec *x, const vec *dz,
                                              vec *dw, int r, int begin, int end) {
    vec sum[O][R];
    const char *xs[R], *gs[O];
    for (int o = 0; o < O; o++)
        for (int j = 0; j < R; j++)
            sum[o][j] = begin ? dw[count(o) * f.weight_stride + r + j] : vec{};
    for (int j = 0; j < R; j++) xs[j] = bytes_from(x, f.x_offset[r + j]);
    for (int o = 0; o < O; o++) gs[o] = bytes_from(dz + count(o) * f.out_stride, 0);
    const count *x_base = f.x_base, *y_base = f.y_base;
    for (int p = begin; p < end; p++) {
        vec xr[R];
        for (int j = 0; j < R; j++) keep(xr[j] = vector_at(xs[j] + x_base[p]));
        for (int o = 0; o < O; o++) {
            vec go = vector_at(gs[o] + y_base[p]);
            keep(go);
            for (int j = 0; j < R; j++) sum[o][j] += go * xr[j];
        }
    }
    for (int o = 0; o < O; o++)
        for (int j = 0; j < R; j++) dw[count(o) * f.weight_stride + r + j] = sum[o][j];
}

template <int O>
void gradient_rows(const Product &f, const vec *x, const vec *dz, vec *dw, int begin, int end) {
    int r = 0;
    for (; r + 3 <= f.rows; r += 3) gradient_block<O, 3>(f, x, dz, dw, r, begin, end);
    for (; r < f.rows; r++) gradient_block<O, 1>(f, x, dz, dw, r, begin, end);
}

// The sums over the parts of each lane, for numbers that lie one after the other.
inline void add_parts(const vec *x, count number, REAL *to, int lanes) {
    with_lanes(lanes, [&](auto L) {
        constexpr int together = V / L;
        for (; number >= together; number -= together, x += together, to += V) {
            const vec sums = sums_of<L>(x);
            std::memcpy(to, &sums, sizeof(sums));
        }
        for (; number > 0; number--, x++, to += L) pack(to, across(*x, together), L);
    });
}

// dw[o][r] = Σ_p dz[o][p] · x[p + r]
void weight_gradient(const Product &f, const vec *x, const vec *dz, REAL *to, int lanes) {
    const count weights = count(f.outputs) * f.rows;
    vec *dw = lanes == V ? reinterpret_cast<vec *>(to) : scratch(scratch_sums, weights);
    for (int begin = 0; begin < f.positions; begin += RUN) {
        const int end = std::min(begin + RUN, f.positions);
        int o = 0;
        for (; o + 4 <= f.outputs; o += 4)
            gradient_rows<4>(f, x, dz + count(o) * f.out_stride, dw + count(o) * f.weight_stride,
                             begin, end);
        for (; o < f.outputs; o++)
            gradient_rows<1>(f, x, dz + count(o) * f.out_stride, dw + count(o) * f.weight_stride,
                             begin, end);
    }
    if (lanes < V) add_parts(dw, weights, to, lanes);
}

}  // namespace
