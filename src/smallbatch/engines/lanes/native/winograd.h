// Winograd's F(M×M, 3×3) (Lavin and Gray, 2016) for 3×3 convolutions. A tile of M×M outputs is
// Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A over windows d of the input: 16 products instead of 36 (M = 2), or
// 36 instead of 144 (M = 4). At stride 2 the odd pixels meet two taps of the kernel, which is an
// F(2, 2), and the even ones meet the third: 25 products instead of 36. A number is a vector with
// an element for each place, so a transform adds whole vectors. The sum over channels is a matrix
// product for each number of a transformed window; it works on blocks of tiles that fit in the
// second-level cache.

#pragma once

#include <algorithm>

#include "products.h"

namespace {

constexpr int TILES = 36;                // most tiles of a block
constexpr int PRODUCT_VECTORS = 8192;    // of the transformed windows of a block
constexpr int GRADIENT_VECTORS = 24576;  // of windows and tiles of a block, for weight gradients
constexpr int GRADIENT_OUTPUTS = 4;      // outputs whose tiles are transformed at a time

// An algorithm in one dimension: its transforms, of numbers that are `stride` apart; how many
// numbers they give; the side of a tile; the pixels from one window to the next; and the first
// pixel of the first window.
struct Tiles2 {
    static constexpr int WINDOW = 4, N = 4, SIDE = 2, STEP = 2, BEGIN = -1;
    static void window(const vec *x, count stride, vec y[4]) {  // Bᵀ x
        const vec a = x[0], b = x[stride], c = x[2 * stride], d = x[3 * stride];
        y[0] = a - c, y[1] = b + c, y[2] = c - b, y[3] = b - d;
    }
    static void product(const vec *x, count stride, vec y[2]) {  // Aᵀ x
        const vec b = x[stride], c = x[2 * stride];
        y[0] = x[0] + b + c, y[1] = b - c - x[3 * stride];
    }
    static void gradient(const vec *x, count stride, vec y[4]) {  // A x
        const vec a = x[0], b = x[stride];
        y[0] = a, y[1] = a + b, y[2] = a - b, y[3] = -b;
    }
    static void weights(const vec *x, count stride, vec y[4]) {  // G x
        const vec a = x[0], b = x[stride], c = x[2 * stride];
        y[0] = a, y[1] = REAL(0.5) * (a + c + b), y[2] = REAL(0.5) * (a + c - b), y[3] = c;
    }
    static void sums(const vec *x, count stride, vec y[3]) {  // Gᵀ x
        const vec b = REAL(0.5) * x[stride], c = REAL(0.5) * x[2 * stride];
        y[0] = x[0] + b + c, y[1] = b - c, y[2] = b + c + x[3 * stride];
    }
};

struct Tiles4 {
    static constexpr int WINDOW = 6, N = 6, SIDE = 4, STEP = 4, BEGIN = -1;
    static void window(const vec *x, count stride, vec y[6]) {
        const vec a = x[0], b = x[stride], c = x[2 * stride], d = x[3 * stride],
                  e = x[4 * stride], f = x[5 * stride];
        const vec even = e - 4 * c, odd = d - 4 * b, half_even = e - c, half_odd = 2 * (d - b);
        y[0] = 4 * a - 5 * c + e;
        y[1] = even + odd, y[2] = even - odd;
        y[3] = half_even + half_odd, y[4] = half_even - half_odd;
        y[5] = 4 * b - 5 * d + f;
    }
    static void product(const vec *x, count stride, vec y[4]) {
        const vec even = x[stride] + x[2 * stride], odd = x[stride] - x[2 * stride];
        const vec far_even = x[3 * stride] + x[4 * stride], far_odd = x[3 * stride] - x[4 * stride];
        y[0] = x[0] + even + far_even, y[1] = odd + 2 * far_odd;
        y[2] = even + 4 * far_even, y[3] = odd + 8 * far_odd + x[5 * stride];
    }
    static void gradient(const vec *x, count stride, vec y[6]) {
        const vec a = x[0], b = x[stride], c = x[2 * stride], d = x[3 * stride];
        const vec even = a + c, odd = b + d, far_even = a + 4 * c, far_odd = 2 * b + 8 * d;
        y[0] = a, y[1] = even + odd, y[2] = even - odd;
        y[3] = far_even + far_odd, y[4] = far_even - far_odd, y[5] = d;
    }
    static void weights(const vec *x, count stride, vec y[6]) {
        const vec a = x[0], b = x[stride], c = x[2 * stride];
        const vec even = REAL(-1. / 6) * (a + c), odd = REAL(-1. / 6) * b;
        const vec far_even = REAL(1. / 24) * a + REAL(1. / 6) * c, far_odd = REAL(1. / 12) * b;
        y[0] = REAL(0.25) * a, y[1] = even + odd, y[2] = even - odd;
        y[3] = far_even + far_odd, y[4] = far_even - far_odd, y[5] = c;
    }
    static void sums(const vec *x, count stride, vec y[3]) {
        const vec even = REAL(-1. / 6) * (x[stride] + x[2 * stride]);
        const vec odd = REAL(1. / 6) * (x[2 * stride] - x[stride]);
        const vec far_even = x[3 * stride] + x[4 * stride], far_odd = x[3 * stride] - x[4 * stride];
        y[0] = REAL(0.25) * x[0] + even + REAL(1. / 24) * far_even;
        y[1] = odd + REAL(1. / 12) * far_odd;
        y[2] = even + REAL(1. / 6) * far_even + x[5 * stride];
    }
};

// Stride 2, with tiles of two outputs.
struct Strided {
    static constexpr int WINDOW = 5, N = 5, SIDE = 2, STEP = 4, BEGIN = -1;
    static void window(const vec *x, count stride, vec y[5]) {
        const vec a = x[0], c = x[2 * stride], e = x[4 * stride];
        y[0] = a - c, y[1] = c, y[2] = e - c, y[3] = x[stride], y[4] = x[3 * stride];
    }
    static void product(const vec *x, count stride, vec y[2]) {
        const vec b = x[stride];
        y[0] = x[0] + b + x[3 * stride], y[1] = b + x[2 * stride] + x[4 * stride];
    }
    static void gradient(const vec *x, count stride, vec y[5]) {
        const vec a = x[0], b = x[stride];
        y[0] = a, y[1] = a + b, y[2] = b, y[3] = a, y[4] = b;
    }
    static void weights(const vec *x, count stride, vec y[5]) {
        const vec a = x[0], b = x[stride], c = x[2 * stride];
        y[0] = a, y[1] = a + c, y[2] = c, y[3] = b, y[4] = b;
    }
    static void sums(const vec *x, count stride, vec y[3]) {
        const vec b = x[stride];
        y[0] = x[0] + b, y[1] = x[3 * stride] + x[4 * stride], y[2] = b + x[2 * stride];
    }
};

// The gradient of its input, with tiles of four pixels: even pixels meet one tap, odd ones two.
struct StridedInput {
    static constexpr int WINDOW = 3, N = 5, SIDE = 4, STEP = 2, BEGIN = 0;
    static void window(const vec *x, count stride, vec y[5]) {
        const vec a = x[0], b = x[stride];
        y[0] = a - b, y[1] = b, y[2] = x[2 * stride] - b, y[3] = a, y[4] = b;
    }
    static void product(const vec *x, count stride, vec y[4]) {
        const vec b = x[stride];
        y[0] = x[3 * stride], y[1] = x[0] + b, y[2] = x[4 * stride], y[3] = b + x[2 * stride];
    }
    static void weights(const vec *x, count stride, vec y[5]) { Strided::weights(x, stride, y); }
};

// A transform in two dimensions, columns first: out[i·OUT + j] from x[i·row + j·column].
template <int IN, int OUT, class Transform, class Store>
inline void transform_2d(const vec *x, count row, count column, Transform transform, Store store) {
    vec half[IN][OUT];
    for (int j = 0; j < IN; j++) transform(x + j * column, row, half[j]);
    for (int i = 0; i < OUT; i++) {
        vec out[OUT];
        transform(&half[0][i], OUT, out);
        for (int j = 0; j < OUT; j++) store(i, j, out[j]);
    }
}

// The next stride whose multiples fall into different parts of the first-level cache.
inline count spread(count vectors) { return vectors + ((10 - vectors) & 31); }

inline count tiles_of(const Shape &s, int side) {
    return count(s.examples) * (s.height / side) * (s.width / side);
}

// The starts of the tiles or windows from number `begin` on, which are `step` pixels apart. After
// the end the last one repeats.
struct Block {
    count at[TILES];
    Block(const Shape &s, int step, count begin, int tiles) {
        const count across = s.width / step, down = s.height / step;
        for (int i = 0; i < tiles; i++) {
            const count t = std::min(begin + i, tiles_of(s, step) - 1);
            at[i] = s.at(0, t / (across * down), t / across % down * step) + t % across * step;
        }
    }
};

// Transforms the windows of a block, for all channels: Bᵀ d B.
template <class F>
void transform_windows(const Shape &s, const vec *x, count begin, int tiles, vec *d, count place) {
    const Block block(s, F::STEP, begin, tiles), next(s, F::STEP, begin + tiles, tiles);
    for (int c = 0; c < s.channels; c++) {
        const vec *from = x + count(c) * s.channel + F::BEGIN * (s.row + 1);
        // Loads the next block's windows early: the processor does not foresee so many short rows.
        for (int t = 0; t < tiles; t++)
            for (int i = F::WINDOW - F::STEP; i < F::WINDOW; i++)
                for (int j = F::WINDOW - F::STEP; j < F::WINDOW; j += 2)
                    __builtin_prefetch(from + next.at[t] + i * s.row + j, 0, 2);
        for (int t = 0; t < tiles; t++) {
            vec *to = d + c * tiles + t;
            transform_2d<F::WINDOW, F::N>(from + block.at[t], s.row, 1, F::window,
                                          [&](int i, int j, const vec &v) {
                                              to[(F::N * i + j) * place] = v;
                                          });
        }
    }
}

// m[o][t] = Σ_c u[c][o] · d[c][t] for four outputs
template <int L>
__attribute__((noinline)) void tile_product(const REAL *u, const vec *d, vec *m, int channels,
                                            int tiles) {
    for (int t = 0; t < tiles; t += P) {
        vec sum[4][P] = {};
        for (int c = 0; c < channels; c++) {
            vec dc[P];
            for (int j = 0; j < P; j++) keep(dc[j] = d[c * tiles + t + j]);
            for (int o = 0; o < 4; o++) {
                vec uo = unpack<L>(u + (4 * c + o) * L);
                keep(uo);
                for (int j = 0; j < P; j++) sum[o][j] += uo * dc[j];
            }
        }
        for (int o = 0; o < 4; o++)
            for (int j = 0; j < P; j++) m[o * tiles + t + j] = sum[o][j];
    }
}

// The transforms G g Gᵀ of the weights, u[place][o / 4][c][o % 4]. Weights that lie there one after
// the other are transformed together.
template <class F>
void transform_weights(const REAL *w, int inputs, int outputs, bool flipped, REAL *u, int lanes) {
    constexpr int N = F::N;
    const count weights = count(inputs) * outputs;
    with_lanes(lanes, [&](auto L) {
        for (count first = 0; first < weights; first += V / L) {
            vec g[9];
            for (int i = 0; i < V / L; i++) {
                const count q = first + i, o = q / (4 * inputs) * 4 + q % 4, c = q / 4 % inputs;
                const REAL *from = w + 9 * L * (flipped ? c * outputs + o : o * inputs + c);
                for (int tap = 0; tap < 9; tap++)
                    std::memcpy(reinterpret_cast<REAL *>(g + tap) + i * L,
                                from + (flipped ? 8 - tap : tap) * L, L * sizeof(REAL));
            }
            transform_2d<3, N>(g, 3, 1, F::weights, [&](int i, int j, const vec &v) {
                std::memcpy(u + ((N * i + j) * weights + first) * L, &v, sizeof(v));
            });
        }
    });
}

// The layer's convolution or, with `flipped`, the gradient of its input from that of its output.
template <class F>
void winograd(const Shape &from, const Shape &to, const vec *x, const REAL *w, bool flipped, vec *y,
              const REAL *bias, int lanes) {
    constexpr int N = F::N, PLACES = N * N;
    const int inputs = from.channels, outputs = to.channels;
    const int most = PRODUCT_VECTORS / PLACES / (inputs + outputs);
    const int tiles = std::max(std::min(most, TILES) / P, 1) * P;
    const count place = spread(count(inputs) * tiles);
    const count product_place = spread(count(outputs) * tiles);
    const count weights = count(inputs) * outputs;  // for each place of a tile
    REAL *u = reinterpret_cast<REAL *>(scratch(scratch_weights, PLACES * weights * lanes / V));
    vec *d = scratch(scratch_windows, PLACES * place);
    vec *m = scratch(scratch_tiles, PLACES * product_place);
    transform_weights<F>(w, inputs, outputs, flipped, u, lanes);
    const count number = tiles_of(to, F::SIDE);
    for (count begin = 0; begin < number; begin += tiles) {
        transform_windows<F>(from, x, begin, tiles, d, place);
        with_lanes(lanes, [&](auto L) {
            for (int f = 0; f < PLACES; f++)
                for (int o = 0; o < outputs; o += 4)
                    tile_product<L>(u + (f * weights + count(o) * inputs) * L, d + f * place,
                                    m + f * product_place + count(o) * tiles, inputs, tiles);
        });
        const Block block(to, F::SIDE, begin, tiles);
        const int present = std::min<count>(tiles, number - begin);
        for (int o = 0; o < outputs; o++) {
            const vec b = bias ? unpack(bias + o * lanes, lanes) : vec{};
            for (int t = 0; t < present; t++) {
                vec *out = y + count(o) * to.channel + block.at[t];
                transform_2d<N, F::SIDE>(m + count(o) * tiles + t, N * product_place, product_place,
                                   F::product,
                                   [&](int k, int j, const vec &v) {
                                       out[k * to.row + j] = v + b;
                                   });
            }
        }
    }
}

// s[o][c] += Σ_t e[o][t] · d[c][t] for four outputs and C inputs
template <int C>
__attribute__((noinline)) void tile_gradient(const vec *e, const vec *d, vec *s, int stride,
                                             int tiles, int present) {
    vec sum[4][C];
    for (int o = 0; o < 4; o++)
        for (int j = 0; j < C; j++) sum[o][j] = s[o * stride + j];
    for (int t = 0; t < present; t++) {
        vec dc[C];
        for (int j = 0; j < C; j++) keep(dc[j] = d[j * tiles + t]);
        for (int o = 0; o < 4; o++) {
            vec eo = e[o * tiles + t];
            keep(eo);
            for (int j = 0; j < C; j++) sum[o][j] += eo * dc[j];
        }
    }
    for (int o = 0; o < 4; o++)
        for (int j = 0; j < C; j++) s[o * stride + j] = sum[o][j];
}

// The same for all inputs.
inline void tile_gradients(const vec *e, const vec *d, vec *s, int inputs, int tiles, int present) {
    int c = 0;
    // Ends with pairs, not with a single one, whose additions would wait for each other.
    for (; inputs - c >= 5 || inputs - c == 3; c += 3)
        tile_gradient<3>(e, d + c * tiles, s + c, inputs, tiles, present);
    for (; inputs - c >= 2; c += 2)
        tile_gradient<2>(e, d + c * tiles, s + c, inputs, tiles, present);
    for (; c < inputs; c++) tile_gradient<1>(e, d + c * tiles, s + c, inputs, tiles, present);
}

// dw = Gᵀ[Σ (A dz Aᵀ) ⊙ (Bᵀ d B)]G over all tiles
template <class F>
void winograd_weight_gradient(const Shape &in, const Shape &out, const vec *x, const vec *dz,
                              REAL *dw, int lanes) {
    constexpr int N = F::N, PLACES = N * N;
    const int inputs = in.channels, outputs = out.channels;
    const int most = GRADIENT_VECTORS / PLACES / (inputs + GRADIENT_OUTPUTS);
    const int tiles = std::max(8, std::min(most, TILES));
    const count window_place = spread(count(inputs) * tiles);
    const count tile_place = spread(count(GRADIENT_OUTPUTS) * tiles);
    const count sum_place = spread(count(inputs) * outputs);
    vec *d = scratch(scratch_windows, PLACES * window_place);
    vec *e = scratch(scratch_tiles, PLACES * tile_place);
    vec *s = scratch(scratch_weights, PLACES * sum_place);
    std::fill(s, s + PLACES * sum_place, vec{});
    const count number = tiles_of(out, F::SIDE);
    for (count begin = 0; begin < number; begin += tiles) {
        const Block block(out, F::SIDE, begin, tiles);
        const int present = std::min<count>(tiles, number - begin);
        transform_windows<F>(in, x, begin, tiles, d, window_place);
        // A few outputs at a time leave room for many tiles, so that sums are rarely reloaded.
        for (int first = 0; first < outputs; first += GRADIENT_OUTPUTS) {
            const int last = std::min(first + GRADIENT_OUTPUTS, outputs);
            for (int o = first; o < last; o++)
                for (int t = 0; t < present; t++) {
                    vec *to = e + (o - first) * tiles + t;
                    transform_2d<F::SIDE, N>(dz + count(o) * out.channel + block.at[t], out.row, 1,
                                             F::gradient, [&](int i, int j, const vec &v) {
                                                 to[(N * i + j) * tile_place] = v;
                                             });
                }
            for (int f = 0; f < PLACES; f++)
                for (int o = first; o < last; o += 4)
                    tile_gradients(e + f * tile_place + count(o - first) * tiles,
                                   d + f * window_place, s + f * sum_place + count(o) * inputs,
                                   inputs, tiles, present);
        }
    }
    const count weights = count(inputs) * outputs;
    const vec *sums = s;
    count place = sum_place;
    if (lanes < V) {
        place = weights * lanes / V;
        vec *to = scratch(scratch_sums, PLACES * place);
        for (int f = 0; f < PLACES; f++)
            add_parts(s + f * sum_place, weights, reinterpret_cast<REAL *>(to + f * place), lanes);
        sums = to;
    }
    with_lanes(lanes, [&](auto L) {
        for (count i = 0; i < weights * L / V; i++)
            transform_2d<N, 3>(
                sums + i, N * place, place, F::sums,
                [&](int k, int j, const vec &v) {
                    for (int n = 0; n < V / L; n++)
                        std::memcpy(dw + (9 * (i * (V / L) + n) + 3 * k + j) * L,
                                    reinterpret_cast<const REAL *>(&v) + n * L, L * sizeof(REAL));
                });
    });
}

}  // namespace
