// Training of K networks at once on a CPU, up to eight to a vector.
//
// A vector holds the same weight, pixel or gradient of V places. At small m each place is a run, a
// lane of its own; at larger m `parts` neighbouring places are one run, each with its part of the
// batch and the same weights. Every operation treats all places alike and only `across` mixes those
// of one run, so a lane's result does not depend on its neighbours, and no shape is too small to
// fill a vector: at m = 2 the arithmetic is as dense as at m = 2048. Buffers are
// [channel][example][row][column] of vectors, rows and columns with a border of zeros where a
// convolution reads it.
//
// Offsets and strides count vectors where nothing else is said. The structures are mirrored in
// `structures.py`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#ifndef REAL
#define REAL float
#endif
#ifndef V
#define V 8
#endif

typedef REAL vec __attribute__((vector_size(V * sizeof(REAL))));
typedef int64_t count;

struct Shape {
    int32_t channels, examples, height, width;
    int32_t channel, example, row, origin;  // strides, and where pixel (0, 0) is
    count at(int c, int n, int y) const {
        return origin + count(c) * channel + count(n) * example + count(y) * row;
    }
};

// y[o][p] = Σ_r w[o·weight_stride + w_offset[r]] · x[x_base[p] + x_offset[r]]: a convolution, the
// gradient of its input, or a fully connected layer, as the tables say.
struct Product {
    int32_t rows, outputs, positions, tile;  // rows: terms of a sum; tile: positions kept in cache
    int32_t weight_stride, out_stride;
    const int64_t *x_offset, *w_offset, *x_base, *y_base;  // in bytes
};

enum Norm { NO_NORM = 0, RUNNING = 1, OWN = 2 };
// By the tables of `forward` and `input`, or Winograd's in tiles of so many outputs a side.
enum Algorithm { TABLES = 0, TILES_2 = 1, TILES_4 = 2, STRIDED = 3 };
enum Pool { NO_POOL = 0, MAX_POOL = 1, MEAN_POOL = 2 };

// product → norm → + shortcut → relu → pool
struct Layer {
    Product forward;
    const Product *input;  // of the input's gradient: one for each parity of a strided conv
    int32_t inputs;
    int32_t norm, channels_per_group, examples_per_group, parts_per_group;
    int32_t stride;  // of the shortcut, 0 where there is none
    int32_t relu, pool, pool_top, pool_left;
    int32_t algorithm;  // an `Algorithm`
    count weight, bias, scale, shift;  // offsets into the parameters, -1 where absent
    count running_mean, running_var;   // offsets into the statistics
    double eps, momentum;
    Shape in, out, pooled, skip;  // of x, of z and y, of the pooled output, of the shortcut
    const vec *x;             // the previous layer's output
    vec *dx;
    vec *z, *dz, *y, *dy, *pooled_y, *pooled_dy;
    vec *winner;  // of a max pool: number of the tap
    vec *mean, *invstd, *variance;  // of each group; the last one unbiased
    const vec *skip_x;
    vec *skip_dx;
};

struct Images {
    const REAL *pixels;
    const int64_t *labels;
    count image, channel, row, column;  // strides in numbers
    count channels, height, width;
};

// Where the stream stands: per place, tables of the examples from the first update on.
struct Stream {
    const int32_t *index[V];
    const int8_t *top[V], *left[V], *flip[V];  // null without augmentation
    int32_t pad;
};

struct Network {
    Layer *layers;
    int32_t count_layers, batch_size, classes, parts;  // batch_size: examples of a place
    Shape input_shape;
    vec *input;  // of the first layer
    vec *gradient;  // of the parameters
    count parameters;
    int64_t *labels;  // [example][place]
};

struct Group {
    vec *theta, *statistics;
    double base_lr[V], lr_decay[V];  // η̃, and η·λ
    double loss[V];
    int64_t correct[V];
    int64_t diverged_at[V];  // 0 while a run lives
};

namespace {

// Positions in a block of registers: four outputs of each, beside what is multiplied.
#if defined(__AVX512VL__)
constexpr int P = 6;
#else
constexpr int P = 3;
#endif
constexpr int CHUNK = 72;   // terms whose weights stay in the first-level cache
constexpr int RUN = 64;     // positions of a weight gradient's inner loop

// Keeps a vector that several products share in a register: GCC would load it for each of them.
inline void keep(vec &x) {
#if defined(__AVX512VL__)
    asm("" : "+v"(x));
#elif defined(__AVX__)
    if (sizeof(vec) == 32) asm("" : "+x"(x));
#endif
    (void)x;
}

// The sum over the parts of each run, the same bits in all of its places.
inline vec across(vec x, int parts) {
    static_assert(V == 8, "neighbours are written out for eight places");
    if (parts > 1) x += vec{x[1], x[0], x[3], x[2], x[5], x[4], x[7], x[6]};
    if (parts > 2) x += vec{x[2], x[3], x[0], x[1], x[6], x[7], x[4], x[5]};
    if (parts > 4) x += vec{x[4], x[5], x[6], x[7], x[0], x[1], x[2], x[3]};
    return x;
}

// Not `vec{} + value`: that addition would be kept, for the sake of -0.
inline vec all(REAL x) { return vec{x, x, x, x, x, x, x, x}; }

// Denormal numbers would slow a vanishing lane, and its neighbours with it, a hundredfold.
struct FlushDenormals {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

inline const char *bytes_from(const vec *start, count bytes) {
    return reinterpret_cast<const char *>(start) + bytes;
}
inline const vec &vector_at(const char *bytes) { return *reinterpret_cast<const vec *>(bytes); }

// Weights that are the same in all places are kept as single numbers, in an eighth of the cache.
inline void pack(vec &to, const vec &from) { to = from; }
inline void pack(REAL &to, const vec &from) { to = from[0]; }
inline vec unpack(const vec &from) { return from; }
inline vec unpack(REAL from) { return all(from); }

// The blocks are functions of their own: inlined, GCC keeps too little of them in registers.
template <int O, class Weight>
__attribute__((noinline)) void product_block(const Product &f, const vec *x, const Weight *w,
                                             vec *y, const vec *bias, int p, int from, int to) {
    vec sum[O][P];
    const char *xs[P];
    vec *ys[P];
    for (int j = 0; j < P; j++) xs[j] = bytes_from(x, f.x_base[p + j]);
    for (int j = 0; j < P; j++)
        ys[j] = const_cast<vec *>(&vector_at(bytes_from(y, f.y_base[p + j])));
    for (int o = 0; o < O; o++)
        for (int j = 0; j < P; j++)
            sum[o][j] = from ? ys[j][count(o) * f.out_stride] : (bias ? bias[o] : vec{});
    const count *x_offset = f.x_offset;
    for (int r = from; r < to; r++, w += O) {
        vec xr[P];
        for (int j = 0; j < P; j++) keep(xr[j] = vector_at(xs[j] + x_offset[r]));
        for (int o = 0; o < O; o++) {
            vec wr = unpack(w[o]);
            keep(wr);
            for (int j = 0; j < P; j++) sum[o][j] += wr * xr[j];
        }
    }
    for (int o = 0; o < O; o++)
        for (int j = 0; j < P; j++) ys[j][count(o) * f.out_stride] = sum[o][j];
}

template <int O, class Weight>
void product_rows(const Product &f, const vec *x, const vec *w, vec *y, const vec *bias, int begin,
                  int end) {
    Weight packed[CHUNK * O];  // weights in the order of their use
    for (int from = 0; from < f.rows; from += CHUNK) {
        const int to = std::min(from + CHUNK, f.rows);
        for (int o = 0; o < O; o++)
            for (int r = from; r < to; r++)
                pack(packed[(r - from) * O + o],
                     vector_at(bytes_from(w + count(o) * f.weight_stride, f.w_offset[r])));
        for (int p = begin; p < end; p += P)
            product_block<O, Weight>(f, x, packed, y, bias, p, from, to);
    }
}

// Products of the same x, one block of positions of each after another, while x is in the cache.
template <class Weight>
void products(const Product *each, int number, const vec *x, const vec *w, vec *y,
              const vec *bias) {
    int positions = 0;
    for (int i = 0; i < number; i++) positions = std::max(positions, each[i].positions);
    for (int begin = 0; begin < positions; begin += each->tile)
        for (int i = 0; i < number; i++) {
            // The tables repeat the last position up to a multiple of P: written twice, the same.
            const Product &f = each[i];
            const int end = std::min(begin + each->tile, f.positions);
            int o = 0;
            for (; o + 4 <= f.outputs; o += 4)
                product_rows<4, Weight>(f, x, w + count(o) * f.weight_stride,
                                        y + count(o) * f.out_stride, bias ? bias + o : nullptr,
                                        begin, end);
            for (; o < f.outputs; o++)
                product_rows<1, Weight>(f, x, w + count(o) * f.weight_stride,
                                        y + count(o) * f.out_stride, bias ? bias + o : nullptr,
                                        begin, end);
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
    for (; r + P <= f.rows; r += P) gradient_block<O, P>(f, x, dz, dw, r, begin, end);
    for (; r + 3 <= f.rows; r += 3) gradient_block<O, 3>(f, x, dz, dw, r, begin, end);
    for (; r < f.rows; r++) gradient_block<O, 1>(f, x, dz, dw, r, begin, end);
}

// dw[o][r] = Σ_p dz[o][p] · x[p + r]
void weight_gradient(const Product &f, const vec *x, const vec *dz, vec *dw) {
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
}

// Winograd's F(M×M, 3×3) (Lavin and Gray, 2016) for 3×3 convolutions: a tile of M×M outputs is
// Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A over windows d, at 16 products for 36 (M = 2), or 36 for 144 (M = 4).
// At stride 2 the odd pixels meet two taps of the kernel, an F(2, 2), and the even ones the third:
// 25 products for 36. One place's number is one element of a vector, so a transform is additions of
// whole vectors. The sums over channels are a matrix product for each number of a transformed
// window, on blocks of tiles that the second-level cache holds.

constexpr int TILES = 36;                // of a block, at most
constexpr int PRODUCT_VECTORS = 8192;    // of a block's transformed windows
constexpr int GRADIENT_VECTORS = 24576;  // of the windows and the tiles of a weight gradient's
constexpr int GRADIENT_OUTPUTS = 4;      // whose tiles are there together

// What an algorithm is made of, in one dimension: the transforms of numbers that are `stride` apart,
// how many of them, the side of a tile, the pixels from one window to the next, and the pixel at
// which the first one begins.
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

// Stride 2, tiles of two outputs.
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

// The gradient of its input, tiles of four pixels: the even ones meet one tap, the odd ones two.
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

// A transform in two dimensions: out[i·OUT + j] from x[i·row + j·column], columns first.
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

// Memory that a thread keeps from one call to the next.
struct alignas(2 * sizeof(vec)) Pair {
    vec vectors[2];
};
vec *scratch(std::vector<Pair> &memory, count vectors) {
    if (count(memory.size()) * 2 < vectors) {
        memory.clear();
        memory.resize((vectors + 1) / 2);
    }
    return memory[0].vectors;
}
thread_local std::vector<Pair> scratch_windows, scratch_tiles, scratch_weights;

// A stride between places that puts them into different parts of the first-level cache.
inline count spread(count vectors) { return vectors + ((10 - vectors) & 31); }

inline count tiles_of(const Shape &s, int side) {
    return count(s.examples) * (s.height / side) * (s.width / side);
}

// Where the tiles or windows from `begin` on start, `step` pixels from one to the next; the last one
// repeats after the end.
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

// The windows of a block of all channels: Bᵀ d B.
template <class F>
void transform_windows(const Shape &s, const vec *x, count begin, int tiles, vec *d, count place) {
    const Block block(s, F::STEP, begin, tiles), next(s, F::STEP, begin + tiles, tiles);
    for (int c = 0; c < s.channels; c++) {
        const vec *from = x + count(c) * s.channel + F::BEGIN * (s.row + 1);
        // The processor foresees none of so many short rows.
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
template <class Weight>
__attribute__((noinline)) void tile_product(const Weight *u, const vec *d, vec *m, int channels,
                                            int tiles) {
    for (int t = 0; t < tiles; t += P) {
        vec sum[4][P] = {};
        for (int c = 0; c < channels; c++) {
            vec dc[P];
            for (int j = 0; j < P; j++) keep(dc[j] = d[c * tiles + t + j]);
            for (int o = 0; o < 4; o++) {
                vec uo = unpack(u[4 * c + o]);
                keep(uo);
                for (int j = 0; j < P; j++) sum[o][j] += uo * dc[j];
            }
        }
        for (int o = 0; o < 4; o++)
            for (int j = 0; j < P; j++) m[o * tiles + t + j] = sum[o][j];
    }
}

// The layer's convolution; or, flipped, the gradient of its input from that of its output.
template <class F, class Weight>
void winograd(const Shape &from, const Shape &to, const vec *x, const vec *w, bool flipped, vec *y,
              const vec *bias) {
    constexpr int N = F::N, PLACES = N * N;
    const int inputs = from.channels, outputs = to.channels;
    const int most = PRODUCT_VECTORS / PLACES / (inputs + outputs);
    const int tiles = std::max(std::min(most, TILES) / P, 1) * P;
    const count place = spread(count(inputs) * tiles);
    const count product_place = spread(count(outputs) * tiles);
    const count weights = count(inputs) * outputs;  // of a place
    auto *u = reinterpret_cast<Weight *>(scratch(scratch_weights, PLACES * weights));
    vec *d = scratch(scratch_windows, PLACES * place);
    vec *m = scratch(scratch_tiles, PLACES * product_place);
    for (int o = 0; o < outputs; o++)
        for (int c = 0; c < inputs; c++) {
            const vec *g = w + 9 * (flipped ? count(c) * outputs + o : count(o) * inputs + c);
            Weight *out = u + (count(o / 4) * inputs + c) * 4 + o % 4;
            transform_2d<3, N>(flipped ? g + 8 : g, flipped ? -3 : 3, flipped ? -1 : 1,
                               F::weights,
                               [&](int i, int j, const vec &v) {
                                   pack(out[(N * i + j) * weights], v);
                               });
        }
    const count number = tiles_of(to, F::SIDE);
    for (count begin = 0; begin < number; begin += tiles) {
        transform_windows<F>(from, x, begin, tiles, d, place);
        for (int f = 0; f < PLACES; f++)
            for (int o = 0; o < outputs; o += 4)
                tile_product(u + f * weights + count(o) * inputs, d + f * place,
                             m + f * product_place + count(o) * tiles, inputs, tiles);
        const Block block(to, F::SIDE, begin, tiles);
        const int present = std::min<count>(tiles, number - begin);
        for (int o = 0; o < outputs; o++)
            for (int t = 0; t < present; t++) {
                const vec b = bias ? bias[o] : vec{};
                vec *out = y + count(o) * to.channel + block.at[t];
                transform_2d<N, F::SIDE>(m + count(o) * tiles + t, N * product_place, product_place,
                                   F::product,
                                   [&](int k, int j, const vec &v) {
                                       out[k * to.row + j] = v + b;
                                   });
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
    for (; inputs - c >= P; c += P)
        tile_gradient<P>(e, d + c * tiles, s + c, inputs, tiles, present);
    for (; P > 4 && inputs - c >= 4; c += 4)
        tile_gradient<4>(e, d + c * tiles, s + c, inputs, tiles, present);
    // Pairs rather than a single one in the end: it would wait for its own sums.
    for (; inputs - c >= 5 || inputs - c == 3; c += 3)
        tile_gradient<3>(e, d + c * tiles, s + c, inputs, tiles, present);
    for (; inputs - c >= 2; c += 2)
        tile_gradient<2>(e, d + c * tiles, s + c, inputs, tiles, present);
    for (; c < inputs; c++) tile_gradient<1>(e, d + c * tiles, s + c, inputs, tiles, present);
}

// dw = Gᵀ[Σ (A dz Aᵀ) ⊙ (Bᵀ d B)]G over all tiles
template <class F>
void winograd_weight_gradient(const Shape &in, const Shape &out, const vec *x, const vec *dz,
                              vec *dw) {
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
        // Few outputs at a time leave the cache to many tiles, so that sums are seldom reloaded.
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
    for (count i = 0; i < count(outputs) * inputs; i++)
        transform_2d<N, 3>(s + i, N * sum_place, sum_place, F::sums,
                           [&](int k, int j, const vec &v) { dw[9 * i + 3 * k + j] = v; });
}

// Calls `row(start of a row)` for a part of a buffer.
template <class Row>
inline void rows_of(const Shape &s, int c0, int c1, int n0, int n1, Row row) {
    for (int c = c0; c < c1; c++)
        for (int n = n0; n < n1; n++)
            for (int y = 0; y < s.height; y++) row(s.at(c, n, y));
}

// Bands of rows that the first-level cache holds.
constexpr int BAND = 256;  // vectors
template <class Body>
inline void each_band(const Shape &s, int n0, int n1, Body body) {
    const int rows = std::max(1, BAND / s.width);
    for (int n = n0; n < n1; n++)
        for (int y = 0; y < s.height; y += rows) body(n, y, std::min(y + rows, s.height));
}

// Sums over up to 4,096 bands lose no more than pairwise ones do: a row is summed first.
template <class Term>
inline vec sum_band(const Shape &s, int c, int n, int y0, int y1, Term term) {
    vec band{};
    for (int y = y0; y < y1; y++) {
        vec sum[4] = {};  // so that an addition need not wait for the one before
        const count at = s.at(c, n, y);
        int i = 0;
        for (; i + 4 <= s.width; i += 4)
            for (int j = 0; j < 4; j++) sum[j] += term(at + i + j);
        for (; i < s.width; i++) sum[0] += term(at + i);
        band += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return band;
}

vec root(vec x) {
    for (int v = 0; v < V; v++) x[v] = std::sqrt(x[v]);
    return x;
}

// Groups of a norm: whole channels over sub-batches (batch, ghost), or single examples over
// channel groups (group).
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

// Mean and inverse deviation of a group. The sums of squares of bands of rows are combined (Chan et
// al., 1979), so that a band is read twice while the first-level cache holds it.
void norm_moments(const Layer &l, const Groups &g) {
    const Shape &s = l.out;
    vec mean{}, squares{};
    REAL before = 0;
    for (int c = g.c0; c < g.c1; c++)
        each_band(s, g.n0, g.n1, [&](int n, int y0, int y1) {
            const REAL pixels = REAL(y1 - y0) * s.width, share = pixels / (before + pixels);
            const vec own = sum_band(s, c, n, y0, y1, [&](count i) { return l.z[i]; }) / pixels;
            const vec step = own - mean;
            squares += sum_band(s, c, n, y0, y1, [&](count i) {
                const vec d = l.z[i] - own;
                return d * d;
            });
            squares += step * step * (before * share);
            mean += step * share;
            before += pixels;
        });
    const vec own = mean;
    mean = across(own, l.parts_per_group) / REAL(l.parts_per_group);
    squares += (own - mean) * (own - mean) * before;
    squares = across(squares, l.parts_per_group);
    const REAL n = values(s, g) * l.parts_per_group;
    l.mean[g.number] = mean;
    l.invstd[g.number] = 1 / root(squares / n + REAL(l.eps));
    l.variance[g.number] = squares / (n - 1);
}

// The running statistics follow the examples' mean of the groups of a channel.
void update_statistics(const Layer &l, vec *statistics, int parts) {
    vec mean{}, variance{};
    each_group(l, [&](const Groups &g) {
        const REAL share = REAL(g.n1 - g.n0) / l.out.examples;
        if (g.n0 == 0) mean = variance = vec{};
        mean += share * l.mean[g.number];
        variance += share * l.variance[g.number];
        if (g.n1 < l.out.examples) return;
        mean = across(mean, parts) / REAL(parts);
        variance = across(variance, parts) / REAL(parts);
        vec &m = statistics[l.running_mean + g.c0], &v = statistics[l.running_var + g.c0];
        const REAL momentum = REAL(l.momentum);
        m = (1 - momentum) * m + momentum * mean;
        v = (1 - momentum) * v + momentum * variance;
    });
}

// The line that a norm draws for a channel of a group, y = a·z + b.
struct Norming {
    vec a, b;
    Norming(const Layer &l, const vec *theta, int c, int group)
        : a(theta[l.scale + c] * l.invstd[group]), b(theta[l.shift + c] - l.mean[group] * a) {}
};

// y = relu(a·z + b + shortcut) of one channel of one example; the shortcut adds nothing to the
// channels that its source does not have (option A).
void activate(const Layer &l, int c, int n, vec a, vec b) {
    const Shape &s = l.out;
    const bool skip = l.stride && c < l.skip.channels;
    for (int y = 0; y < s.height; y++) {
        const count at = s.at(c, n, y);
        const vec *from = skip ? l.skip_x + l.skip.at(c, n, y * l.stride) : nullptr;
        for (int i = 0; i < s.width; i++) {
            vec value = l.norm ? a * l.z[at + i] + b : l.z[at + i];
            if (skip) value += from[i * l.stride];
            // Written so that NaN stays NaN.
            l.y[at + i] = l.relu ? (value < 0 ? vec{} : value) : value;
        }
    }
}

void norm_and_activate(const Layer &l, const vec *theta, vec *statistics, bool training,
                       int parts) {
    const Shape &s = l.out;
    if (l.norm && (training || l.norm == OWN)) {
        each_group(l, [&](const Groups &g) {
            norm_moments(l, g);
            for (int c = g.c0; c < g.c1; c++) {
                const Norming norming(l, theta, c, g.number);
                for (int n = g.n0; n < g.n1; n++) activate(l, c, n, norming.a, norming.b);
            }
        });
        if (l.norm == RUNNING) update_statistics(l, statistics, parts);
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

// dy becomes the gradient before the relu, here called g.
void relu_gradient(const Layer &l, int c, int n, int y0, int y1) {
    if (!l.relu) return;
    for (int y = y0; y < y1; y++) {
        const count at = l.out.at(c, n, y);
        for (int i = 0; i < l.out.width; i++)
            l.dy[at + i] = l.y[at + i] > 0 ? l.dy[at + i] : vec{};
    }
}

// Adds Σ g and Σ g·(z − mean) of a band. Where dz has a place of its own, dy becomes g for the
// shortcut's sake; elsewhere the relu's mask follows from z, so that neither y is read nor dy
// written.
void gradient_sums(const Layer &l, int c, int n, int y0, int y1, vec mean, const Norming &norming,
                   vec &sum, vec &dot) {
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

void norm_gradient(const Layer &l, const vec *theta, vec *gradient) {
    const Shape &s = l.out;
    const bool mask = l.relu && l.dz == l.dy;
    for (int c = 0; c < s.channels; c++) gradient[l.scale + c] = gradient[l.shift + c] = vec{};
    each_group(l, [&](const Groups &g) {
        const vec mean = l.mean[g.number], invstd = l.invstd[g.number];
        vec first{}, second{};  // Σ scale·g and Σ scale·g·x̂ over the group
        for (int c = g.c0; c < g.c1; c++) {
            const Norming norming(l, theta, c, g.number);
            const vec scale = theta[l.scale + c];
            vec sum{}, dot{};
            each_band(s, g.n0, g.n1, [&](int n, int y0, int y1) {
                gradient_sums(l, c, n, y0, y1, mean, norming, sum, dot);
            });
            dot *= invstd;
            gradient[l.shift + c] += sum;
            gradient[l.scale + c] += dot;
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

// The tap (row · 3 + column) of a 3×3 window of stride 2, and whether it lies in the image.
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

// A layer's convolution, or the gradient of its input, by the algorithm that was chosen for it.
template <class Weight>
void convolve(const Layer &l, bool flipped, const vec *w, const vec *bias) {
    const Shape &from = flipped ? l.out : l.in, &to = flipped ? l.in : l.out;
    const vec *x = flipped ? l.dz : l.x;
    vec *y = flipped ? l.dx : l.z;
    if (l.algorithm == TILES_4)
        winograd<Tiles4, Weight>(from, to, x, w, flipped, y, bias);
    else if (l.algorithm == TILES_2)
        winograd<Tiles2, Weight>(from, to, x, w, flipped, y, bias);
    else if (l.algorithm == STRIDED && flipped)
        winograd<StridedInput, Weight>(from, to, x, w, flipped, y, bias);
    else if (l.algorithm == STRIDED)
        winograd<Strided, Weight>(from, to, x, w, flipped, y, bias);
    else if (flipped)
        products<Weight>(l.input, l.inputs, x, w, y, bias);
    else
        products<Weight>(&l.forward, 1, x, w, y, bias);
}

void convolve(const Network &net, const Layer &l, bool flipped, const vec *w, const vec *bias) {
    // Only a run that has all places to itself has the same weights in all of them.
    net.parts == V ? convolve<REAL>(l, flipped, w, bias) : convolve<vec>(l, flipped, w, bias);
}

void forward(const Network &net, const vec *theta, vec *statistics, bool training) {
    for (int i = 0; i < net.count_layers; i++) {
        const Layer &l = net.layers[i];
        const vec *w = theta + l.weight, *bias = l.bias < 0 ? nullptr : theta + l.bias;
        convolve(net, l, false, w, bias);
        if (l.y != l.z || l.norm || l.stride || l.relu)
            norm_and_activate(l, theta, statistics, training, net.parts);
        if (l.pool) pool(l);
    }
}

void backward(const Network &net, const vec *theta) {
    for (int i = net.count_layers - 1; i >= 0; i--) {
        const Layer &l = net.layers[i];
        if (l.pool) pool_gradient(l);
        const Shape &s = l.out;
        if (l.norm)
            norm_gradient(l, theta, net.gradient);
        else
            for (int c = 0; c < s.channels; c++)
                each_band(s, 0, s.examples,
                          [&](int n, int y0, int y1) { relu_gradient(l, c, n, y0, y1); });
        if (l.bias >= 0)
            for (int c = 0; c < s.channels; c++) {
                vec sum{};
                each_band(s, 0, s.examples, [&](int n, int y0, int y1) {
                    sum += sum_band(s, c, n, y0, y1, [&](count at) { return l.dz[at]; });
                });
                net.gradient[l.bias + c] = sum;
            }
        const vec *w = theta + l.weight;
        vec *dw = net.gradient + l.weight;
        if (l.algorithm == TILES_4)
            winograd_weight_gradient<Tiles4>(l.in, s, l.x, l.dz, dw);
        else if (l.algorithm == TILES_2)
            winograd_weight_gradient<Tiles2>(l.in, s, l.x, l.dz, dw);
        else if (l.algorithm == STRIDED)
            winograd_weight_gradient<Strided>(l.in, s, l.x, l.dz, dw);
        else
            weight_gradient(l.forward, l.x, l.dz, dw);
        if (l.dx) convolve(net, l, true, w, nullptr);
        // A block's second layer has left the gradient of the sum in its dy; the first layer, whose
        // input the shortcut shares, comes next and adds it.
        if (i + 1 < net.count_layers && net.layers[i + 1].stride) {
            const Layer &sum = net.layers[i + 1];
            for (int c = 0; c < sum.skip.channels; c++)
                for (int n = 0; n < sum.out.examples; n++)
                    for (int y = 0; y < sum.out.height; y++) {
                        const vec *from = sum.dy + sum.out.at(c, n, y);
                        vec *to = sum.skip_dx + sum.skip.at(c, n, y * sum.stride);
                        for (int x = 0; x < sum.out.width; x++) to[x * sum.stride] += from[x];
                    }
        }
    }
}

void gather(const Network &net, const Images &images, const Stream &stream, count first) {
    const Shape &s = net.input_shape;
    for (int n = 0; n < net.batch_size; n++)
        for (int v = 0; v < V; v++) {
            const count p = first + n;
            const count image = stream.index[v][p];
            const bool augment = stream.top[v] != nullptr;
            const int top = augment ? stream.top[v][p] - stream.pad : 0;
            const int left = augment ? stream.left[v][p] - stream.pad : 0;
            const bool flip = augment && stream.flip[v][p];
            net.labels[n * V + v] = image < 0 ? -1 : images.labels[image];
            const REAL *from = images.pixels + std::max(image, count(0)) * images.image;
            for (int c = 0; c < images.channels; c++)
                for (int y = 0; y < images.height; y++) {
                    REAL *to = reinterpret_cast<REAL *>(net.input + s.at(c, n, y)) + v;
                    const int row = y + top;
                    const bool inside = row >= 0 && row < images.height;
                    const REAL *line = from + c * images.channel + row * images.row;
                    for (int x = 0; x < images.width; x++) {
                        const int column = (flip ? images.width - 1 - x : x) + left;
                        const bool there = inside && column >= 0 && column < images.width;
                        to[count(x) * V] = there ? line[column * images.column] : REAL(0);
                    }
                }
        }
}

// Cross-entropy of every run, hits, and the gradient of the summed loss in the logits.
void loss_and_gradient(const Network &net, double *loss, int64_t *hits, bool training) {
    const Layer &last = net.layers[net.count_layers - 1];
    const count stride = last.out.channel;
    vec total{};  // summed in the lanes' precision, so that it overflows where a plain run's does
    for (int v = 0; v < V; v++) hits[v] = 0;
    for (int n = 0; n < net.batch_size; n++) {
        const count at = last.out.at(0, n, 0);
        for (int v = 0; v < V; v++) {
            const int64_t label = net.labels[n * V + v];
            if (label < 0) continue;
            auto logit = [&](int c) { return last.y[at + c * stride][v]; };
            int best = 0;
            for (int c = 1; c < net.classes; c++)
                if (logit(best) == logit(best) && !(logit(c) <= logit(best))) best = c;
            const REAL peak = logit(best);
            REAL sum = 0;
            for (int c = 0; c < net.classes; c++) sum += std::exp(logit(c) - peak);
            const REAL log_sum = std::log(sum);
            total[v] += log_sum - (logit(label) - peak);
            hits[v] += best == label;
            if (training)
                for (int c = 0; c < net.classes; c++)
                    last.dy[at + c * stride][v] =
                        std::exp(logit(c) - peak - log_sum) - (c == label ? REAL(1) : REAL(0));
        }
    }
    total = across(total, net.parts);
    for (int v = 0; v < V; v++) loss[v] = total[v];
    for (int first = 0; first < V; first += net.parts) {
        const int64_t sum = std::accumulate(hits + first, hits + first + net.parts, int64_t(0));
        std::fill(hits + first, hits + first + net.parts, sum);
    }
}

// θ ← θ·(1 − η·λ) − η̃·Σ∇L_i(θ) (eq. 5 with coupled decay); returns 0 for a run of finite weights
// and NaN for another.
vec update(const Network &net, Group &group, double factor) {
    vec decay{}, step{}, check{};
    for (int v = 0; v < V; v++) {
        decay[v] = REAL(1 - factor * group.lr_decay[v]);
        step[v] = REAL(factor * group.base_lr[v]);
    }
    for (count i = 0; i < net.parameters; i++) {
        const vec value = group.theta[i] * decay - step * across(net.gradient[i], net.parts);
        group.theta[i] = value;
        check += value * 0;
    }
    return check;
}

}  // namespace

extern "C" {

int lanes_per_vector() { return V; }

// `updates` updates of a group from `first` on; `factor` is the schedule's multiple of η for each
// of them.
void train(const Network *net, Group *group, const Images *images, const Stream *stream,
           const double *factor, int64_t first, int64_t updates) {
    const FlushDenormals flush;
    double loss[V];
    int64_t hits[V];
    for (count i = 0; i < updates; i++) {
        gather(*net, *images, *stream, i * net->batch_size);
        forward(*net, group->theta, group->statistics, true);
        loss_and_gradient(*net, loss, hits, true);
        backward(*net, group->theta);
        const vec check = update(*net, *group, factor[i]);
        bool alive = false;
        for (int v = 0; v < V; v++) {
            if (group->diverged_at[v]) continue;
            group->loss[v] += loss[v];
            group->correct[v] += hits[v];
            if (!std::isfinite(loss[v]) || check[v] != 0)
                group->diverged_at[v] = first + i + 1;
            else
                alive = true;
        }
        if (!alive) return;
    }
}

// Adds losses and hits of one batch in evaluation mode; an index of -1 is no example.
void evaluate(const Network *net, Group *group, const Images *images, const Stream *stream) {
    const FlushDenormals flush;
    double loss[V];
    int64_t hits[V];
    gather(*net, *images, *stream, 0);
    forward(*net, group->theta, group->statistics, false);
    loss_and_gradient(*net, loss, hits, false);
    for (int v = 0; v < V; v++) group->loss[v] += loss[v], group->correct[v] += hits[v];
}
}
