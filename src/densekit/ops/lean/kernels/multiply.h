// Small matrix products c = a b with operands in the cache.
//
// A word is one lane's operand: a float, or two bfloat16 with neighbouring k if the CPU can
// multiply those. a[m, k] and b[k, n] are in words; c[m, n] and all sums are float.
#pragma once
#include <new>
#include <type_traits>

#include "rows.h"

namespace {

// Accumulators kept in registers: kHeight rows by kVectors vectors of columns.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kHeight = 8, kVectors = 3;  // 24 of 32
#else
constexpr int kHeight = 6, kVectors = 2;  // 12 of 16
#endif
constexpr Index kBlock = kVectors * kLanes;  // columns computed at once
constexpr Index kDepth = 384;  // steps of k at a time, so that two vectors of b stay in L1

#ifdef __AVX512BF16__
template <class T>
constexpr bool paired = std::is_same_v<T, bf16>;
#else
template <class T>
constexpr bool paired = false;
#endif
template <class T>
using Part = std::conditional_t<paired<T>, bf16, float>;  // an element of a word
template <class T>
using Word = std::conditional_t<paired<T>, uint32_t, float>;
template <class T>
constexpr Index kParts = paired<T> ? 2 : 1;

// Allocates memory aligned to cache lines.
template <class T>
struct OnLines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const OnLines&) const { return true; }
  bool operator!=(const OnLines&) const { return false; }
};
template <class T>
using Scratch = std::vector<T, OnLines<T>>;

// Loads words of a row and keeps them in a register: loading at each use would be the bottleneck.
inline Float<kLanes> row_of(const float* b) {
  auto v = load<kLanes>(b);
#ifdef __SSE__
  asm("" : "+x"(v));
#endif
  return v;
}
inline Float<kLanes> dot(Float<kLanes> sum, float a, Float<kLanes> b) { return sum + a * b; }
#ifdef __AVX512BF16__
inline __m512i row_of(const uint32_t* b) { return _mm512_loadu_si512(b); }
inline Float<kLanes> dot(Float<kLanes> sum, uint32_t a, __m512i b) {
  return (Float<kLanes>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
}
#endif

// Rows that are needed soon, prefetched a cache line at a time; all at once was no faster.
class Soon {
  struct Rows {
    const char* p;
    Index stride, bytes, rows;
  };
  std::vector<Rows> queue;
  size_t first = 0;
  Index line = 0;  // bytes from the start of the first row

  static Index before(const char* p) { return -Index(reinterpret_cast<uintptr_t>(p) % 64); }

 public:
  template <class T>
  void add(const T* x, Index ldx, Index rows, Index c) {
    if (rows == 0) return;
    auto p = reinterpret_cast<const char*>(x);
    if (first == queue.size()) queue.clear(), first = 0, line = before(p);
    queue.push_back({p, ldx * Index(sizeof(T)), c * Index(sizeof(T)), rows});
  }
  void fetch() {
    if (first == queue.size()) return;
    Rows& next = queue[first];
    __builtin_prefetch(next.p + line, 0, 2);
    line += 64;
    if (line < next.bytes) return;
    next.p += next.stride;
    if (--next.rows == 0 && ++first < queue.size())
      line = before(queue[first].p);
    else
      line = before(next.p);
  }
};

// c = a b, or c += a b if `add`, for H rows and V vectors of columns.
template <int V, int H, class Word>
inline void product(Index k, const Word* a, Index am, Index ak, const Word* b, float* c, Index ldc,
                    bool add, Soon& soon) {
  Float<kLanes> sums[H][V] = {};
  for (Index i = 0; i < k; i++, a += ak, b += V * kLanes) {
    soon.fetch();
    decltype(row_of(b)) row[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) row[v] = row_of(b + v * kLanes);
#pragma GCC unroll 24
    for (int m = 0; m < H; m++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sums[m][v] = dot(sums[m][v], a[m * am], row[v]);
  }
#pragma GCC unroll 24
  for (int m = 0; m < H; m++)
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) {
      float* p = c + m * ldc + v * kLanes;
      store<kLanes>(p, add ? load<kLanes>(p) + sums[m][v] : sums[m][v]);
    }
}

// c = a b, or c += a b if `add`. b is `vectors` * kLanes wide and has k rows per offset, which are
// multiplied with a[offset + i * am + j * ak], i < m, j < k. Rows of a and c up to the next
// multiple of kHeight must exist: they are computed too, but do not affect the others.
template <int V = kVectors, class Word>
void multiply(int vectors, Index m, Index k, const std::vector<Index>& offsets, const Word* a,
              Index am, Index ak, const Word* b, float* c, Index ldc, bool add, Soon& soon) {
  if constexpr (V > 1)
    if (vectors < V)
      return multiply<V - 1>(vectors, m, k, offsets, a, am, ak, b, c, ldc, add, soon);
  for (Index offset : offsets)
    for (Index done = 0; done < k; done += kDepth, add = true) {
      Index deep = std::min(kDepth, k - done), i = 0;
      const Word* from = a + offset + done * ak;
      auto rows = [&](auto height, Index end) {
        constexpr int H = decltype(height)::value;
        for (; i + H <= end; i += H)
          product<V, H>(deep, from + i * am, am, ak, b, c + i * ldc, ldc, add, soon);
      };
      rows(Constant<kVectors / V * kHeight>{}, m);
      rows(Constant<kHeight>{}, m);
      rows(Constant<kHeight / 2>{}, rounded(m, kHeight / 2));
      b += deep * V * kLanes;
    }
}

inline int vectors_of(Index columns) {
  return int(rounded(std::min(columns, kBlock), kLanes) / kLanes);
}

// Stores words of kParts elements with neighbouring k.
template <int W>
inline void put(float* p, const Float<W>* parts) {
  store<W>(p, parts[0]);
}
template <int W>
inline void put(uint32_t* p, const Float<W>* parts) {
#ifdef __AVX512BF16__
  if constexpr (W == 16) {
    alignas(64) static constexpr uint16_t kOrder[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)parts[1], (__m512)parts[0]);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both));
    return;
  }
#endif
  typename Vec<W>::Half half[2];
  for (int q = 0; q < 2; q++) store<W>(reinterpret_cast<bf16*>(&half[q]), parts[q]);
  auto word = __builtin_convertvector(half[0], typename Vec<W>::Word) |
              __builtin_convertvector(half[1], typename Vec<W>::Word) << 16;
  std::memcpy(p, &word, sizeof word);
}

// Packs a matrix as b: in blocks of up to kBlock columns. Its rows are `taps` groups of `group`
// rows, each padded with zeros to whole words. element(tap, i, j): row i < group, column j < n.
template <class T>
constexpr Index words_of(Index group) {
  return (group + kParts<T> - 1) / kParts<T>;
}
template <class T>
constexpr Index packed_words(Index taps, Index group, Index n) {
  return taps * words_of<T>(group) * ((n + kLanes - 1) / kLanes * kLanes);
}
template <class T, class Element>
void pack(Word<T>* words, Index taps, Index group, Index n, int threads, Element element) {
  Index k = taps * words_of<T>(group);
#pragma omp parallel for collapse(2) num_threads(threads)
  for (Index first = 0; first < n; first += kLanes)
    for (Index tap = 0; tap < taps; tap++) {
      Index start = first / kBlock * kBlock, wide = kLanes * vectors_of(n - start);
      Word<T>* to = words + start * k + tap * words_of<T>(group) * wide + first - start;
      Index lanes = std::min<Index>(kLanes, n - first);
      for (Index i = 0; i < group; i += kParts<T>, to += wide) {
        Float<kLanes> parts[kParts<T>] = {};
        for (Index q = 0; q < std::min(kParts<T>, group - i); q++)
          for (Index j = 0; j < lanes; j++) parts[q][j] = element(tap, i + q, first + j);
        put<kLanes>(to, parts);
      }
    }
}

}  // namespace
