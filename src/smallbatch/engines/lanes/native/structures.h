// What the kernels are given, mirrored in `structures.py`. Offsets and strides count vectors where
// nothing else is said.

#pragma once

#include <cstdint>

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
