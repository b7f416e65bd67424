// Small matrix products for attention, and the packing that they want.
//
// One kernel does every product: c[row][column] += sum over k of x(row, k) * w[k][column]. x is
// read one word at a time, so it may lie either way round; w is read in vectors, from panels of
// WIDTH columns. Scores are kept transposed, (keys, queries): the lanes of a vector are queries, so
// the softmax needs no sums across lanes, four keys of one dropout counter are four rows, and keys
// and values enter the products as they lie in memory.
#pragma once

#include "product.h"
#include "vec_math.h"
#include "work.h"

namespace {

template <class T>
struct Shape {
  typedef Acc<T> A;
  static constexpr int L = lanes<A>;
  static constexpr int ROWS = FASTSEQ_VECTOR_BYTES == 64 ? 12 : 6; // of the largest tile
  static constexpr int WIDTH = 2 * L;                              // columns of a panel
  static constexpr int WORD = Format<T>::PER_WORD;
};

// The format of products once operands are packed: without pairs, that of the accumulating type.
template <class T, int WORD = Format<T>::PER_WORD>
struct ProductOf {
  typedef Format<T> type;
};
template <class T>
struct ProductOf<T, 1> {
  typedef Format<Acc<T>> type;
};
template <class T>
using Product = typename ProductOf<T>::type;

// Where x(row, k) is: at row * ld + k if ALONG, else at k * ld + row.
template <class F, int ROWS, int NACC, bool ALONG>
static void product_tile(const typename F::A* x, int64_t ldx, const typename F::A* w, int64_t ldw,
                         int64_t K, typename F::A* c, int64_t ldc, bool resume) {
  typedef typename F::A A;
  constexpr int L = lanes<A>;
  Vec<A> sum[ROWS][NACC];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < NACC; ++n) sum[r][n] = Vec<A>{};
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> v[NACC];
#pragma GCC unroll 2
    for (int n = 0; n < NACC; ++n) v[n] = load(w + k * ldw + n * L);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const A word = ALONG ? x[r * ldx + k] : x[k * ldx + r];
#pragma GCC unroll 2
      for (int n = 0; n < NACC; ++n) sum[r][n] = F::fma(sum[r][n], word, v[n]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < NACC; ++n) {
      A* const to = c + r * ldc + n * L;
      // Blocks are summed apart, then together: a long sum loses far less to rounding so.
      store(to, resume ? load(to) + sum[r][n] : sum[r][n]);
    }
}

// A strip of up to Shape::ROWS rows by one panel, or by its first vector alone.
template <class F, int NACC, bool ALONG>
static void product_strip(int64_t rows, const typename F::A* x, int64_t ldx, const typename F::A* w,
                          int64_t ldw, int64_t K, typename F::A* c, int64_t ldc, bool resume) {
#define FASTSEQ_ROWS(N)                                                                            \
  while (rows >= N) {                                                                              \
    product_tile<F, N, NACC, ALONG>(x, ldx, w, ldw, K, c, ldc, resume);                            \
    x += ALONG ? N * ldx : N;                                                                      \
    c += N * ldc;                                                                                  \
    rows -= N;                                                                                     \
  }
#if FASTSEQ_VECTOR_BYTES == 64
  FASTSEQ_ROWS(12)
  FASTSEQ_ROWS(8)
#endif
  FASTSEQ_ROWS(6)
  FASTSEQ_ROWS(4)
  FASTSEQ_ROWS(2)
  FASTSEQ_ROWS(1)
#undef FASTSEQ_ROWS
}

// Rows of vectors: where w starts, and its strides from one k to the next and between panels.
template <class A>
struct Panels {
  const A* data;
  int64_t ld, panel;
};

// c (rows, columns) (+)= x w. Columns are whole vectors.
template <class F, bool ALONG>
static void product(int64_t rows, int64_t columns, int64_t K, const typename F::A* x, int64_t ldx,
                    Panels<typename F::A> w, typename F::A* c, int64_t ldc, bool resume) {
  constexpr int L = lanes<typename F::A>;
  for (int64_t n = 0; n < columns; n += 2 * L, w.data += w.panel) {
    if (columns - n > L)
      product_strip<F, 2, ALONG>(rows, x, ldx, w.data, w.ld, K, c + n, ldc, resume);
    else
      product_strip<F, 1, ALONG>(rows, x, ldx, w.data, w.ld, K, c + n, ldc, resume);
  }
}

// Words: rows of T as x wants them, (rows, ld), zeros after the last element.
template <class T>
static void pack_words(const T* from, int64_t stride, int64_t rows, int64_t width, Acc<T>* to,
                       int64_t ld) {
  typedef Format<T> F;
  constexpr int L = lanes<Acc<T>>;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k * F::PER_WORD < width; k += L)
      store(to + r * ld + k, F::words(from + r * stride + k * F::PER_WORD, width - k * F::PER_WORD),
            ld - k);
}

// Panels of rows: w for sums over rows. Row word k of panel p is at to + p * panel + k * WIDTH.
template <class T>
static void pack_panels(const T* from, int64_t stride, int64_t rows, int64_t width, Acc<T>* to,
                        int64_t panel) {
  typedef Format<T> F;
  constexpr int L = lanes<Acc<T>>, W = Shape<T>::WIDTH;
  for (int64_t p = 0; p < width; p += W, to += panel)
    for (int64_t r = 0, k = 0; r < rows; r += F::PER_WORD, ++k)
      for (int n = 0; n < W; n += L)
        store(to + k * W + n, p + n < width ? F::column_words(from + r * stride + p + n, stride,
                                                              rows - r, width - p - n)
                                            : Vec<Acc<T>>{});
}

// Panels of columns: w for products with rows, whose lanes are rows. Takes one panel of WIDTH rows;
// word k is at to + k * WIDTH.
template <class T>
static void pack_across(const T* from, int64_t stride, int64_t width, Acc<T>* to) {
  typedef Format<T> F;
  typedef Acc<T> A;
  constexpr int L = lanes<A>, W = Shape<T>::WIDTH;
  const int64_t K = words_for<F>(width);
  for (int64_t k = 0; k < K; k += L)
    for (int n = 0; n < W; n += L) {
      Vec<A> m[L];
      for (int i = 0; i < L; ++i)
        m[i] = F::words(from + (n + i) * stride + k * F::PER_WORD, width - k * F::PER_WORD);
      transpose<A>(m);
      for (int i = 0; i < L && k + i < K; ++i) store(to + (k + i) * W + n, m[i]);
    }
}

} // namespace
