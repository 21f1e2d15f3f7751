// Vectors of floats, their conversion from and to bfloat16, and loops over tiles of rows.
//
// Sums are float within a tile of rows and double over tiles; their rounding depends on the number
// of threads, and on nothing else.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using Index = int64_t;
constexpr Index kRows = 32;  // in a tile of an elementwise pass, which loads constants once
#if defined(__AVX512F__)
constexpr int kLanes = 16;  // floats in a vector register
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Vectors ------------------------------------------------------------------------------------

struct bf16 {
  uint16_t bits;
};
template <int W>
struct Vec {
  typedef float Float __attribute__((vector_size(4 * W)));
  typedef double Double __attribute__((vector_size(8 * W)));
  typedef uint32_t Word __attribute__((vector_size(4 * W)));
  typedef int32_t Int __attribute__((vector_size(4 * W)));
  typedef uint16_t Half __attribute__((vector_size(2 * W)));
  typedef uint8_t Byte __attribute__((vector_size(W)));
};
template <int W>
using Float = typename Vec<W>::Float;
template <int W>
using Double = typename Vec<W>::Double;

template <int W>
inline Float<W> load(const float* p) {
  Float<W> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <int W>
inline Float<W> load(const bf16* p) {
  typename Vec<W>::Half half;
  std::memcpy(&half, p, sizeof half);
  auto word = __builtin_convertvector(half, typename Vec<W>::Word) << 16;
  Float<W> v;
  std::memcpy(&v, &word, sizeof v);
  return v;
}
template <int W>
inline Double<W> load(const double* p) {
  Double<W> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <int W>
inline void store(float* p, Float<W> v) {
  std::memcpy(p, &v, sizeof v);
}
template <int W>
inline void store(double* p, Double<W> v) {
  std::memcpy(p, &v, sizeof v);
}
template <int W>
inline void store(bf16* p, Float<W> v) {  // to nearest even; NaN stays NaN
#ifdef __AVX512BF16__
  if constexpr (W == 16) {
    auto half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &half, sizeof half);
    return;
  }
#endif
  typename Vec<W>::Word word;
  std::memcpy(&word, &v, sizeof v);
  auto nearest = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  word = v != v ? (word >> 16) | 0x40 : nearest;
  auto half = __builtin_convertvector(word, typename Vec<W>::Half);
  std::memcpy(p, &half, sizeof half);
}
template <int W>
inline Double<W> wide(Float<W> v) {
  return __builtin_convertvector(v, Double<W>);
}

// Loops --------------------------------------------------------------------------------------

inline Index rounded(Index n, Index to) { return (n + to - 1) / to * to; }

template <int W>
using Constant = std::integral_constant<int, W>;
#define WIDTH constexpr int W = decltype(width)::value

template <class Body>
inline void columns(Index c, Body body) {  // body(width, first column)
  Index j = 0;
  for (; j + kLanes <= c; j += kLanes) body(Constant<kLanes>{}, j);
  if (kLanes > 8 && j + 8 <= c) body(Constant<8>{}, j), j += 8;
  for (; j + 4 <= c; j += 4) body(Constant<4>{}, j);
  for (; j < c; j++) body(Constant<1>{}, j);
}

// body(thread, first row, end), in order of rows
template <class Body>
void tiles(Index rows, int threads, Body body, Index tall = kRows) {
  Index count = (rows + tall - 1) / tall;
#pragma omp parallel num_threads(threads)
  {
    Index t = omp_get_thread_num(), n = omp_get_num_threads();
    for (Index i = count * t / n; i < count * (t + 1) / n; i++)
      body(t, i * tall, std::min(i * tall + tall, rows));
  }
}

// Prefetches the rows after this tile into L2: the hardware prefetcher misses narrow strided rows.
template <class T>
inline void ahead(const T* x, Index ldx, Index c, Index hi, Index rows) {
  for (Index r = hi; r < std::min(hi + kRows, rows); r++) {
    const char* p = reinterpret_cast<const char*>(x + r * ldx);
    for (Index b = 0; b < c * Index(sizeof(T)); b += 64) __builtin_prefetch(p + b, 0, 2);
  }
}

// Adds two sums per column to out [2, c] unless it is null: each thread sums its rows, and the
// threads' sums are added in order. body(thread, first row, end, sums)
template <class Body>
void two_sums(Index rows, Index c, int threads, double* out, Body body, Index tall = kRows) {
  std::vector<double> parts(threads * 2 * c, 0.0);
  auto tile = [&](Index t, Index lo, Index hi) { body(t, lo, hi, &parts[t * 2 * c]); };
  tiles(rows, threads, tile, tall);
  for (Index t = 0; out && t < threads; t++)
    for (Index j = 0; j < 2 * c; j++) out[j] += parts[t * 2 * c + j];
}
template <int W>
inline void add(double* sums, Float<W> v) {
  store<W>(sums, load<W>(sums) + wide<W>(v));
}

}  // namespace
