// Attention's CPU operators: checks tensors, hands raw pointers to the kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "tensors.h"

namespace {

using at::Tensor;
using fastseq::acc_type;
using fastseq::AttentionArgs;
using fastseq::AttentionBackwardArgs;
using fastseq::DecodeArgs;
using fastseq::dtype_of;
using fastseq::Tokens;
using OptionalTensor = std::optional<Tensor>;

// The strides of a (batch, heads, tokens, width) tensor. A dimension of size 1 may have any stride.
Tokens tokens_at(void* data, const Tensor& x) {
  return {data, x.stride(0), x.stride(1), x.stride(2)};
}
Tokens result(const Tensor& x) {
  return tokens_at(x.mutable_data_ptr(), x);
}

// Like `x` in memory (tokens before heads where x's are), of another width.
Tensor empty_in_layout(const Tensor& x, int64_t width) {
  const auto s = x.sizes();
  if (x.stride(1) < x.stride(2))
    return at::empty({s[0], s[2], s[1], width}, x.options()).transpose(1, 2);
  return at::empty({s[0], s[1], s[2], width}, x.options());
}

// Checks arguments and keeps alive the copies that some of them need.
class Arguments {
public:
  // A 4-dimensional tensor, its last dimension contiguous.
  Tokens tokens(const Tensor& x, const char* name, const Tensor& q) {
    TORCH_CHECK(x.dim() == 4, "fastseq: ", name,
                " must be (batch, heads, tokens, width), got shape ", x.sizes());
    TORCH_CHECK(x.device().is_cpu(), "fastseq: ", name, " must be on the CPU, got ", x.device());
    TORCH_CHECK(x.scalar_type() == q.scalar_type(), "fastseq: ", name, " must be ", q.scalar_type(),
                " as q is, got ", x.scalar_type());
    const Tensor& kept = keep(x.size(3) > 1 && x.stride(3) != 1 ? x.contiguous() : x);
    return tokens_at(const_cast<void*>(kept.const_data_ptr()), kept); // nobody writes there
  }
  Tokens tokens(const Tensor& x, const char* name, const Tensor& q, at::IntArrayRef shape) {
    TORCH_CHECK(x.sizes() == shape, "fastseq: ", name, " must have shape ", shape, ", got ",
                x.sizes());
    return tokens(x, name, q);
  }
  const void* contiguous(const Tensor& x, const char* name, at::IntArrayRef shape,
                         at::ScalarType dtype) {
    TORCH_CHECK(x.device().is_cpu(), "fastseq: ", name, " must be on the CPU, got ", x.device());
    TORCH_CHECK(x.sizes() == shape, "fastseq: ", name, " must have shape ", shape, ", got ",
                x.sizes());
    return keep(x.to(dtype).contiguous()).const_data_ptr();
  }
  const int32_t* ints(const Tensor& x, const char* name, at::IntArrayRef shape) {
    TORCH_CHECK(x.scalar_type() == at::kInt, "fastseq: ", name, " must be int32, got ",
                x.scalar_type());
    return (const int32_t*)contiguous(x, name, shape, at::kInt);
  }
  void alibi(const OptionalTensor& slopes, int64_t batch, int64_t heads, const double** out,
             int64_t* stride) {
    *out = nullptr, *stride = 0;
    if (!slopes) return;
    TORCH_CHECK(slopes->dim() == 1 || slopes->dim() == 2, "fastseq: alibi_slopes must be (", heads,
                ",) or (", batch, ", ", heads, "), got ", slopes->sizes());
    const std::vector<int64_t> shared{heads}, each{batch, heads};
    *out = (const double*)contiguous(*slopes, "alibi_slopes", slopes->dim() == 1 ? shared : each,
                                     at::kDouble);
    *stride = slopes->dim() == 1 ? 0 : heads;
  }
  const Tensor& keep(const Tensor& x) {
    held_.push_back(x);
    return held_.back();
  }

private:
  std::vector<Tensor> held_;
};

struct Options {
  double scale;
  int64_t window_left, window_right;
  bool bottom_right;
  double softcap, dropout_p;
  int64_t max_seqlen_q, max_seqlen_k;
};

void check_bounds(const int32_t* bounds, int64_t count, int64_t total, int64_t longest,
                  const char* name) {
  TORCH_CHECK(count == 0 ? total == 0 : bounds[0] == 0 && bounds[count] == total, "fastseq: ", name,
              " must run from 0 to the number of tokens, ", total);
  for (int64_t b = 0; b < count; ++b)
    TORCH_CHECK(bounds[b + 1] >= bounds[b] && bounds[b + 1] - bounds[b] <= longest,
                "fastseq: ", name, " must not decrease, nor a sequence be longer than max_seqlen, ",
                longest);
}

fastseq::Mask mask_of(Arguments& arguments, const Tensor& mask, const Tensor& q, const Tensor& k) {
  const int64_t full[4] = {q.size(0), q.size(1), q.size(2), k.size(2)};
  TORCH_CHECK(mask.dim() == 4, "fastseq: mask must have 4 dimensions, got ", mask.sizes());
  for (int d = 0; d < 4; ++d)
    TORCH_CHECK(mask.size(d) == full[d] || mask.size(d) == 1, "fastseq: mask must broadcast to ",
                at::IntArrayRef(full, 4), ", got ", mask.sizes());
  TORCH_CHECK(mask.device().is_cpu(), "fastseq: mask must be on the CPU, got ", mask.device());
  TORCH_CHECK(mask.scalar_type() == at::kBool || mask.is_floating_point(),
              "fastseq: mask must be bool or floating, got ", mask.scalar_type());
  const Tensor& kept = arguments.keep(mask);
  auto stride = [&](int d) { return kept.size(d) == 1 ? 0 : kept.stride(d); };
  fastseq::Mask m{fastseq::MASK_BOOL, kept.const_data_ptr(), stride(0), stride(1), stride(2),
                  stride(3)};
  if (mask.scalar_type() == at::kBool) return m;
  switch (dtype_of(mask, "mask")) {
  case fastseq::F64:
    m.type = fastseq::MASK_F64;
    break;
  case fastseq::F32:
    m.type = fastseq::MASK_F32;
    break;
  case fastseq::BF16:
    m.type = fastseq::MASK_BF16;
    break;
  case fastseq::F16:
    m.type = fastseq::MASK_F16;
    break;
  }
  return m;
}

// What scores are besides products; no key is further than `reach` from a query's own.
template <class Args>
void set_form(Args& a, double scale, double softcap, int64_t left, int64_t right, int64_t reach) {
  TORCH_CHECK(std::isfinite(scale), "fastseq: scale must be finite, got ", scale);
  TORCH_CHECK(softcap >= 0, "fastseq: softcap must not be negative, got ", softcap);
  a.scale = scale;
  // A cap that no score can reach is none, and one below the normal numbers leaves nothing.
  constexpr double least = 0x1p-126, most = 0x1p126; // of normal floats, and their reciprocals
  a.softcap = softcap > most ? 0 : softcap > 0 ? std::max(softcap, least) : 0;
  a.window_left = left < reach ? left : -1;
  a.window_right = right < reach ? right : -1;
}

void set_common(Arguments& arguments, AttentionArgs& a, const Tensor& q, const Tensor& k,
                const OptionalTensor& v, const OptionalTensor& mask,
                const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                const OptionalTensor& alibi_slopes, const OptionalTensor& seed, const Options& o) {
  a.dtype = dtype_of(q, "q");
  a.q = arguments.tokens(q, "q", q);
  a.k = arguments.tokens(k, "k", q);
  a.B = q.size(0), a.Hq = q.size(1), a.Sq = q.size(2), a.D = q.size(3);
  a.Hk = k.size(1), a.Sk = k.size(2);
  TORCH_CHECK(k.size(0) == a.B && k.size(3) == a.D, "fastseq: k must be (", a.B,
              ", heads, tokens, ", a.D, ") to go with q, got ", k.sizes());
  if (v) {
    a.v = arguments.tokens(*v, "v", q);
    a.Dv = v->size(3);
    TORCH_CHECK(v->size(0) == a.B && v->size(1) == a.Hk && v->size(2) == a.Sk,
                "fastseq: v must be (", a.B, ", ", a.Hk, ", ", a.Sk, ", width) to go with k, got ",
                v->sizes());
  }
  TORCH_CHECK(a.Hk > 0 ? a.Hq % a.Hk == 0 : a.Hq == 0, "fastseq: the heads of k, ", a.Hk,
              ", must divide those of q, ", a.Hq);
  TORCH_CHECK(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(),
              "fastseq: cu_seqlens_q and cu_seqlens_k come together");
  a.max_q = o.max_seqlen_q, a.max_k = o.max_seqlen_k;
  if (cu_seqlens_q) {
    TORCH_CHECK(!mask, "fastseq: packed sequences (cu_seqlens) take no mask");
    TORCH_CHECK(a.B == 1, "fastseq: with cu_seqlens, q must have batch size 1, got ", a.B);
    TORCH_CHECK(cu_seqlens_q->dim() == 1 && cu_seqlens_q->size(0) > 0,
                "fastseq: cu_seqlens_q must be (sequences + 1,), got ", cu_seqlens_q->sizes());
    const int64_t bounds = cu_seqlens_q->size(0);
    a.cu_q = arguments.ints(*cu_seqlens_q, "cu_seqlens_q", {bounds});
    a.cu_k = arguments.ints(*cu_seqlens_k, "cu_seqlens_k", {bounds});
    a.B = bounds - 1;
    check_bounds(a.cu_q, a.B, a.Sq, a.max_q, "cu_seqlens_q");
    check_bounds(a.cu_k, a.B, a.Sk, a.max_k, "cu_seqlens_k");
  } else {
    TORCH_CHECK(a.max_q >= a.Sq && a.max_k >= a.Sk, "fastseq: max_seqlen_q and max_seqlen_k, ",
                a.max_q, " and ", a.max_k, ", are less than the tokens of q and k, ", a.Sq, " and ",
                a.Sk);
  }
  if (mask) a.mask = mask_of(arguments, *mask, q, k);
  arguments.alibi(alibi_slopes, a.B, a.Hq, &a.alibi, &a.alibi_batch);
  TORCH_CHECK(o.dropout_p >= 0 && o.dropout_p <= 1,
              "fastseq: dropout_p must be between 0 and 1, got ", o.dropout_p);
  TORCH_CHECK(o.dropout_p == 0 || seed, "fastseq: dropout needs a seed");
  if (seed) {
    TORCH_CHECK(seed->scalar_type() == at::kLong && seed->numel() == 1 && seed->device().is_cpu(),
                "fastseq: seed must be one int64 on the CPU");
    a.seed = (uint64_t)*seed->const_data_ptr<int64_t>();
  }
  a.dropout_p = o.dropout_p;
  a.bottom_right = o.bottom_right;
  set_form(a, o.scale, o.softcap, o.window_left, o.window_right, a.Sq + a.Sk);
  a.threads = fastseq::usable_threads();
}

// Whether too few queries share a key for packing to pay.
bool few_queries(const AttentionArgs& a) {
  return a.Hk > 0 && a.Hq / a.Hk * a.Sq <= 8 && !a.cu_q && a.dropout_p == 0;
}

DecodeArgs decode_of(const AttentionArgs& a) {
  DecodeArgs d{};
  d.dtype = a.dtype;
  d.B = a.B, d.Hq = a.Hq, d.Hk = a.Hk, d.Sq = a.Sq, d.D = a.D, d.Dv = a.Dv;
  d.q = a.q, d.k = a.k, d.v = a.v, d.out = a.out, d.lse = a.lse;
  d.norm = a.norm;
  d.length = a.Sk;
  d.mask = a.mask;
  d.alibi = a.alibi, d.alibi_batch = a.alibi_batch;
  d.scale = a.scale, d.softcap = a.softcap;
  d.window_left = a.window_left, d.window_right = a.window_right;
  d.bottom_right = a.bottom_right;
  d.threads = a.threads;
  return d;
}

// What rows' weights are made from: their largest scores, and the weights of these.
Tensor empty_norm(const Tensor& q) {
  return at::empty({q.size(0), q.size(1), q.size(2), 2}, q.options().dtype(acc_type(q)));
}

// Whether weights show in which order the products of their scores were added up: the largest
// scores, which lse and norm tell, are far from 0.
template <class A>
bool shows_order(const AttentionArgs& a) {
  for (int64_t i = 0; i < a.B * a.Hq * a.Sq; ++i) {
    const A largest = ((const A*)a.lse)[i] + std::log(((const A*)a.norm)[2 * i + 1]);
    if (std::abs(largest) > 4 && std::isfinite(largest)) return true;
  }
  return false;
}

// Takes lse and norm. Those of a few queries come from products that were added up in another order
// than here: where that shows, norm is made again, and so is out if there is one.
void take_norm(Arguments& arguments, AttentionArgs& a, const Tensor& lse,
               const OptionalTensor& norm, const Tensor& q) {
  const std::vector<int64_t> shape{q.size(0), q.size(1), q.size(2), 2};
  const at::IntArrayRef pairs(shape);
  const auto dtype = acc_type(q);
  a.lse = const_cast<void*>(arguments.contiguous(lse, "lse", pairs.slice(0, 3), dtype));
  if (norm) a.norm = const_cast<void*>(arguments.contiguous(*norm, "norm", pairs, dtype));
  if (!few_queries(a)) return;
  if (norm && !(dtype == at::kDouble ? shows_order<double>(a) : shows_order<float>(a))) return;
  a.norm = arguments.keep(empty_norm(q)).mutable_data_ptr();
  AttentionArgs again = a;
  again.lse = arguments.keep(at::empty_like(lse)).mutable_data_ptr();
  if (a.out.data)
    a.out = again.out = result(arguments.keep(empty_in_layout(q, a.Dv)));
  else
    again.Dv = 0;
  fastseq::kernels().attention_forward(&again);
}

std::tuple<Tensor, Tensor, Tensor>
attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                  const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                  const OptionalTensor& alibi_slopes, const OptionalTensor& seed, double scale,
                  int64_t window_left, int64_t window_right, bool bottom_right, double softcap,
                  double dropout_p, int64_t max_seqlen_q, int64_t max_seqlen_k) {
  Arguments arguments;
  AttentionArgs a{};
  set_common(arguments, a, q, k, v, mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed,
             {scale, window_left, window_right, bottom_right, softcap, dropout_p, max_seqlen_q,
              max_seqlen_k});
  Tensor out = empty_in_layout(q, a.Dv);
  Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(acc_type(q)));
  Tensor norm = empty_norm(q);
  a.out = result(out);
  a.lse = lse.mutable_data_ptr();
  a.norm = norm.mutable_data_ptr();
  if (few_queries(a)) {
    const DecodeArgs d = decode_of(a);
    fastseq::kernels().attention_decode(&d);
  } else {
    fastseq::kernels().attention_forward(&a);
  }
  return {out, lse, norm};
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
attention_backward(const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q,
                   const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                   const OptionalTensor& norm, const OptionalTensor& mask,
                   const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                   const OptionalTensor& alibi_slopes, const OptionalTensor& seed, double scale,
                   int64_t window_left, int64_t window_right, bool bottom_right, double softcap,
                   double dropout_p, int64_t max_seqlen_q, int64_t max_seqlen_k, bool need_mask) {
  Arguments arguments;
  AttentionBackwardArgs a{};
  set_common(arguments, a, q, k, v, mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed,
             {scale, window_left, window_right, bottom_right, softcap, dropout_p, max_seqlen_q,
              max_seqlen_k});
  TORCH_CHECK(!need_mask || (mask && mask->is_floating_point()),
              "fastseq: only a floating mask has a gradient");
  const std::vector<int64_t> results{q.size(0), q.size(1), q.size(2), a.Dv};
  const at::IntArrayRef rows(results.data(), 3);
  a.out = arguments.tokens(out, "out", q, results);
  a.grad_out = arguments.tokens(grad_out, "grad_out", q, results);
  take_norm(arguments, a, lse, norm, q);
  if (grad_lse) a.grad_lse = arguments.contiguous(*grad_lse, "grad_lse", rows, acc_type(q));
  Tensor grad_q = empty_in_layout(q, a.D);
  Tensor grad_k = empty_in_layout(k, a.D);
  Tensor grad_v = empty_in_layout(v, a.Dv);
  Tensor grad_mask = at::empty({0}, q.options());
  if (need_mask) {
    grad_mask = at::zeros(mask->sizes(), q.options().dtype(acc_type(q)));
    a.grad_mask = grad_mask.mutable_data_ptr();
    for (int d = 0; d < 4; ++d) a.mask_sizes[d] = mask->size(d);
  }
  a.grad_q = result(grad_q);
  a.grad_k = result(grad_k);
  a.grad_v = result(grad_v);
  fastseq::kernels().attention_backward(&a);
  if (need_mask) grad_mask = grad_mask.to(mask->scalar_type());
  return {grad_q, grad_k, grad_v, grad_mask};
}

// Of each head, or their mean.
Tensor empty_weights(const Tensor& q, int64_t keys, bool average) {
  TORCH_CHECK(!average || q.size(1) > 0, "fastseq: no heads to average over");
  return average ? at::empty({q.size(0), q.size(2), keys}, q.options())
                 : at::empty({q.size(0), q.size(1), q.size(2), keys}, q.options());
}

Tensor attention_weights(const Tensor& q, const Tensor& k, const Tensor& lse,
                         const OptionalTensor& norm, const OptionalTensor& mask,
                         const OptionalTensor& alibi_slopes, const OptionalTensor& seed,
                         double scale, int64_t window_left, int64_t window_right, bool bottom_right,
                         double softcap, double dropout_p, int64_t max_seqlen_q,
                         int64_t max_seqlen_k, bool average) {
  Arguments arguments;
  fastseq::AttentionWeightsArgs a{};
  set_common(arguments, a, q, k, std::nullopt, mask, std::nullopt, std::nullopt, alibi_slopes, seed,
             {scale, window_left, window_right, bottom_right, softcap, dropout_p, max_seqlen_q,
              max_seqlen_k});
  take_norm(arguments, a, lse, norm, q);
  const Tensor weights = empty_weights(q, a.Sk, average);
  a.weights = weights.mutable_data_ptr(), a.average = average;
  fastseq::kernels().attention_weights(&a);
  return weights;
}

std::tuple<Tensor, Tensor>
attention_with_weights(const Tensor& q, const Tensor& k, const Tensor& v,
                       const OptionalTensor& mask, const OptionalTensor& alibi_slopes,
                       const OptionalTensor& seed, double scale, int64_t window_left,
                       int64_t window_right, bool bottom_right, double softcap, double dropout_p,
                       int64_t max_seqlen_q, int64_t max_seqlen_k, bool average) {
  Arguments arguments;
  fastseq::AttentionWeightsArgs a{};
  set_common(arguments, a, q, k, v, mask, std::nullopt, std::nullopt, alibi_slopes, seed,
             {scale, window_left, window_right, bottom_right, softcap, dropout_p, max_seqlen_q,
              max_seqlen_k});
  const Tensor out = empty_in_layout(q, a.Dv), weights = empty_weights(q, a.Sk, average);
  a.out = result(out);
  a.weights = weights.mutable_data_ptr(), a.average = average;
  fastseq::kernels().attention_weights(&a);
  return {out, weights};
}

std::tuple<Tensor, Tensor> attention_decode(const Tensor& q, const Tensor& k_cache,
                                            const Tensor& v_cache, const Tensor& cache_seqlens,
                                            const OptionalTensor& block_table,
                                            const OptionalTensor& alibi_slopes, double scale,
                                            int64_t window_left, int64_t window_right,
                                            double softcap) {
  Arguments arguments;
  DecodeArgs a{};
  a.dtype = dtype_of(q, "q");
  a.q = arguments.tokens(q, "q", q);
  a.k = arguments.tokens(k_cache, "k_cache", q);
  a.v = arguments.tokens(v_cache, "v_cache", q);
  a.B = q.size(0), a.Hq = q.size(1), a.Sq = q.size(2), a.D = q.size(3);
  a.Hk = k_cache.size(1), a.Dv = v_cache.size(3);
  const int64_t blocks = k_cache.size(0), tokens = k_cache.size(2);
  TORCH_CHECK(k_cache.size(3) == a.D && (block_table || blocks == a.B),
              "fastseq: k_cache must be (", block_table ? "blocks" : "batch", ", heads, tokens, ",
              a.D, ") to go with q, got ", k_cache.sizes());
  TORCH_CHECK(v_cache.size(0) == blocks && v_cache.size(1) == a.Hk && v_cache.size(2) == tokens,
              "fastseq: v_cache must be (", blocks, ", ", a.Hk, ", ", tokens,
              ", width) to go with k_cache, got ", v_cache.sizes());
  TORCH_CHECK(a.Hk > 0 ? a.Hq % a.Hk == 0 : a.Hq == 0, "fastseq: the heads of k_cache, ", a.Hk,
              ", must divide those of q, ", a.Hq);
  a.lengths = arguments.ints(cache_seqlens, "cache_seqlens", {a.B});
  int64_t capacity = tokens;
  if (block_table) {
    TORCH_CHECK(block_table->dim() == 2, "fastseq: block_table must be (batch, blocks), got ",
                block_table->sizes());
    a.table_width = block_table->size(1);
    a.table = arguments.ints(*block_table, "block_table", {a.B, a.table_width});
    a.page_size = tokens;
    capacity = tokens * a.table_width;
  }
  for (int64_t b = 0; b < a.B; ++b) {
    TORCH_CHECK(a.lengths[b] >= 0 && a.lengths[b] <= capacity, "fastseq: cache_seqlens[", b,
                "] must be between 0 and the cache's ", capacity, " tokens, got ", a.lengths[b]);
    for (int64_t j = 0; a.table && j * a.page_size < a.lengths[b]; ++j) {
      const int32_t page = a.table[b * a.table_width + j];
      TORCH_CHECK(page >= 0 && page < blocks, "fastseq: block_table[", b, ", ", j,
                  "] must be below ", blocks, ", the blocks of the cache, got ", page);
    }
  }
  arguments.alibi(alibi_slopes, a.B, a.Hq, &a.alibi, &a.alibi_batch);
  set_form(a, scale, softcap, window_left, window_right, a.Sq + capacity);
  a.bottom_right = true;
  a.threads = fastseq::usable_threads();
  Tensor out = empty_in_layout(q, a.Dv);
  Tensor lse = at::empty({a.B, a.Hq, a.Sq}, q.options().dtype(acc_type(q)));
  a.out = result(out);
  a.lse = lse.mutable_data_ptr();
  fastseq::kernels().attention_decode(&a);
  return {out, lse};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attention_backward", attention_backward);
  m.impl("attention_weights", attention_weights);
  m.impl("attention_with_weights", attention_with_weights);
  m.impl("attention_decode", attention_decode);
}
