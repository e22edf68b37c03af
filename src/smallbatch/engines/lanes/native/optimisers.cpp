// Trains by optimisers that keep moments of the gradient: momentum, nesterov and adamw, with the
// formulas of `protocol/optimiser.py`. Plain SGD is trained by `kernels.cpp` alone, and stays the
// same to the bit whatever is done here.

#include <algorithm>
#include <limits>

#include "kernels.cpp"

enum Kind { MOMENTUM = 1, NESTEROV = 2, ADAMW = 3 };

struct Optimiser {
    int32_t kind;  // a `Kind`
    double beta1, beta2, eps, decay, batch_size;  // beta1: also μ; decay: m·λ; batch_size: m
    vec *first, *second;  // the moments of a group; null where there is none
};

namespace {

// The numbers of one update: of each place, or the same for all. AdamW's moments lie in memory as
// a = Σ β₁ᵏ·G and b = Σ β₂ᵏ·G², over the sums G of a batch's gradients, without the factors (1 − β₁)/m
// and (1 − β₂)/m²; they and the corrections by 1 − βᵗ are in `rate` and `eps`.
struct Numbers {
    vec decay, rate;
    REAL beta1, beta2, eps;
};

// x/d. In single precision, where a vector fills a register of AVX, by an estimate of 1/d and a
// Newton step, which err by a few roundings: the divider is busy with square roots, and would take
// longer than memory does.
template <class Vector>
inline Vector quotient(Vector x, Vector d) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vector) == sizeof(__m512) && sizeof(REAL) == sizeof(float)) {
        const __m512 most = _mm512_set1_ps(1e37F);
        const Vector size = (Vector)_mm512_min_ps(most, (__m512)d);
        const Vector estimate = (Vector)_mm512_rcp14_ps((__m512)size);
        return x * (estimate + estimate * (1 - size * estimate));
    }
#endif
#if defined(__AVX__) && defined(__FMA__)
    if constexpr (sizeof(Vector) == sizeof(__m256) && sizeof(REAL) == sizeof(float)) {
        const __m256 most = _mm256_set1_ps(1e37F);  // so that x/∞ is 0; NaN stays NaN
        const Vector size = (Vector)_mm256_min_ps(most, (__m256)d);
        const Vector estimate = (Vector)_mm256_rcp_ps((__m256)size);
        return x * (estimate + estimate * (1 - size * estimate));
    }
#endif
    return x / d;
}

// Updates all weights by momentum. Returns 0 for a run whose weights are finite, otherwise NaN.
template <bool nesterov>
vec descend_momentum(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    const Numbers n = numbers;
    vec check{};
    vec *__restrict velocity = of.first;
    vec *__restrict theta = reinterpret_cast<vec *>(group.theta);
    const vec *__restrict gradient = reinterpret_cast<const vec *>(net.gradient);
    for (count i = 0; i < vectors_of_parameters(net); i++) {
        const vec g = gradient[i] + n.decay * theta[i], v = n.beta1 * velocity[i] + g;
        velocity[i] = v;
        theta[i] -= n.rate * (nesterov ? g + n.beta1 * v : v);
        check += theta[i] * 0;
    }
    return across(check, net.parts);
}

// As `descend_momentum`, by AdamW. A vector's moments change `AHEAD` vectors before its weights, so
// that there is other work to do while a square root is awaited.
vec descend_adamw(const Network &net, Group &group, const Optimiser &of, const Numbers &numbers) {
    constexpr count AHEAD = 8;
    const Numbers n = numbers;
    vec check{}, size[AHEAD];  // size: √b + ε
    vec *__restrict first = of.first, *__restrict second = of.second;
    vec *__restrict theta = reinterpret_cast<vec *>(group.theta);
    const vec *__restrict gradient = reinterpret_cast<const vec *>(net.gradient);
    const auto moments = [&](count i) {
        const vec g = gradient[i], b = n.beta2 * second[i] + g * g;
        first[i] = n.beta1 * first[i] + g;
        second[i] = b;
        size[i % AHEAD] = root(b) + n.eps;
    };
    const auto move = [&](count i) {
        theta[i] = theta[i] * n.decay - n.rate * quotient(first[i], size[i % AHEAD]);
        check += theta[i] * 0;
    };
    const count vectors = vectors_of_parameters(net), ahead = std::min(AHEAD, vectors);
    for (count i = 0; i < ahead; i++) moments(i);
    for (count i = ahead; i < vectors; i++) {
        move(i - ahead);
        moments(i);
    }
    for (count i = vectors - ahead; i < vectors; i++) move(i);
    return across(check, net.parts);
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
    switch (of.kind) {
        case MOMENTUM: return descend_momentum<false>(net, group, of, n);
        case NESTEROV: return descend_momentum<true>(net, group, of, n);
        default: return descend_adamw(net, group, of, n);
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
    const int lanes = V / net->parts;
    const PerLane theta{group->theta, lanes}, statistics{group->statistics, lanes};
    for (count i = 0; i < updates; i++) {
        gather(*net, *images, *stream, i * net->batch_size);
        forward(*net, theta, statistics, true);
        loss_and_gradient(*net, loss, hits, true);
        backward(*net, theta);
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
