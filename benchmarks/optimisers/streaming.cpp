// What AdamW's update is compared with: plain SGD's, and the same with two moments read and written.

#include "optimisers.cpp"

namespace {

void stream(vec *moment, count values) {
    REAL one = 1;
    asm volatile("" : "+m"(one));  // so that the compiler cannot leave the product out
    for (count i = 0; i < values; i++) moment[i] = moment[i] * one;
}

void stream(const Network &net, const Optimiser &of) {
    const count blocks = (net.parameters + net.parts - 1) / net.parts;
    stream(of.first, blocks);
    stream(of.second, blocks);
}

}  // namespace

extern "C" {

// As `train_with`, by plain SGD that streams the moments after each update.
void train_streaming(const Network *net, Group *group, const Images *images, const Stream *tables,
                     const Optimiser *optimiser, const double *schedule, int64_t first,
                     int64_t updates) {
    Stream here = *tables;
    for (count i = 0; i < updates; i++) {
        train(net, group, images, &here, schedule + 3 * i, first + i, 1);
        stream(*net, *optimiser);
        for (int v = 0; v < V; v++) here.index[v] += net->batch_size;
    }
}

// The weights' updates alone, with the last gradient: by plain SGD, by an optimiser, by streaming.
void only_sgd(const Network *net, Group *group, const double *schedule, int64_t updates) {
    const FlushDenormals flush;
    for (count i = 0; i < updates; i++) update(*net, *group, schedule[0]);
}
void only_optimiser(const Network *net, Group *group, const Optimiser *optimiser,
                    const double *schedule, int64_t updates) {
    const FlushDenormals flush;
    for (count i = 0; i < updates; i++) descend(*net, *group, *optimiser, schedule);
}
void only_streaming(const Network *net, const Optimiser *optimiser, int64_t updates) {
    const FlushDenormals flush;
    for (count i = 0; i < updates; i++) stream(*net, *optimiser);
}
}
