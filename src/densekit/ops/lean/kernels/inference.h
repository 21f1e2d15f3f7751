// A whole network in evaluation mode, a few images at a time.
//
// Each thread takes images of its own through all steps, so that their maps stay in its cache and
// no thread waits for another. If there are fewer images than threads, a team of threads shares an
// image: each computes a part of every step, with a barrier after it. Sums always run in the
// order of channels, so an image's logits are bit-identical in any batch and with any number of
// threads.
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

constexpr Index kGroup = 4;  // images that a thread computes together, reading weights once
constexpr Index kPixels = 96;      // in a 1x1 convolution's tile
constexpr Index kWindows = 32;     // 4x4 Winograd tiles transformed at once,
constexpr Index kPlaces = 16;      // each to 16 products
constexpr Index kRowPadding = 16;  // floats after a row, to spread rows over cache sets

constexpr int kSpins = 4000;  // before a waiting thread sleeps: some tens of microseconds

// Packed by inference.py; a pointer that a kind of step does not use is null.
enum Kind : int64_t { kPoint, kNorm, kWindow, kTransition, kLast };
struct Stem {
  Index channels, kept;  // of the image, and as stored: (stride * kept) is whole words
  Index side, stride, k;
  Index pools;  // whether shift, relu and a 3x3 max pool follow
  Index width;  // channels of the next block, with those that its layers add
  const void* weight;
  const float* shift;

  Index convolved(Index size) const { return (size + side / 2 * 2 - side) / stride + 1; }
  Index pooled(Index size) const { return pools ? (size + 1) / 2 : size; }
};
struct Step {
  Kind kind;
  Index c, k;          // channels read and written
  Index width;         // kTransition: channels of the next block, with those its layers add
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

// Threads that share an image -------------------------------------------------------------------

struct alignas(64) Barrier {
  std::atomic<uint32_t> arrived{0}, asleep{0};
};
// A waiting thread spins for some microseconds and then sleeps: threads may share a core.
struct Team {
  Index t, size;
  Barrier* barrier;
  uint32_t round = 0;

  std::pair<Index, Index> share(Index n) const { return {n * t / size, n * (t + 1) / size}; }
  void wait() {
    if (size == 1) return;
    uint32_t all = ++round * uint32_t(size);
    if (barrier->arrived.fetch_add(1) + 1 == all) {
      if (barrier->asleep.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
      return;
    }
    for (int i = 0; i < kSpins; i++) {
      if (barrier->arrived.load(std::memory_order_acquire) >= all) return;
#ifdef __SSE2__
      __builtin_ia32_pause();
#endif
    }
    barrier->asleep.fetch_add(1);
    for (uint32_t seen; (seen = barrier->arrived.load()) < all;) futex(FUTEX_WAIT_PRIVATE, seen);
    barrier->asleep.fetch_sub(1);
  }
  void futex(int operation, uint32_t value) {
    syscall(SYS_futex, &barrier->arrived, operation, value, nullptr, nullptr, 0);
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
// Maps with zeros around each image: as many as its 4x4 tiles, two pixels apart, read.
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
constexpr Index row_stride(Index columns) {  // in elements
  return rounded(columns, 64 / sizeof(T)) + 64 / Index(sizeof(T));
}

// Buffer sizes for a group of `n` images.
template <class T>
struct Sizes {
  Index maps[2] = {0, 0}, bordered = 0, border_ld = 0;  // elements of T
  Index image = 0;                                      // elements of Part<T>
  Index words = 0, products = 0;  // per thread: the products' inputs and float results

  static Index lda(Index c) { return rounded(words_of<T>(c), 16) + kRowPadding; }
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
      maps[at] = std::max(maps[at], n * h * w * row_stride<T>(width));
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

// One allocation, cut into pieces aligned to cache lines.
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
  T *maps[2], *bordered;  // shared by a team, as is image
  Part<T>* image;
  Word<T>* words;  // a thread's own, as are products
  float* products;
};

}  // namespace
