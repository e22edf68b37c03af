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

// The numbers of one update: of each place, or the same for all.
struct Numbers {
    vec decay, rate;  // as `coefficients` in `protocol/optimiser.py` gives them
    // AdamW's: new1 = (1 − β₁)/m and new2 = √(1 − β₂)/m; rate and ε are multiplied by √(1 − β₂ᵗ),
    // so that √b need not be divided by it.
    REAL beta1, new1, beta2, new2, eps;
};

// The new weights from old ones and the gradient of the summed loss; changes the moments.
template <int kind>
inline vec moved(vec theta, vec gradient, vec &first, vec &second, const Numbers &n) {
    if constexpr (kind == ADAMW) {
        const vec g = n.new2 * gradient;
        const vec a = n.beta1 * first + n.new1 * gradient, b = n.beta2 * second + g * g;
        first = a, second = b;
        return theta * n.decay - n.rate * a / (root(b) + n.eps);
    } else {
        const vec g = gradient + n.decay * theta, v = n.beta1 * first + g;
        first = v;
        return theta - n.rate * (kind == NESTEROV ? g + n.beta1 * v : v);
    }
}

// Updates all weights. Returns 0 for a run whose weights are finite, otherwise NaN.
template <int kind, int parts>
vec descend(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    const Numbers n = numbers;
    vec check{}, none{};
    vec *__restrict first = of.first, *__restrict second = of.second;
    vec *__restrict weights = group.theta;
    const vec *__restrict gradients = net.gradient;
    const auto block = [&](vec *theta, const vec *gradient, count i) {
        vec &other = kind == ADAMW ? second[i] : none;
        const vec value =
            moved<kind>(block_of<parts>(theta), sums_of<parts>(gradient), first[i], other, n);
        store<parts>(theta, value, std::make_integer_sequence<int, parts>{});
        check += value * 0;
    };
    const count blocks = net.parameters / parts, rest = net.parameters % parts;
    for (count i = 0; i < blocks; i++) block(weights + i * parts, gradients + i * parts, i);
    if (rest) {
        vec theta[parts]{}, gradient[parts]{};
        std::copy_n(weights + blocks * parts, rest, theta);
        std::copy_n(gradients + blocks * parts, rest, gradient);
        block(theta, gradient, blocks);
        std::copy_n(theta, rest, weights + blocks * parts);
    }
    return across(check, parts);
}

template <int kind>
vec descend(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    switch (net.parts) {
        case 1: return descend<kind, 1>(net, group, of, numbers);
        case 2: return descend<kind, 2>(net, group, of, numbers);
        case 4: return descend<kind, 4>(net, group, of, numbers);
        default: return descend<kind, V>(net, group, of, numbers);
    }
}

// One update by an optimiser with moments. `schedule` has the factor of η, and AdamW's 1 − β₁ᵗ and
// √(1 − β₂ᵗ).
vec descend(const Network &net, Group &group, const Optimiser &of, const double *schedule) {
    const bool adamw = of.kind == ADAMW;
    const double scale = adamw ? schedule[2] / schedule[1] : 1, m = of.batch_size;
    Numbers n{};
    for (int v = 0; v < V; v++) {
        n.rate[v] = REAL(schedule[0] * group.base_lr[v] * scale);
        n.decay[v] = REAL(adamw ? 1 - schedule[0] * group.lr_times_decay[v] : of.decay);
    }
    n.beta1 = REAL(of.beta1), n.new1 = REAL((1 - of.beta1) / m);
    n.beta2 = REAL(of.beta2), n.new2 = REAL(std::sqrt(1 - of.beta2) / m);
    n.eps = REAL(of.eps * schedule[2]);
    switch (of.kind) {
        case MOMENTUM: return descend<MOMENTUM>(net, group, of, n);
        case NESTEROV: return descend<NESTEROV>(net, group, of, n);
        default: return descend<ADAMW>(net, group, of, n);
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
