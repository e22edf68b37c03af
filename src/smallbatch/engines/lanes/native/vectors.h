// Operations on a vector of V places.

#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cmath>

#include "structures.h"

namespace {

constexpr int P = 3;  // positions of a block that registers hold, with four outputs each

// Keeps a vector in a register for several products; GCC would load it again for each.
template <class Vector>
inline void keep(Vector &x) {
#if defined(__AVX512VL__)
    asm("" : "+v"(x));
#elif defined(__AVX__)
    if constexpr (sizeof(Vector) == 32) asm("" : "+x"(x));
#endif
    (void)x;
}

// The sum over the places of each run, with the same bits in all of these places.
inline vec across(vec x, int parts) {
    static_assert(V == 8, "neighbours are written out for eight places");
    if (parts > 1) x += vec{x[1], x[0], x[3], x[2], x[5], x[4], x[7], x[6]};
    if (parts > 2) x += vec{x[2], x[3], x[0], x[1], x[6], x[7], x[4], x[5]};
    if (parts > 4) x += vec{x[4], x[5], x[6], x[7], x[0], x[1], x[2], x[3]};
    return x;
}

// Not `vec{} + value`, as the compiler would have to keep that addition because of -0.
inline vec all(REAL x) { return vec{x, x, x, x, x, x, x, x}; }

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
#endif
};

inline const char *bytes_from(const vec *start, count bytes) {
    return reinterpret_cast<const char *>(start) + bytes;
}
inline const vec &vector_at(const char *bytes) { return *reinterpret_cast<const vec *>(bytes); }

// Weights that are the same in all places are stored as single numbers, which take an eighth of the
// cache.
inline void pack(vec &to, const vec &from) { to = from; }
inline void pack(REAL &to, const vec &from) { to = from[0]; }
inline vec unpack(const vec &from) { return from; }
inline vec unpack(REAL from) { return all(from); }

}  // namespace
