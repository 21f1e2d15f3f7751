// A whole network in evaluation, a few images at a time.
//
// Threads take images of their own and carry them from the first step to the last, so that an
// image's maps stay in a thread's cache and nobody waits. Where there are fewer images than
// threads, a team of threads shares one: each takes a part of every step, and they meet after it.
// Every sum is taken in the order of channels, whatever the tiles, teams and batch are: an image's
// logits are the same bits in any batch and with any number of threads.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <utility>

#include "multiply.h"
#include "norm.h"

namespace {

constexpr Index kGroup = 4;  // images that a thread carries at once: weights are read once for all
constexpr Index kPixels = 96;   // of a 1x1 convolution's tile
constexpr Index kWindows = 32;  // 4x4 tiles that are transformed at once, each to
constexpr Index kPlaces = 16;   // products
constexpr Index kApart = 16;  // floats between rows, so that they do not map to the same cache sets

constexpr int kSpins = 4000;  // before a waiting thread sleeps: some tens of microseconds

// What inference.py packs; pointers are null where a step has no such thing.
enum Kind : int64_t { kPoint, kNorm, kWindow, kTransition, kLast };
struct Stem {
  Index channels, kept;  // of the image, and as stored: (stride * kept) is whole words
  Index side, stride, k;
  Index pools;  // shift, relu and a 3x3 max pool follow
  Index width;  // channels of the block that follows, all its layers included
  const void* weight;
  const float* shift;

  Index convolved(Index size) const { return (size + side / 2 * 2 - side) / stride + 1; }
  Index pooled(Index size) const { return pools ? (size + 1) / 2 : size; }
};
struct Step {
  Kind kind;
  Index c, k;          // channels read and written
  Index width;         // kTransition: channels of the next block, all its layers included
  const float* norm;   // [2, c]: scale, shift
  const void* weight;  // packed
  const float* shift;  // [k], added to the product before a relu
};
struct Program {
  Stem stem;
  const Step* steps;
  Index count;
};
struct Images {
  const float* p;
  Index n, h, w;
  Index of_n, of_c, of_h, of_w;  // strides
};

// Threads that share images ---------------------------------------------------------------------

struct alignas(64) Meeting {
  std::atomic<uint32_t> arrived{0}, asleep{0};
};
// A waiting thread spins for some microseconds and then sleeps: threads may share a core.
struct Team {
  Index t, size;
  Meeting* meeting;
  uint32_t round = 0;

  std::pair<Index, Index> share(Index n) const { return {n * t / size, n * (t + 1) / size}; }
  void meet() {
    if (size == 1) return;
    uint32_t all = ++round * uint32_t(size);
    if (meeting->arrived.fetch_add(1) + 1 == all) {
      if (meeting->asleep.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
      return;
    }
    for (int i = 0; i < kSpins; i++) {
      if (meeting->arrived.load(std::memory_order_acquire) >= all) return;
#ifdef __SSE2__
      __builtin_ia32_pause();
#endif
    }
    meeting->asleep.fetch_add(1);
    for (uint32_t seen; (seen = meeting->arrived.load()) < all;) futex(FUTEX_WAIT_PRIVATE, seen);
    meeting->asleep.fetch_sub(1);
  }
  void futex(int operation, uint32_t value) {
    syscall(SYS_futex, &meeting->arrived, operation, value, nullptr, nullptr, 0);
  }
};

// Memory ----------------------------------------------------------------------------------------

// Maps [n, h, w, ld] as rows of pixels.
template <class T>
struct Maps {
  T* p;
  Index n, h, w, ld;
  Index pixels() const { return n * h * w; }
};
// Maps with zeros around each image, as many as 4x4 tiles at every second pixel read.
template <class T>
struct Bordered {
  T* p;
  Index n, h, w, ld;
  Index pitch() const { return (w + 1) / 2 * 2 + 2; }
  Index tall() const { return (h + 1) / 2 * 2 + 2; }
  Index size() const { return n * tall() * pitch() * ld; }
  T* row(Index image, Index y) const { return p + (image * tall() + y + 1) * pitch() * ld; }
  T* at(Index image, Index y, Index x) const { return row(image, y) + (x + 1) * ld; }
  void clear(Team& team) const {
    auto [lo, hi] = team.share(n * tall());
    for (Index r = lo; r < hi; r++) {
      T* start = p + r * pitch() * ld;
      Index y = r % tall() - 1, from = y < 0 || y >= h ? 0 : (w + 1) * ld;
      std::memset(start, 0, ld * sizeof(T));
      std::memset(start + from, 0, (pitch() * ld - from) * sizeof(T));
    }
  }
};

template <class T>
constexpr Index apart(Index columns) {  // a row's distance in elements
  return rounded(columns, 64 / sizeof(T)) + 64 / Index(sizeof(T));
}

// How large everything is for a group of `n` images.
template <class T>
struct Sizes {
  Index maps[2] = {0, 0}, bordered = 0, border_ld = 0;  // elements of T
  Index image = 0;                                      // parts of words
  Index words = 0, products = 0;  // of a thread: inputs of products, and their results in floats

  static Index lda(Index c) { return rounded(words_of<T>(c), 16) + kApart; }
  static Index pixels(Index c) {
    return std::max<Index>(24, std::min(kPixels, 65536 / lda(c) / 8 * 8));
  }
  static Index windows(Index c) {
    return std::max<Index>(8, std::min(kWindows, 5120 / words_of<T>(c) / 8 * 8));
  }

  Sizes(const Program& program, Index n, Index h, Index w) {
    const Stem& stem = program.stem;
    image = (h + 2 * (stem.side / 2)) * pitch(stem, w) + kHeight * stem.stride * stem.kept;
    h = stem.convolved(h), w = stem.convolved(w);
    products = 4 * rounded(w, kHeight) * rounded(stem.k, kLanes);  // rows of the convolution
    h = stem.pooled(h), w = stem.pooled(w);
    const Step *begin = program.steps, *end = begin + program.count;
    for (const Step* step = begin; step < end; step++) {
      if (step->kind == kPoint) border_ld = std::max(border_ld, rounded(step->k, kParts<T>));
      if (step->kind == kNorm) border_ld = std::max(border_ld, rounded(step->c, kParts<T>));
    }
    Index at = 0;
    auto block = [&](Index width) {
      maps[at] = std::max(maps[at], n * h * w * apart<T>(width));
      bordered = std::max(bordered, Bordered<T>{nullptr, n, h, w, border_ld}.size());
    };
    block(stem.width);
    for (const Step* step = begin; step < end; step++) {
      if (step->kind == kTransition) h /= 2, w /= 2, at = 1 - at, block(step->width);
      Index rows = step->kind == kWindow ? kPlaces * windows(step->c) : pixels(step->c);
      if (!step->weight) continue;
      words = std::max(words, (rows + kHeight) * lda(step->c));
      products = std::max(products, (rows + kHeight) * kBlock);
    }
  }
  // Elements between rows of the padded image.
  static Index pitch(const Stem& stem, Index w) {
    return rounded((w + 2 * (stem.side / 2)) * stem.kept, kParts<T>) + kParts<T> * kLanes;
  }
};

// One allocation, in pieces aligned to cache lines.
class Arena {
  OnLines<char> lines;
  char *start = nullptr, *next = nullptr;
  size_t bytes = 0;

 public:
  template <class T>
  T* take(Index n) {
    char* p = next;
    next += rounded(n * sizeof(T), 64);
    bytes += rounded(n * sizeof(T), 64);
    return reinterpret_cast<T*>(p);
  }
  void open() { start = next = lines.allocate(bytes); }
  ~Arena() {
    if (start) lines.deallocate(start, bytes);
  }
};

template <class T>
struct Space {
  T *maps[2], *bordered;  // of a team
  Part<T>* image;
  Word<T>* words;  // of a thread
  float* products;
};

}  // namespace
