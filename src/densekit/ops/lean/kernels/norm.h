// BatchNorm of a column, and the moments that it needs.
#pragma once
#include "rows.h"

namespace {

// norm is [4, c]: mean, scale, shift, rstd.
template <int W>
struct Norm {
  Float<W> mean, scale, shift;
  Norm(const float* norm, Index c, Index j)
      : mean(load<W>(norm + j)), scale(load<W>(norm + c + j)), shift(load<W>(norm + 2 * c + j)) {}
  Float<W> operator()(Float<W> x) const { return (x - mean) * scale + shift; }
};
template <int W>
inline Float<W> relu(Float<W> v) {
#ifdef __AVX512F__
  if constexpr (W == 16) return (Float<W>)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v);
#endif
  return v <= 0 ? Float<W>{} : v;  // NaN is not <= 0
}

// 0 if the slope is 0, even for a NaN: in eval mode a NaN pixel must not reach the gradients.
template <int W>
inline Float<W> sloping(Float<W> slope, Float<W> centred) {
  return slope == 0 ? Float<W>{} : slope * centred;
}

// Per column: the mean and the sum of squared differences from it, over each thread's tiles.
struct Moments {
  Index c;
  std::vector<double> parts, counts;
  Moments(Index c, int threads) : c(c), parts(threads * 2 * c, 0.0), counts(threads, 0.0) {}

  // Chan et al.: merges the moments of m values (mean, m2) into those of n values.
  template <int W>
  static void merge(double* into, Index c, double n, Double<W> mean, Double<W> m2, double m) {
    auto delta = mean - load<W>(into);
    store<W>(into, load<W>(into) + delta * (m / (n + m)));
    store<W>(into + c, load<W>(into + c) + m2 + delta * delta * (n * m / (n + m)));
  }

  template <class T>
  void tile(Index t, const T* z, Index ldz, Index rows, T* copy = nullptr, Index ldc = 0) {
    double *part = &parts[t * 2 * c], m = double(rows);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Float<W> near{}, sum{}, squares{};  // sums of differences from `near`, a rough mean
      if (counts[t] == 0) {
        for (Index r = 0; r < rows; r++) near += load<W>(z + r * ldz + j);
        near /= float(m);
      } else {
        near = __builtin_convertvector(load<W>(part + j), Float<W>);
      }
      for (Index r = 0; r < rows; r++) {
        auto v = load<W>(z + r * ldz + j);
        if (copy) store<W>(copy + r * ldc + j, v);
        sum += v - near;
        squares += (v - near) * (v - near);
      }
      auto off = wide<W>(sum) / m;
      merge<W>(part + j, c, counts[t], wide<W>(near) + off, wide<W>(squares) - off * off * m, m);
    });
    counts[t] += m;
  }

  // Merges into out [2, c], in the order of threads.
  void merge(double* out) const {
    std::fill(out, out + 2 * c, 0.0);
    double n = 0;
    for (size_t t = 0; t < counts.size(); n += counts[t++])
      if (counts[t] > 0)
        columns(c, [&](auto width, Index j) {
          WIDTH;
          const double* part = &parts[t * 2 * c + j];
          merge<W>(out + j, c, n, load<W>(part), load<W>(part + c), counts[t]);
        });
  }
};

}  // namespace
