// Trains K networks at once on a CPU.
//
// Every number of an activation is a vector of V places. At small m each place is a run, so a vector
// holds V lanes. At larger m it holds fewer lanes, and each has several places with a part of its
// batch (see `vectors.h`). Every operation treats all places alike, and only `across` and `sums_of`
// mix places, those of one run. So a lane's result does not depend on the other lanes, and vectors
// are full at any batch size. Buffers of activations are [channel][example][row][column] of vectors;
// rows and columns have a border of zeros where a convolution reads it. Parameters, their gradients
// and statistics are [parameter][lane] of numbers.

#include <algorithm>
#include <cmath>

#include "norms.h"
#include "pools.h"
#include "products.h"
#include "winograd.h"

namespace {

// Computes a layer's convolution, or the gradient of its input, by the layer's algorithm.
void convolve(const Layer &l, bool flipped, const REAL *w, const REAL *bias, int lanes) {
    const Shape &from = flipped ? l.out : l.in, &to = flipped ? l.in : l.out;
    const vec *x = flipped ? l.dz : l.x;
    vec *y = flipped ? l.dx : l.z;
    if (l.algorithm == TILES_4)
        winograd<Tiles4>(from, to, x, w, flipped, y, bias, lanes);
    else if (l.algorithm == TILES_2)
        winograd<Tiles2>(from, to, x, w, flipped, y, bias, lanes);
    else if (l.algorithm == STRIDED && flipped)
        winograd<StridedInput>(from, to, x, w, flipped, y, bias, lanes);
    else if (l.algorithm == STRIDED)
        winograd<Strided>(from, to, x, w, flipped, y, bias, lanes);
    else
        with_lanes(lanes, [&](auto L) {
            if (flipped)
                products<L>(l.input, l.inputs, x, w, y, bias);
            else
                products<L>(&l.forward, 1, x, w, y, bias);
        });
}

void forward(const Network &net, const PerLane &theta, const PerLane &statistics, bool training) {
    for (int i = 0; i < net.count_layers; i++) {
        const Layer &l = net.layers[i];
        const REAL *bias = l.bias < 0 ? nullptr : theta.at(l.bias);
        convolve(l, false, theta.at(l.weight), bias, theta.lanes);
        if (l.y != l.z || l.norm || l.stride || l.relu)
            norm_and_activate(l, theta, statistics, training);
        if (l.pool) pool(l);
    }
}

// The gradient of a layer's weights, from those of its output.
void weight_gradient(const Layer &l, REAL *dw, int lanes) {
    if (l.algorithm == TILES_4)
        winograd_weight_gradient<Tiles4>(l.in, l.out, l.x, l.dz, dw, lanes);
    else if (l.algorithm == TILES_2)
        winograd_weight_gradient<Tiles2>(l.in, l.out, l.x, l.dz, dw, lanes);
    else if (l.algorithm == STRIDED)
        winograd_weight_gradient<Strided>(l.in, l.out, l.x, l.dz, dw, lanes);
    else
        weight_gradient(l.forward, l.x, l.dz, dw, lanes);
}

void backward(const Network &net, const PerLane &theta) {
    const PerLane gradient{net.gradient, theta.lanes};
    for (int i = net.count_layers - 1; i >= 0; i--) {
        const Layer &l = net.layers[i];
        if (l.pool) pool_gradient(l);
        const Shape &s = l.out;
        if (l.norm)
            norm_gradient(l, theta, gradient);
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
                gradient.put_sum(l.bias + c, sum);
            }
        weight_gradient(l, gradient.at(l.weight), theta.lanes);
        if (l.dx) convolve(l, true, theta.at(l.weight), nullptr, theta.lanes);
        // If the shortcut of a block begins at this layer's input, the block's second layer, just
        // computed, has left in its dy the gradient that the shortcut passes on: add it here.
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

// The parameters of all lanes, with zeros after them that fill the last vector.
count vectors_of_parameters(const Network &net) {
    return (net.parameters + net.parts - 1) / net.parts;
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

// Losses and right answers of every run, and the gradient of the summed loss for the logits.
void loss_and_gradient(const Network &net, double *loss, int64_t *hits, bool training) {
    const Layer &last = net.layers[net.count_layers - 1];
    const count stride = last.out.channel;
    vec total{};  // in the lanes' precision, so that it overflows where a plain run's sum does
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
    const int lanes = V / net.parts;
    for (int v = 0; v < V; v++) {
        loss[v] = total[v];
        if (v >= lanes) hits[v % lanes] += hits[v];
    }
    for (int v = lanes; v < V; v++) hits[v] = hits[v % lanes];
}

// θ ← θ·(1 − η·λ) − η̃·Σ∇L_i(θ) (eq. 5 with coupled decay). Returns 0 for a run whose weights are
// finite, otherwise NaN.
vec update(const Network &net, Group &group, double factor) {
    vec decay{}, step{}, check{};
    for (int v = 0; v < V; v++) {
        decay[v] = REAL(1 - factor * group.lr_times_decay[v]);
        step[v] = REAL(factor * group.base_lr[v]);
    }
    vec *theta = reinterpret_cast<vec *>(group.theta);
    const vec *gradient = reinterpret_cast<const vec *>(net.gradient);
    for (count i = 0; i < vectors_of_parameters(net); i++) {
        theta[i] = theta[i] * decay - step * gradient[i];
        check += theta[i] * 0;
    }
    return across(check, net.parts);
}

}  // namespace

extern "C" {

int lanes_per_vector() { return V; }

// Does `updates` updates of a group, beginning with number `first`. `factor` has for each of them
// the number by which the schedule multiplies η.
void train(const Network *net, Group *group, const Images *images, const Stream *stream,
           const double *factor, int64_t first, int64_t updates) {
    const FlushDenormals flush;
    double loss[V];
    int64_t hits[V];
    const int lanes = V / net->parts;
    const PerLane theta{group->theta, lanes}, statistics{group->statistics, lanes};
    for (count i = 0; i < updates; i++) {
        gather(*net, *images, *stream, i * net->batch_size);
        forward(*net, theta, statistics, true);
        loss_and_gradient(*net, loss, hits, true);
        backward(*net, theta);
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

// Adds losses and right answers of one batch in evaluation mode; index -1 stands for no example.
void evaluate(const Network *net, Group *group, const Images *images, const Stream *stream) {
    const FlushDenormals flush;
    double loss[V];
    int64_t hits[V];
    gather(*net, *images, *stream, 0);
    const int lanes = V / net->parts;
    forward(*net, {group->theta, lanes}, {group->statistics, lanes}, false);
    loss_and_gradient(*net, loss, hits, false);
    for (int v = 0; v < V; v++) group->loss[v] += loss[v], group->correct[v] += hits[v];
}
}
