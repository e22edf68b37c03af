// Measures how fast vectors of V places compute: a convolution and the gradient of its weights, as
// in a ResNet, on data that fits in the second-level cache.

#include <ctime>

#include "winograd.h"

namespace {

constexpr int CHANNELS = 32, SIDE = 16, REPEATS = 8;

double seconds() {  // of this thread on a core: other programs' time does not count
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

}  // namespace

extern "C" double images_per_second() {
    const int row = SIDE + 2, channel = (SIDE + 2) * row + 10;
    const Shape shape{CHANNELS, 1, SIDE, SIDE, channel, (SIDE + 2) * row, row, row + 1};
    const count lanes = V > 8 ? 2 : 1;  // of eight places or fewer each
    const FlushDenormals flush;
    std::vector<Pair> x(CHANNELS * channel), y(x.size()), w(9 * CHANNELS * CHANNELS);
    REAL *weights = reinterpret_cast<REAL *>(w.data());
    double best = 0;
    for (int i = 0; i <= REPEATS; i++) {  // the first finds memory and caches as nothing left them
        const double start = seconds();
        winograd<Tiles4>(shape, shape, x[0].vectors, weights, false, y[0].vectors, nullptr, lanes);
        winograd_weight_gradient<Tiles4>(shape, shape, x[0].vectors, y[0].vectors, weights, lanes);
        const double rate = V / (seconds() - start);
        if (i) best = std::max(best, rate);
    }
    return best;
}
