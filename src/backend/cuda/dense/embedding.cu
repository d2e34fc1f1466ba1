// SPDX-License-Identifier: Apache-2.0
// Rows of the embedding table, and the sum of gradients that fall on one row.
#include "backend/cuda/copy_rows.cuh"
#include "backend/cuda/counting_sort.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

// table[V, H], tokens[T] → [T, H], zeros where another part of the vocabulary has the token
void run_embedding(const KernelCall& call) {
  const std::int64_t rows = call.in_shape(0)[0], hidden = call.in_shape(0)[1];
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(rows);
  if (own.count < part.size(rows))
    FARSKIP_CUDA_CHECK(
        cudaMemsetAsync(call.outputs[0].data, 0, call.outputs[0].num_bytes(), call.gpu->stream));
  copy_rows(call, {.from = {.base = call.inputs[0].data,
                            .stride = hidden,
                            .index = call.in<std::int32_t>(1),
                            .limit = static_cast<std::int32_t>(part.size(rows)),
                            .first = static_cast<std::int32_t>(own.first),
                            .count = static_cast<std::int32_t>(own.count)},
                   .to = {.base = call.outputs[0].data, .stride = hidden},
                   .rows = call.in_shape(1).num_elements(),
                   .width = hidden,
                   .element_bytes = dtype_size(call.inputs[0].dtype)});
}

// ---- gradient: positions are sorted by the row of their token, stably, nine bits at a time; then one block
// a row of the table sums what falls on it in order of position, and writes the row whether or not anything
// does.

constexpr int kDigitBits = 9, kDigits = 1 << kDigitBits;

/// The row of the table that a token has; one past the last where another part of the vocabulary has it.
struct TokenRows {
  const std::int32_t* tokens;
  std::int32_t rows, first, of;

  __device__ std::int32_t operator[](std::int32_t position) const {
    const std::int32_t token = tokens[position], row = token - first;
    if (token < 0 || token >= of) __trap();
    return row < 0 || row >= rows ? rows : row;
  }
};

/// One pass of the sort, by one digit of the row.
struct PositionsByDigit {
  TokenRows row_of;
  const std::int32_t* from;  // positions as the pass before left them; nullptr: in order
  std::int32_t* to;
  int shift;

  __device__ std::int32_t position(std::int64_t i) const {
    return from != nullptr ? from[i] : static_cast<std::int32_t>(i);
  }
  __device__ int key(std::int64_t i) const { return (row_of[position(i)] >> shift) & (kDigits - 1); }
  __device__ void place(std::int64_t i, std::int32_t at) const { to[at] = position(i); }
  __device__ void offset(int, std::int32_t) const {}
};

/// [first[row], end[row]) are the places of a row's tokens among the sorted positions; end is set only for
/// rows whose tokens occur.
__global__ void __launch_bounds__(kThreads)
    find_places_kernel(TokenRows row_of, const std::int32_t* sorted, std::int32_t* first, std::int32_t* end,
                       std::int64_t num_tokens) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_tokens) return;
  const std::int32_t row = row_of[sorted[i]];
  if (row == row_of.rows) return;
  if (i == 0 || row_of[sorted[i - 1]] != row) first[row] = static_cast<std::int32_t>(i);
  if (i == num_tokens - 1 || row_of[sorted[i + 1]] != row) end[row] = static_cast<std::int32_t>(i + 1);
}

struct EmbeddingGradArguments {
  const void* dy;
  const std::int32_t *sorted, *first, *end;
  const float* accumulate;  // nullptr: nothing; may be dtable
  float* dtable;
  std::int64_t hidden;
};

/// Block (row of the table, range of kThreads * N columns).
template <class T, int N>
__global__ void __launch_bounds__(kThreads) embedding_grad_kernel(EmbeddingGradArguments a) {
  const std::int64_t row = blockIdx.x, range = static_cast<std::int64_t>(blockIdx.y) * kThreads * N;
  const std::int64_t column = range + threadIdx.x * N;
  std::int64_t i = a.first[row];
  if (i < 0) {
    if (a.accumulate == a.dtable) return;
    // Most rows: side by side, whatever N is.
    const std::int64_t begin = row * a.hidden + range;
    const std::int64_t size = min(static_cast<std::int64_t>(kThreads) * N, a.hidden - range);
    constexpr int width = N % 4 == 0 ? 4 : 1;
    for (std::int64_t j = threadIdx.x * width; j < size; j += kThreads * width) {
      Pack<float, width> words{};
      if (a.accumulate != nullptr) words = Pack<float, width>::load(a.accumulate + begin + j);
      words.store(a.dtable + begin + j);
    }
    return;
  }
  if (column >= a.hidden) return;
  const std::int64_t end = a.end[row], at = row * a.hidden + column;
  const T* dy = static_cast<const T*>(a.dy) + column;
  float sum[N] = {};
  if (a.accumulate != nullptr) load<N>(a.accumulate + at, sum);
  const auto add = [&](const Pack<T, N>& pack) {
    float values[N];
    pack.unpack(values);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += values[j];
  };
  constexpr int ahead = 8;  // rows loaded at once; they are added in order
  for (; i + ahead <= end; i += ahead) {
    Pack<T, N> rows[ahead];
#pragma unroll
    for (int r = 0; r < ahead; ++r) rows[r] = Pack<T, N>::load(dy + a.sorted[i + r] * a.hidden);
#pragma unroll
    for (int r = 0; r < ahead; ++r) add(rows[r]);
  }
  for (; i < end; ++i) add(Pack<T, N>::load(dy + a.sorted[i] * a.hidden));
  store<N>(a.dtable + at, sum);
}

/// Parts of the workspace, in i32: two lists of positions, first[V] and end[V], the sort's own.
struct GradScratch {
  GradScratch(std::int64_t num_tokens, std::int64_t vocab)
      : sort(num_tokens, kDigits), list(ceil_div(num_tokens, 64) * 64), rows(ceil_div(vocab, 64) * 64) {}
  std::size_t bytes() const {
    return static_cast<std::size_t>(2 * list + 2 * rows) * sizeof(std::int32_t) + sort.workspace_bytes();
  }
  CountingSort sort;
  std::int64_t list, rows;  // lengths
};

std::size_t embedding_grad_workspace(const OpTypes& types) {
  return GradScratch(types.shape(1).num_elements(), types.get<ops::EmbeddingGrad>().rows).bytes();
}

// dy[T, H], tokens[T], [accumulate[V, H]] → dtable[V, H] f32
void run_embedding_grad(const KernelCall& call) {
  const std::int64_t num_tokens = call.in_shape(1).num_elements(), vocab = call.out_shape(0)[0],
                     hidden = call.out_shape(0)[1];
  const ops::VocabularyPart part = call.get<ops::EmbeddingGrad>().part();
  const TokenRows row_of{call.in<std::int32_t>(1), static_cast<std::int32_t>(vocab),
                         static_cast<std::int32_t>(part.first), static_cast<std::int32_t>(part.size(vocab))};
  const std::int64_t largest = part.own(vocab).count < part.size(vocab) ? vocab : vocab - 1;
  const GradScratch scratch(num_tokens, vocab);
  auto* lists = reinterpret_cast<std::int32_t*>(call.workspace.data());
  std::int32_t *const first = lists + 2 * scratch.list, *const end = first + scratch.rows, *sorted = nullptr;
  auto* const sort_workspace = reinterpret_cast<std::byte*>(end + scratch.rows);
  int pass = 0;
  do {
    std::int32_t* const to = lists + (pass % 2) * scratch.list;
    sort_by_counting(call, PositionsByDigit{row_of, sorted, to, pass * kDigitBits}, scratch.sort,
                     sort_workspace);
    sorted = to;
    ++pass;
  } while ((largest >> (pass * kDigitBits)) > 0);

  FARSKIP_CUDA_CHECK(cudaMemsetAsync(first, 0xff, static_cast<std::size_t>(vocab) * sizeof(std::int32_t),
                                     call.gpu->stream));  // -1: no position
  launch(call, find_places_kernel, grid_size(ceil_div(num_tokens, kThreads)), kThreads, 0, row_of, sorted,
         first, end, num_tokens);
  const EmbeddingGradArguments a{.dy = call.inputs[0].data,
                                 .sorted = sorted,
                                 .first = first,
                                 .end = end,
                                 .accumulate = call.has(2) ? call.in(2) : nullptr,
                                 .dtable = call.out(0),
                                 .hidden = hidden};
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const bool wide = hidden % 8 == 0 && is_aligned(a.dy, a.accumulate, a.dtable);
    launch(call, wide ? embedding_grad_kernel<T, 8> : embedding_grad_kernel<T, 1>,
           dim3(grid_size(vocab), grid_size(ceil_div(hidden, kThreads * (wide ? 8 : 1)))), kThreads, 0, a);
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_embedding(KernelTable& table);
void register_cuda_embedding(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("embedding", dtype, DeviceKind::cuda, {.run = cuda::run_embedding});
    table.add("embedding_grad", dtype, DeviceKind::cuda,
              {.run = cuda::run_embedding_grad, .workspace = cuda::embedding_grad_workspace});
  }
}

}  // namespace farskip
