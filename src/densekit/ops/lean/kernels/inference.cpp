// A network's features in one call, and its classifier; ops/lean/inference.py packs the weights.
#include "inference.h"

#include "stem.h"
#include "steps.h"

namespace {

// Runs all steps for images first..first + n; out is [n, c] of the last step.
template <class T>
void group(const Program& program, const Images& images, Index first, Index n, float* out,
           Space<T> space, Team& team, Index border_ld) {
  const Stem& begin = program.stem;
  Index h = begin.convolved(images.h), w = begin.convolved(images.w);
  Maps<T> x{space.maps[0], n, begin.pooled(h), begin.pooled(w), row_stride<T>(begin.width)};
  for (Index i = 0; i < n; i++) {
    Images from = images;
    from.p += first * images.of_n;
    stem<T>(begin, from, i, x, h, w, space, team);
  }
  Bordered<T> y{space.bordered, n, x.h, x.w, border_ld};
  y.clear(team);
  Index at = 0, column = begin.k;
  for (Index i = 0; i < program.count; i++) {
    const Step& step = program.steps[i];
    switch (step.kind) {
      case kPoint:
        point<T>(step, x, y, space, team);
        break;
      case kNorm:
        norm<T>(step, x, y, team);
        break;
      case kWindow:
        window<T>(step, y, x, column, space, team), column += step.k;
        break;
      case kTransition: {
        at = 1 - at;
        Maps<T> z{space.maps[at], n, x.h / 2, x.w / 2, row_stride<T>(step.width)};
        transition<T>(step, x, z, space, team);
        y = {space.bordered, n, z.h, z.w, border_ld};
        y.clear(team);
        x = z, column = step.k;
        break;
      }
      case kLast:
        last<T>(step, x, out, team);
        break;
    }
    team.wait();
  }
}

template <class T>
void infer(const Program& program, const Images& images, float* out, int threads) {
  Index most = std::max<Index>(1, std::min(kGroup, images.n / threads));
  Index own = images.n / threads, rest = images.n % threads;
  Index teams = rest, each = rest ? threads / rest : 1, c = program.steps[program.count - 1].c;
  Sizes<T> sizes(program, most, images.h, images.w);
  Arena arena;
  std::vector<Space<T>> spaces(threads);
  std::vector<Barrier> barriers(std::max<Index>(1, teams));
  for (int opened = 0; opened < 2; opened++) {  // first for the size, then for the pieces
    if (opened) arena.open();
    for (auto& space : spaces) {
      for (int i = 0; i < 2; i++) space.maps[i] = arena.template take<T>(sizes.maps[i]);
      space.bordered = arena.template take<T>(sizes.bordered);
      space.image = arena.template take<Part<T>>(sizes.image);
      space.words = arena.template take<Word<T>>(sizes.words);
      space.products = arena.template take<float>(sizes.products);
    }
  }
#pragma omp parallel num_threads(threads)
  {
    // OpenMP may start fewer threads than asked for; they do the missing ones' share too.
    Index real = omp_get_num_threads(), me = omp_get_thread_num();
    bool all = real == threads;
    for (Index t = me; t < threads; t += real) {
      Team alone{0, 1, nullptr};
      for (Index i = 0; i < own; i += most) {
        Index first = t * own + i, n = std::min(most, own - i);
        group<T>(program, images, first, n, out + first * c, spaces[t], alone, sizes.border_ld);
      }
      if (!all && t < rest) {
        Index first = own * threads + t;
        group<T>(program, images, first, 1, out + first * c, spaces[t], alone, sizes.border_ld);
      }
    }
#pragma omp barrier  // a team uses its first thread's buffers
    if (all && me < teams * each) {
      Index team = me / each, first = own * threads + team;
      Space<T> space = spaces[team * each];
      space.words = spaces[me].words, space.products = spaces[me].products;
      Team shared{me % each, each, &barriers[team]};
      group<T>(program, images, first, 1, out + first * c, space, shared, sizes.border_ld);
    }
  }
}

// out [n, k] = x [n, c] b + bias; x must be readable to a multiple of kHeight rows.
void linear(const float* x, Index n, Index c, const float* packed, const float* bias, Index k,
            float* out, int threads) {
  Index count = (k + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads)
  for (Index i = 0; i < count; i++) {
    Index first = i * kBlock, left = std::min(kBlock, k - first);
    Scratch<float> products(rounded(n, kHeight) * kBlock);
    Soon soon;
    blocks<float>(packed + first * c, c, left, x, c, n, products.data(), soon, [](Index, Index) {});
    for (Index r = 0; r < n; r++)
      for (Index j = 0; j < left; j++)
        out[r * k + first + j] = products[r * kBlock + j] + bias[first + j];
  }
}

// Packs `count` matrices w [taps, n, group] for products, one after the other.
template <class T>
void pack_all(const float* w, Index count, Index taps, Index group, Index n, void* out,
              int threads) {
  auto words = static_cast<Word<T>*>(out);
  for (Index i = 0; i < count; i++, w += taps * n * group, words += packed_words<T>(taps, group, n))
    pack<T>(words, taps, group, n, threads,
            [=](Index tap, Index row, Index j) { return w[(tap * n + j) * group + row]; });
}

}  // namespace

#define EXPORT(T, name)                                                                      \
  Index packed_bytes_##name(Index count, Index taps, Index group, Index n, int) {                  \
    return count * packed_words<T>(taps, group, n) * sizeof(Word<T>);                        \
  }                                                                                          \
  void pack_##name(const float* w, Index count, Index taps, Index group, Index n, void* out, \
                   int threads) {                                                            \
    pack_all<T>(w, count, taps, group, n, out, threads);                                     \
  }                                                                                          \
  void infer_##name(const Program* program, const Images* images, float* out, int threads) { \
    infer<T>(*program, *images, out, threads);                                               \
  }

extern "C" {
void linear_f32(const float* x, Index n, Index c, const float* packed, const float* bias, Index k,
                float* out, int threads) {
  linear(x, n, c, packed, bias, k, out, threads);
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
}
