// Operations on a vector of V places.
//
// A vector holds L lanes, each in V / L places, its parts: place part · L + lane. What is the same in
// all places of a lane (weights, statistics) lies in memory as L numbers. Such arrays are read V
// numbers at a time where an operation is elementwise: place v then is of lane v % L, too.

#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "structures.h"

namespace {

// Positions of a block that registers hold, with four outputs each.
#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int P = 4;  // of 32 registers
#else
constexpr int P = 3;  // of 16
#endif

// Keeps a vector in a register for several products; GCC would load it again for each.
template <class Vector>
inline void keep(Vector &x) {
#if defined(__AVX512VL__)
    if constexpr (sizeof(Vector) <= 64) asm("" : "+v"(x));
#elif defined(__AVX__)
    if constexpr (sizeof(Vector) == 32) asm("" : "+x"(x));
#elif defined(__aarch64__)
    if constexpr (sizeof(Vector) == 16) asm("" : "+w"(x));
#endif
    (void)x;
}

using Places = std::make_integer_sequence<int, V>;

// Each place's neighbour at a distance of `bit`.
template <int bit, int... v>
inline vec swapped(vec x, std::integer_sequence<int, v...>) {
    return vec{x[v ^ bit]...};
}

// The sum over the parts of each lane, with the same bits in all of its places.
template <int bit = 1>
inline vec across(vec x, int parts) {
    if (bit >= V / parts) x += swapped<bit>(x, Places{});
    if constexpr (2 * bit < V) return across<2 * bit>(x, parts);
    return x;
}

// The elements of `a` where v has not this bit, and those of `b` where it has.
template <int bit, int... v>
inline vec mixed(vec a, vec b, std::integer_sequence<int, v...>) {
    return vec{(v & bit ? b : a)[v]...};
}

// The sums by `across` of V / L vectors, L numbers of each.
template <int L, int number = V / L>
inline vec sums_of(const vec *x) {
    if constexpr (number == 1) {
        return *x;
    } else {
        constexpr int half = number / 2, bit = half * L;
        const vec a = sums_of<L, half>(x), b = sums_of<L, half>(x + half);
        return mixed<bit>(a, b, Places{}) + swapped<bit>(mixed<bit>(b, a, Places{}), Places{});
    }
}

template <int... v>
inline vec filled(REAL x, std::integer_sequence<int, v...>) {
    return vec{(void(v), x)...};
}

// Not `vec{} + value`, as the compiler would have to keep that addition because of -0.
inline vec all(REAL x) { return filled(x, Places{}); }

template <int L, int... v>
inline vec repeated(const REAL *x, std::integer_sequence<int, v...>) {
    return vec{x[v % L]...};
}

// L numbers in all places of their lanes; mostly by one instruction that loads and repeats them.
template <int L>
inline vec unpack(const REAL *x) {
    if constexpr (L == V) {
        vec y;
        std::memcpy(&y, x, sizeof(y));
        return y;
    }
    if constexpr (L == 1) return all(*x);
#if defined(__AVX512DQ__)
    if constexpr (V * sizeof(REAL) == 64 && L * sizeof(REAL) == 32)
        return (vec)_mm512_broadcast_f32x8(_mm256_loadu_ps((const float *)x));
    if constexpr (V * sizeof(REAL) == 64 && L * sizeof(REAL) == 16)
        return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)x));
    if constexpr (V * sizeof(REAL) == 64 && L * sizeof(REAL) == 8) {
        double both;
        std::memcpy(&both, x, sizeof(both));
        return (vec)_mm512_set1_pd(both);
    }
#endif
#if defined(__AVX__)
    if constexpr (V * sizeof(REAL) == 32 && L * sizeof(REAL) == 16)
        return (vec)_mm256_broadcast_ps((const __m128 *)x);
    if constexpr (V * sizeof(REAL) == 32 && L * sizeof(REAL) == 8)
        return (vec)_mm256_broadcast_sd((const double *)x);
#endif
    return repeated<L>(x, Places{});
}

// Calls `body` with the number of lanes of a vector as a constant.
template <int L = V, class Body>
inline void with_lanes(int lanes, Body body) {
    if (lanes == L)
        body(std::integral_constant<int, L>{});
    else if constexpr (L > 1)
        with_lanes<L / 2>(lanes, body);
}

inline vec unpack(const REAL *x, int lanes) {
    vec y{};
    with_lanes(lanes, [&](auto L) { y = unpack<L>(x); });
    return y;
}

// The numbers of lanes whose places are alike.
inline void pack(REAL *to, vec x, int lanes) {
    with_lanes(lanes, [&](auto L) { std::memcpy(to, &x, L * sizeof(REAL)); });
}

// Numbers of which each lane has its own: parameters, their gradients or statistics.
struct PerLane {
    REAL *numbers;
    int lanes;
    REAL *at(count i) const { return numbers + i * lanes; }
    vec operator[](count i) const { return unpack(at(i), lanes); }
    void put(count i, vec x) const { pack(at(i), x, lanes); }
    void put_sum(count i, vec x) const { put(i, across(x, V / lanes)); }
};

inline vec root(vec x) {
    for (int v = 0; v < V; v++) x[v] = std::sqrt(x[v]);
    return x;
}

// Treats denormal numbers as 0: they are a hundred times slower, for neighbouring lanes too.
struct FlushDenormals {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | 1 << 24));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

inline const char *bytes_from(const vec *start, count bytes) {
    return reinterpret_cast<const char *>(start) + bytes;
}
inline const vec &vector_at(const char *bytes) { return *reinterpret_cast<const vec *>(bytes); }

// Memory that a thread keeps between calls.
struct alignas(2 * sizeof(vec)) Pair {
    vec vectors[2];
};
inline vec *scratch(std::vector<Pair> &memory, count vectors) {
    if (count(memory.size()) * 2 < vectors) {
        memory.clear();
        memory.resize((vectors + 1) / 2);
    }
    return memory[0].vectors;
}
thread_local std::vector<Pair> scratch_windows, scratch_tiles, scratch_weights, scratch_sums;

}  // namespace
