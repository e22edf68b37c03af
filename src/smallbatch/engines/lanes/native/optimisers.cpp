// Trains by optimisers that keep moments of the gradient: momentum, nesterov and adamw, with the
// formulas of `protocol/optimiser.py`. Plain SGD is trained by `kernels.cpp` alone, and stays the
// same to the bit whatever is done here.

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels.cpp"

enum Kind { MOMENTUM = 1, NESTEROV = 2, ADAMW = 3 };

struct Optimiser {
    int32_t kind;  // a `Kind`
    double beta1, beta2, eps, decay, batch_size;  // beta1: also μ; decay: m·λ; batch_size: m
    vec *first, *second;  // the moments of a group; null where there is none
};

namespace {

// Where the places of a vector are parts of runs, all places of a run have the same weights and
// moments. Then `parts` parameters are updated at a time: place p·parts + j of a `block` is for the
// j-th of them, of run p. Moments lie in memory as such blocks, so they take no more of it than they
// have different values.

using Places = std::make_integer_sequence<int, V>;

template <int bit, int... v>
inline vec mixed(vec a, vec b, std::integer_sequence<int, v...>) {
    return vec{(v & bit ? b : a)[v]...};
}
template <int bit, int... v>
inline vec swapped(vec x, std::integer_sequence<int, v...>) {
    return vec{x[v ^ bit]...};
}
template <int parts, int j, int... v>
inline vec spread(vec block, std::integer_sequence<int, v...>) {
    return vec{block[(v & -parts) | j]...};
}

// The block of `parts` vectors that are the same in all places of a run.
template <int parts>
inline vec block_of(const vec *x) {
    if constexpr (parts == 1) {
        return *x;
    } else {
        constexpr int half = parts / 2;
        return mixed<half>(block_of<half>(x), block_of<half>(x + half), Places{});
    }
}

// The block of the sums over each run's places, rounded as by `across`.
template <int parts>
inline vec sums_of(const vec *x) {
    if constexpr (parts == 1) {
        return *x;
    } else {
        constexpr int half = parts / 2;
        const vec a = sums_of<half>(x), b = sums_of<half>(x + half);
        return mixed<half>(a, b, Places{}) + swapped<half>(mixed<half>(b, a, Places{}), Places{});
    }
}

template <int parts, int... j>
inline void store(vec *to, vec block, std::integer_sequence<int, j...>) {
    ((to[j] = spread<parts, j>(block, Places{})), ...);
}

// The numbers of one update: of each place, or the same for all. AdamW's moments lie in memory as
// a = Σ β₁ᵏ·G and b = Σ β₂ᵏ·G², over the sums G of a batch's gradients, without the factors (1 − β₁)/m
// and (1 − β₂)/m²; they and the corrections by 1 − βᵗ are in `rate` and `eps`.
struct Numbers {
    vec decay, rate;
    REAL beta1, beta2, eps;
};

// x/d. In single precision by an estimate of 1/d and a Newton step, which err by a few roundings, as
// the divider is busy with square roots and would take longer than memory does.
template <class Vector>
inline Vector quotient(Vector x, Vector d) {
#if defined(__AVX__) && defined(__FMA__)
    if constexpr (sizeof(Vector) == sizeof(__m256)) {
        const __m256 most = _mm256_set1_ps(1e37F);  // so that x/∞ is 0; NaN stays NaN
        const Vector size = (Vector)_mm256_min_ps(most, (__m256)d);
        const Vector estimate = (Vector)_mm256_rcp_ps((__m256)size);
        return x * (estimate + estimate * (1 - size * estimate));
    }
#endif
    return x / d;
}

// Calls `block` for the parameters after the last whole block, with zeros to fill it.
template <int parts, class Block>
inline void rest_of(const Network &net, vec *weights, Block block) {
    const count blocks = net.parameters / parts, rest = net.parameters % parts;
    if (!rest) return;
    vec theta[parts]{}, gradient[parts]{};
    std::copy_n(weights + blocks * parts, rest, theta);
    std::copy_n(net.gradient + blocks * parts, rest, gradient);
    block(theta, gradient, blocks);
    std::copy_n(theta, rest, weights + blocks * parts);
}

// Updates all weights by momentum. Returns 0 for a run whose weights are finite, otherwise NaN.
template <int parts, bool nesterov>
vec descend_momentum(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    const Numbers n = numbers;
    vec check{};
    vec *__restrict velocity = of.first;
    vec *__restrict weights = group.theta;
    const vec *__restrict gradients = net.gradient;
    const auto block = [&](vec *theta, const vec *gradient, count i) {
        const vec old = block_of<parts>(theta), g = sums_of<parts>(gradient) + n.decay * old;
        const vec v = n.beta1 * velocity[i] + g;
        velocity[i] = v;
        const vec value = old - n.rate * (nesterov ? g + n.beta1 * v : v);
        store<parts>(theta, value, std::make_integer_sequence<int, parts>{});
        check += value * 0;
    };
    const count blocks = net.parameters / parts;
    for (count i = 0; i < blocks; i++) block(weights + i * parts, gradients + i * parts, i);
    rest_of<parts>(net, weights, block);
    return across(check, parts);
}

// As `descend_momentum`, by AdamW. A block's moments change `AHEAD` blocks before its weights, so
// that there is other work to do while a square root is awaited.
template <int parts>
vec descend_adamw(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    constexpr count AHEAD = 8;
    const Numbers n = numbers;
    vec check{}, size[AHEAD];  // size: √b + ε
    vec *__restrict first = of.first, *__restrict second = of.second;
    vec *__restrict weights = group.theta;
    const vec *__restrict gradients = net.gradient;
    const auto moments = [&](const vec *gradient, count i) {
        const vec g = sums_of<parts>(gradient), b = n.beta2 * second[i] + g * g;
        first[i] = n.beta1 * first[i] + g;
        second[i] = b;
        size[i % AHEAD] = root(b) + n.eps;
    };
    const auto move = [&](vec *theta, count i) {
        const vec step = quotient(first[i], size[i % AHEAD]);
        const vec value = block_of<parts>(theta) * n.decay - n.rate * step;
        store<parts>(theta, value, std::make_integer_sequence<int, parts>{});
        check += value * 0;
    };
    const count blocks = net.parameters / parts, ahead = std::min(AHEAD, blocks);
    for (count i = 0; i < ahead; i++) moments(gradients + i * parts, i);
    for (count i = ahead; i < blocks; i++) {
        move(weights + (i - ahead) * parts, i - ahead);
        moments(gradients + i * parts, i);
    }
    for (count i = blocks - ahead; i < blocks; i++) move(weights + i * parts, i);
    rest_of<parts>(net, weights, [&](vec *theta, const vec *gradient, count i) {
        moments(gradient, i);
        move(theta, i);
    });
    return across(check, parts);
}

template <int parts>
vec descend(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    switch (of.kind) {
        case MOMENTUM: return descend_momentum<parts, false>(net, group, of, numbers);
        case NESTEROV: return descend_momentum<parts, true>(net, group, of, numbers);
        default: return descend_adamw<parts>(net, group, of, numbers);
    }
}

// One update by an optimiser with moments. `schedule` has the factor of η, and AdamW's 1 − β₁ᵗ and
// √(1 − β₂ᵗ).
vec descend(const Network &net, Group &group, const Optimiser &of, const double *schedule) {
    constexpr double LARGEST = std::numeric_limits<REAL>::max();
    const bool adamw = of.kind == ADAMW;
    const double root2 = schedule[2] / std::sqrt(1 - of.beta2);
    const double scale = adamw ? (1 - of.beta1) / schedule[1] * root2 : 1;
    Numbers n{};
    for (int v = 0; v < V; v++) {
        n.rate[v] = REAL(std::min(schedule[0] * group.base_lr[v] * scale, LARGEST));
        n.decay[v] = REAL(adamw ? 1 - schedule[0] * group.lr_times_decay[v] : of.decay);
    }
    n.beta1 = REAL(of.beta1), n.beta2 = REAL(of.beta2);
    n.eps = std::max(REAL(of.eps * of.batch_size * root2), std::numeric_limits<REAL>::min());
    switch (net.parts) {
        case 1: return descend<1>(net, group, of, n);
        case 2: return descend<2>(net, group, of, n);
        case 4: return descend<4>(net, group, of, n);
        default: return descend<V>(net, group, of, n);
    }
}

}  // namespace

extern "C" {

// As `train` in `kernels.cpp`. `schedule` has three numbers for each update, see `descend`.
void train_with(const Network *net, Group *group, const Images *images, const Stream *stream,
                const Optimiser *optimiser, const double *schedule, int64_t first,
                int64_t updates) {
    const FlushDenormals flush;
    double loss[V];
    int64_t hits[V];
    for (count i = 0; i < updates; i++) {
        gather(*net, *images, *stream, i * net->batch_size);
        forward(*net, group->theta, group->statistics, true);
        loss_and_gradient(*net, loss, hits, true);
        backward(*net, group->theta);
        const vec check = descend(*net, *group, *optimiser, schedule + 3 * i);
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
}
