// SPDX-License-Identifier: Apache-2.0
// The losses of distillation, fused with both heads: logits of student and teacher are held for one block of
// tokens at a time. Logits are f32 also where the products are bf16, since a loss near zero is a difference
// of almost equal numbers; their gradient is of the type that the two products after it read.
#include <algorithm>

#include "backend/cuda/distill/distill_kernels.cuh"
#include "backend/cuda/product.h"

namespace farskip {
namespace cuda {
namespace {

constexpr std::int64_t kMaxLogitBytes = 256 << 20;  // of each model

/// What a call computes, and how its workspace is laid out.
struct Sizes {
  std::int64_t tokens, vocabulary, top_k;  // top_k 0: the full vocabulary
  bool has_student, has_teacher;           // whose logits are computed
  bool low_gradient;                       // which has memory of its own
  std::int64_t leading, block;

  Sizes(std::int64_t num_tokens, std::int64_t vocabulary_size, std::int64_t kept)
      : tokens(num_tokens),
        vocabulary(vocabulary_size),
        top_k(kept),
        has_student(true),
        has_teacher(true),
        low_gradient(false),
        leading(ceil_div(std::max<std::int64_t>(vocabulary_size, 1), 16) * 16) {
    constexpr std::int64_t unit = 128;
    const std::int64_t fit = kMaxLogitBytes / (leading * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t all = ceil_div(std::max<std::int64_t>(tokens, 1), unit) * unit;
    block = std::min(all, std::max(unit, fit / unit * unit));
  }
};

/// Parts of a workspace. Laid out at nullptr, it only says how many bytes it takes.
struct Buffers {
  float *student = nullptr, *teacher = nullptr;
  bf16* gradient = nullptr;
  double* results = nullptr;
  EventScratch events{};
  std::byte* products = nullptr;
  std::size_t bytes = 0;

  Buffers(std::byte* base, const Sizes& s) {
    const auto take = [&]<class T>(T*& part, std::int64_t count) {
      constexpr std::size_t alignment = 256;
      part = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(base) + bytes);
      bytes += (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
    };
    if (s.has_student) take(student, s.block * s.leading);
    if (s.has_teacher) take(teacher, s.block * s.leading);
    if (s.low_gradient) take(gradient, s.block * s.leading);
    if (s.has_student) take(results, s.tokens * (kNumStats + 1));
    if (s.top_k > 0) {
      take(events.kept, s.block * s.top_k);
      if (s.has_teacher) take(events.order, s.block * s.top_k);
    }
    if (s.top_k > 0 && s.has_student && s.has_teacher) {
      take(events.kept_of_teacher, s.block * s.top_k);
      take(events.indices, s.block * s.top_k);
    }
    take(products, static_cast<std::int64_t>(kProductWorkspace));
  }
};

/// A loss, or its gradient, one block of tokens after the other.
class LossRun {
 public:
  /// `first`: the input that h is; `accumulate`: the one that dw is added to.
  LossRun(const KernelCall& call, const Sizes& sizes, bool gradient, std::size_t accumulate)
      : call_(call),
        a_(call.get<DistillLoss>()),
        sizes_(sizes),
        buffers_(call.workspace.data(), sizes),
        gradient_(gradient),
        first_input_(gradient ? 1 : 0),
        dw_so_far_(gradient && call.has(accumulate) ? call.inputs[accumulate].data : nullptr) {
    FARSKIP_CHECK(call.workspace.size() >= buffers_.bytes, "workspace of {} bytes", call.workspace.size());
  }

  void run() {
    for (std::int64_t first = 0; first < std::max<std::int64_t>(sizes_.tokens, 1); first += sizes_.block) {
      const std::int64_t count =
          std::min(sizes_.block, sizes_.tokens - first);  // 0 without tokens: dw is still written
      if (count > 0) compare(first, count);
      if (gradient_) multiply_back(first, count);
    }
    launch(call_, sum_results_kernel, kNumStats + 1, kSumThreads, 0, results(), call_.out(0),
           call_.out<double>(1));
  }

 private:
  bool cached() const { return !sizes_.has_teacher; }
  bool low() const { return input(0).dtype == DType::bf16; }
  const TensorView& input(std::size_t i) const { return call_.inputs[first_input_ + i]; }
  TokenResults results() const { return {buffers_.results, sizes_.tokens}; }

  /// Takes the model whose hidden states are input `h`.
  HeadProducts products(std::size_t h) const {
    return {*call_.gpu, {buffers_.products, kProductWorkspace}, input(h), input(h + 1), sizes_.leading};
  }

  /// Launches a kernel over rows, with as many of them in shared memory as it wants if they fit.
  template <class... Parameters, class... More>
  void launch_rows(void (*kernel)(Rows, Parameters...), std::int64_t first, std::int64_t count, int staged,
                   const More&... more) const {
    const std::size_t bytes = staged_bytes(kernel, staged, sizes_.leading);
    const Rows rows{buffers_.student,
                    buffers_.teacher,
                    static_cast<std::int32_t>(sizes_.vocabulary),
                    sizes_.leading,
                    first,
                    bytes > 0,
                    input(cached() ? 6 : 4).as<const std::int32_t>(),
                    gradient_ ? call_.in(0) : nullptr,
                    results()};
    launch(call_, kernel, grid_size(count), kRowThreads, bytes, rows, more...);
  }

  void compare(std::int64_t first, std::int64_t count) const {
    products(0).compute_logits(first, count, buffers_.student);
    if (!cached()) products(2).compute_logits(first, count, buffers_.teacher);
    if (low())
      compare_rows<bf16>(first, count, gradient_ ? buffers_.gradient : nullptr);
    else
      compare_rows<float>(first, count, gradient_ ? buffers_.student : nullptr);
  }

  template <class T>
  void compare_rows(std::int64_t first, std::int64_t count, T* gradients) const {
    if (sizes_.top_k == 0) {
      launch_rows(compare_logits_kernel<T>, first, count, 2, a_, gradients);
      return;
    }
    if (!cached()) {
      launch_rows(compare_events_kernel<T>, first, count, 2, a_, buffers_.events, gradients);
      return;
    }
    const KeptTeacher teacher{sizes_.top_k, input(2).as<const std::int32_t>(), input(3).as<const float>(),
                              input(4).as<const float>(), input(5).as<const float>()};
    launch_rows(compare_kept_kernel<T>, first, count, 1, a_, teacher, buffers_.events, gradients);
  }

  /// dh and dw from the gradient of a block of logits.
  void multiply_back(std::int64_t first, std::int64_t count) {
    const void* dlogits = low() ? static_cast<const void*>(buffers_.gradient) : buffers_.student;
    products(0).differentiate_hidden(first, count, dlogits, call_.outputs[2]);
    if (!a_.trains_head) return;
    products(0).differentiate_head(first, count, dlogits, dw_so_far_, call_.outputs[3]);
    dw_so_far_ = call_.outputs[3].data;
  }

  const KernelCall& call_;
  const DistillLoss& a_;
  const Sizes sizes_;
  const Buffers buffers_;
  const bool gradient_;
  const std::size_t first_input_;
  const void* dw_so_far_;
};

// ---- ops ---------------------------------------------------------------------------------------------

/// `h`: which input it is.
Sizes loss_sizes(const Shape& h, const Shape& w, DType dtype, const DistillLoss& a, bool cached,
                 bool gradient) {
  Sizes sizes(h[0], w[0], a.top_k);
  sizes.has_teacher = !cached;
  sizes.low_gradient = gradient && dtype == DType::bf16;
  return sizes;
}

template <bool kCached, bool kGradient>
void run_loss(const KernelCall& call) {
  const TensorView &h = call.inputs[kGradient ? 1 : 0], &w = call.inputs[kGradient ? 2 : 1];
  const auto& a = call.get<DistillLoss>();
  LossRun(call, loss_sizes(h.shape, w.shape, h.dtype, a, kCached, kGradient), kGradient, kCached ? 8 : 6)
      .run();
}

template <bool kCached, bool kGradient>
std::size_t loss_workspace(const OpTypes& t) {
  constexpr std::size_t first = kGradient ? 1 : 0;
  return Buffers(nullptr, loss_sizes(t.shape(first), t.shape(first + 1), t.in(first).dtype,
                                     t.get<DistillLoss>(), kCached, kGradient))
      .bytes;
}

Sizes teacher_sizes(const Shape& h, const Shape& w, const ops::KeepTopK& a) {
  Sizes sizes(h[0], w[0], a.top_k);
  sizes.has_student = false;
  return sizes;
}

// ht[T, H'], wt[V, H'], targets → indices, log_probs [T, K], log_tail, target_log_prob [T]
void run_teacher_top_k(const KernelCall& call) {
  const auto& a = call.get<ops::KeepTopK>();
  const TensorView &h = call.inputs[0], &w = call.inputs[1];
  const Sizes sizes = teacher_sizes(h.shape, w.shape, a);
  const Buffers buffers(call.workspace.data(), sizes);
  FARSKIP_CHECK(call.workspace.size() >= buffers.bytes, "workspace of {} bytes", call.workspace.size());
  const KeptRows to{a.top_k, call.out<std::int32_t>(0), call.out(1), call.out(2), call.out(3)};
  const std::size_t bytes = staged_bytes(keep_teacher_kernel, 1, sizes.leading);
  const HeadProducts products{*call.gpu, {buffers.products, kProductWorkspace}, h, w, sizes.leading};
  for (std::int64_t first = 0; first < sizes.tokens; first += sizes.block) {
    const std::int64_t count = std::min(sizes.block, sizes.tokens - first);
    products.compute_logits(first, count, buffers.teacher);
    const Rows rows{nullptr,
                    buffers.teacher,
                    static_cast<std::int32_t>(sizes.vocabulary),
                    sizes.leading,
                    first,
                    bytes > 0,
                    call.in<std::int32_t>(2),
                    nullptr,
                    {}};
    launch(call, keep_teacher_kernel, grid_size(count), kRowThreads, bytes, rows, a.temperature, to,
           buffers.events);
  }
}

}  // namespace
}  // namespace cuda

void register_cuda_distill_loss(KernelTable& table);

void register_cuda_distill_loss(KernelTable& table) {
  const auto add = [&](std::string_view op, DType dtype, void (*run)(const KernelCall&),
                       std::size_t (*workspace)(const OpTypes&)) {
    table.add(op, dtype, DeviceKind::cuda, {.run = run, .workspace = workspace});
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    add("distill_loss", dtype, cuda::run_loss<false, false>, cuda::loss_workspace<false, false>);
    add("cached_distill_loss", dtype, cuda::run_loss<true, false>, cuda::loss_workspace<true, false>);
    add("teacher_top_k", dtype, cuda::run_teacher_top_k, [](const OpTypes& t) {
      return cuda::Buffers(nullptr, cuda::teacher_sizes(t.shape(0), t.shape(1), t.get<ops::KeepTopK>()))
          .bytes;
    });
  }
  // The first floating-point input of these is dloss, f32 whatever h is.
  add("distill_loss_grad", DType::f32, cuda::run_loss<false, true>, cuda::loss_workspace<false, true>);
  add("cached_distill_loss_grad", DType::f32, cuda::run_loss<true, true>, cuda::loss_workspace<true, true>);
}

}  // namespace farskip
