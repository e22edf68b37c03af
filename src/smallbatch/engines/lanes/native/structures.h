// The arguments of the kernels; `structures.py` has the same fields. Offsets and strides of
// activations are in vectors unless stated otherwise.

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
    int32_t channel, example, row, origin;  // strides, and the offset of pixel (0, 0)
    count at(int c, int n, int y) const {
        return origin + count(c) * channel + count(n) * example + count(y) * row;
    }
};

// y[o][p] = Σ_r w[o·weight_stride + w_offset[r]] · x[x_base[p] + x_offset[r]]. The tables make this
// a convolution, the gradient of its input, or a fully connected layer.
struct Product {
    int32_t rows, outputs, positions, tile;  // rows: terms of a sum; tile: positions kept in cache
    int32_t weight_stride, out_stride;
    const int64_t *x_offset, *x_base, *y_base;  // in bytes
    const int64_t *w_offset;                    // in weights
};

enum Norm { NO_NORM = 0, RUNNING = 1, OWN = 2 };
// TABLES: by the tables of `forward` and `input`. Others: Winograd's, with tiles of 2 or 4 outputs.
enum Algorithm { TABLES = 0, TILES_2 = 1, TILES_4 = 2, STRIDED = 3 };
enum Pool { NO_POOL = 0, MAX_POOL = 1, MEAN_POOL = 2 };

// product → norm → + shortcut → relu → pool
struct Layer {
    Product forward;
    const Product *input;  // for the input's gradient; several, by parity, for a strided conv
    int32_t inputs;
    int32_t norm, channels_per_group, examples_per_group, parts_per_group;
    int32_t stride;  // of the shortcut; 0: there is none
    int32_t relu, pool, pool_top, pool_left;
    int32_t algorithm;  // an `Algorithm`
    count weight, bias, scale, shift;  // numbers of parameters, -1 where absent
    count running_mean, running_var;   // numbers of statistics
    double eps, momentum;
    Shape in, out, pooled, skip;  // of x, of z and y, of the pooled output, of the shortcut
    const vec *x;             // the previous layer's output
    vec *dx;
    vec *z, *dz, *y, *dy, *pooled_y, *pooled_dy;
    vec *winner;  // of a max pool: the tap of the maximum
    vec *mean, *invstd, *variance;  // of each group; the variance is unbiased
    const vec *skip_x;
    vec *skip_dx;
};

struct Images {
    const REAL *pixels;
    const int64_t *labels;
    count image, channel, row, column;  // strides, in numbers
    count channels, height, width;
};

// The examples of each place, as tables that begin with those of the next update.
struct Stream {
    const int32_t *index[V];
    const int8_t *top[V], *left[V], *flip[V];  // null without augmentation
    int32_t pad;
};

struct Network {
    Layer *layers;
    int32_t count_layers, batch_size, classes, parts;  // batch_size: examples of a place
    Shape input_shape;
    vec *input;      // of the first layer
    REAL *gradient;  // of the parameters: as many numbers of each as a vector has lanes
    count parameters;
    int64_t *labels;  // [example][place]
};

struct Group {
    REAL *theta, *statistics;  // as many numbers of each as a vector has lanes
    double base_lr[V], lr_times_decay[V];  // η̃, and η·λ
    double loss[V];
    int64_t correct[V];
    int64_t diverged_at[V];  // 0: not diverged
};
