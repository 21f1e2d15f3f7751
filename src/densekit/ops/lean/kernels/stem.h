// A network's first step: a convolution, usually followed by shift, relu and a 3x3 max pool.
#pragma once
#include <limits>

#include "inference.h"

namespace {

// Copies an image, channels last and padded with zeros, into a buffer that the team shares.
template <class T>
void copy_image(const Stem& stem, const Images& images, Index n, Part<T>* image, Team& team) {
  Index around = stem.side / 2, pitch = Sizes<T>::pitch(stem, images.w);
  auto put = [](float v) {
    Part<T> p;
    store<1>(&p, Float<1>{v});
    return p;
  };
  auto [from, to] = team.share(images.h + 2 * around);
  for (Index r = from; r < to; r++) {
    Part<T>* row = image + r * pitch;
    std::memset(row, 0, pitch * sizeof *row);
    if (r < around || r >= images.h + around) continue;
    for (Index c = 0; c < stem.channels; c++) {
      const float* p = images.p + n * images.of_n + c * images.of_c + (r - around) * images.of_h;
      for (Index x = 0; x < images.w; x++)
        row[(x + around) * stem.kept + c] = put(p[x * images.of_w]);
    }
  }
}

// out [w, rounded k] = row y of the convolution.
template <class T>
void stem_row(const Stem& stem, const Word<T>* image, Index pitch, Index y, Index w, float* out) {
  std::vector<Index> offsets;
  for (Index dy = 0; dy < stem.side; dy++) offsets.push_back(dy * pitch);
  Index depth = words_of<T>(stem.side * stem.kept), ldc = rounded(stem.k, kLanes);
  auto packed = static_cast<const Word<T>*>(stem.weight);
  Soon soon;
  for (Index first = 0; first < stem.k; first += kBlock)
    multiply(vectors_of(stem.k - first), w, depth, offsets, image + y * stem.stride * pitch,
             stem.stride * stem.kept / kParts<T>, 1, packed + first * depth * stem.side,
             out + first, ldc, false, soon);
}

// A row of the max pool from three rows of the convolution; a null row is outside the image.
template <class T>
void pool_row(const Stem& stem, const float* const (&rows)[3], Index w, T* out, Index ld) {
  Index ldc = rounded(stem.k, kLanes);
  columns(stem.k, [&](auto width, Index j) {
    WIDTH;
    auto shift = load<W>(stem.shift + j);
    auto highest = [&](Index x) {  // of column x; propagates NaN
      auto best = Float<W>{} - std::numeric_limits<float>::infinity();
      for (const float* row : rows)
        if (row) {
          auto v = load<W>(row + x * ldc + j);
          best = (best > v) | (best != best) ? best : v;
        }
      return best;
    };
    auto higher = [](Float<W> a, Float<W> b) { return (a > b) | (a != a) ? a : b; };
    auto before = Float<W>{} - std::numeric_limits<float>::infinity();
    for (Index x = 0; x < w; x += 2) {
      auto best = higher(before, highest(x));
      if (x + 1 < w) best = higher(best, before = highest(x + 1));
      store<W>(out + x / 2 * ld + j, relu<W>(best + shift));
    }
  });
}

// Writes the stem's output, the first columns of z, for image n of the group.
template <class T>
void stem(const Stem& stem, const Images& images, Index n, Maps<T> z, Index h, Index w,
          Space<T>& space, Team& team) {
  copy_image<T>(stem, images, n, space.image, team);
  team.wait();
  Index pitch = Sizes<T>::pitch(stem, images.w) / kParts<T>, ldc = rounded(stem.k, kLanes);
  Index size = rounded(w, kHeight) * ldc;
  auto image = reinterpret_cast<const Word<T>*>(space.image);
  auto [from, to] = team.share(z.h);
  auto place = [&](Index y) { return space.products + (y % 4) * size; };
  if (stem.pools && from > 0) stem_row<T>(stem, image, pitch, 2 * from - 1, w, place(2 * from - 1));
  for (Index y = from; y < to; y++) {
    T* out = z.p + (n * z.h + y) * z.w * z.ld;
    if (!stem.pools) {
      stem_row<T>(stem, image, pitch, y, w, place(0));
      columns(stem.k, [&](auto width, Index j) {
        WIDTH;
        for (Index x = 0; x < w; x++) store<W>(out + x * z.ld + j, load<W>(place(0) + x * ldc + j));
      });
      continue;
    }
    bool more = 2 * y + 1 < h;
    stem_row<T>(stem, image, pitch, 2 * y, w, place(2 * y));
    if (more) stem_row<T>(stem, image, pitch, 2 * y + 1, w, place(2 * y + 1));
    pool_row<T>(
        stem, {y > 0 ? place(2 * y - 1) : nullptr, place(2 * y), more ? place(2 * y + 1) : nullptr},
        w, out, z.ld);
  }
  team.wait();  // before the next image overwrites the buffer
}

}  // namespace
