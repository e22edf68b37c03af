// Operations on a vector of V places.

#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cmath>

#include "structures.h"

namespace {

constexpr int P = 3;  // positions in a block of registers, for four outputs

// Keeps a vector that several products share in a register: GCC would load it for each of them.
template <class Vector>
inline void keep(Vector &x) {
#if defined(__AVX512VL__)
    asm("" : "+v"(x));
#elif defined(__AVX__)
    if constexpr (sizeof(Vector) == 32) asm("" : "+x"(x));
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

inline vec root(vec x) {
    for (int v = 0; v < V; v++) x[v] = std::sqrt(x[v]);
    return x;
}

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

}  // namespace
