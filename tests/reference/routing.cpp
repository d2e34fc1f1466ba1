// SPDX-License-Identifier: Apache-2.0
// Reference kernels of the router and of the way to the experts and back.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/collective_ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

using Values = std::vector<double>;

Values scores_of(const double* logits, std::size_t num_experts, ops::ScoreFunction function) {
  Values scores(logits, logits + num_experts);
  if (function == ops::ScoreFunction::sigmoid) {
    for (double& s : scores) s = 1.0 / (1.0 + std::exp(-s));
    return scores;
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  for (double& s : scores) s = std::exp(s - largest);
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& s : scores) s /= sum;
  return scores;
}

/// Indices of `values`, best first; equal values in order of index.
std::vector<std::size_t> ranking(const Values& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  return order;
}

/// Whether each expert stands in one of the best groups.
std::vector<bool> allowed_experts(const Values& choice, const ops::Route& a) {
  const auto groups = static_cast<std::size_t>(a.num_groups), size = choice.size() / groups;
  Values group_scores;
  for (std::size_t g = 0; g < groups; ++g) {
    Values members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    const bool two = a.group_score == ops::GroupScore::top2_sum && size > 1;
    group_scores.push_back(two ? members[0] + members[1] : members[0]);
  }
  std::vector<bool> allowed(choice.size(), false);
  const auto order = ranking(group_scores);
  for (std::size_t i = 0; i < static_cast<std::size_t>(a.top_groups); ++i)
    for (std::size_t e = 0; e < size; ++e) allowed[order[i] * size + e] = true;
  return allowed;
}

void run_route(const KernelCall& call) {
  const auto& a = call.get<ops::Route>();
  const auto num_experts = static_cast<std::size_t>(call.in_shape(0).back());
  const auto top_k = static_cast<std::size_t>(a.top_k);
  for (std::size_t t = 0; t < static_cast<std::size_t>(call.in_shape(0).num_rows()); ++t) {
    const Values scores = scores_of(call.in<double>(0) + t * num_experts, num_experts, a.score);
    Values choice =
        a.by_logits ? Values(call.in<double>(0) + t * num_experts, call.in<double>(0) + (t + 1) * num_experts)
                    : scores;
    if (call.has(1))
      for (std::size_t e = 0; e < num_experts; ++e) choice[e] += call.in<double>(1)[e];
    const auto allowed = allowed_experts(choice, a);
    auto order = ranking(choice);
    std::erase_if(order, [&](std::size_t e) { return !allowed[e]; });
    double sum = 0.0;
    for (std::size_t k = 0; k < top_k; ++k) sum += scores[order[k]];
    for (std::size_t k = 0; k < top_k; ++k) {
      call.out<std::int32_t>(0)[t * top_k + k] = static_cast<std::int32_t>(order[k]);
      const double weight = a.normalize ? scores[order[k]] / (sum + 1e-20) : scores[order[k]];
      call.out<double>(1)[t * top_k + k] = weight * a.scaling;
    }
    std::copy(scores.begin(), scores.end(), call.out<double>(2) + t * num_experts);
  }
}

void run_balance_loss(const KernelCall& call) {
  const auto& a = call.get<ops::BalanceLoss>();
  const std::int64_t tokens = call.in_shape(0).num_rows(), num_experts = call.in_shape(0).back();
  const std::int64_t top_k = call.in_shape(1).back(), length = a.sequence_length;
  double loss = 0.0;
  for (std::int64_t start = 0; start < tokens; start += length)
    for (std::int64_t e = 0; e < num_experts; ++e) {
      double chosen = 0.0, probability = 0.0;
      for (std::int64_t t = start; t < start + length; ++t) {
        for (std::int64_t k = 0; k < top_k; ++k)
          chosen += call.in<std::int32_t>(1)[t * top_k + k] == e ? 1.0 : 0.0;
        const double* row = call.in<double>(0) + t * num_experts;
        const double sum = a.normalize_scores ? std::accumulate(row, row + num_experts, 0.0) : 1.0;
        probability += row[e] / sum;
      }
      const auto s = static_cast<double>(length);
      loss += static_cast<double>(num_experts) / (static_cast<double>(top_k) * s) * chosen * probability / s;
    }
  call.out<double>(0)[0] = loss;
}

void run_sort_by_expert(const KernelCall& call) {
  const std::int64_t num_experts = call.get<ops::SortByExpert>().num_experts;
  std::int32_t row = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    call.out<std::int32_t>(2)[e] = row;
    for (std::int64_t slot = 0; slot < call.in_shape(0).num_elements(); ++slot)
      if (call.in<std::int32_t>(0)[slot] == e) {
        call.out<std::int32_t>(0)[row] = static_cast<std::int32_t>(slot);
        call.out<std::int32_t>(1)[slot] = row++;
      }
  }
  call.out<std::int32_t>(2)[num_experts] = row;
}

void run_own_experts(const KernelCall& call) {
  const auto& a = call.get<ops::OwnExperts>();
  const auto* offsets = call.in<std::int32_t>(2);
  const std::int32_t first = offsets[a.first], rows = offsets[a.first + a.count] - first;
  for (std::int32_t r = 0; r < rows; ++r) call.out<std::int32_t>(0)[r] = call.in<std::int32_t>(0)[first + r];
  for (std::int64_t s = 0; s < call.out_shape(1)[0]; ++s) {
    const std::int32_t row = call.in<std::int32_t>(1)[s] - first;
    call.out<std::int32_t>(1)[s] = row >= 0 && row < rows ? row : -1;
  }
  for (std::int64_t e = 0; e <= a.count; ++e) call.out<std::int32_t>(2)[e] = offsets[a.first + e] - first;
  call.out<std::int32_t>(3)[0] = rows;
}

// Inputs of dispatch_rows and combine_rows: rows, row_slot, slot_row, offsets.
void run_dispatch_rows(const KernelCall& call) {
  const std::int64_t top_k = call.get<ops::TopK>().top_k, hidden = call.out_shape(0).back();
  for (std::int64_t r = 0; r < call.out_shape(0).num_rows(); ++r)
    for (std::int64_t h = 0; h < hidden; ++h)
      call.out<double>(0)[r * hidden + h] =
          call.in<double>(0)[call.in<std::int32_t>(1)[r] / top_k * hidden + h];
}

void run_combine_rows(const KernelCall& call) {
  const std::int64_t top_k = call.get<ops::TopK>().top_k, hidden = call.out_shape(0).back();
  for (std::int64_t t = 0; t < call.out_shape(0).num_rows(); ++t)
    for (std::int64_t h = 0; h < hidden; ++h) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < top_k; ++k)
        if (const std::int32_t row = call.in<std::int32_t>(2)[t * top_k + k]; row >= 0)
          sum += call.in<double>(0)[row * hidden + h];
      call.out<double>(0)[t * hidden + h] = sum;
    }
}

void run_permute_values(const KernelCall& call) {
  for (std::int64_t i = 0; i < call.out_shape(0).num_elements(); ++i) {
    const std::int32_t from = call.in<std::int32_t>(1)[i];
    call.out<double>(0)[i] = from < 0 ? 0.0 : call.in<double>(0)[from];
  }
}

// Rows of one local expert from one peer lie together in the peer's slab, after those of experts before it.
void run_order_by_expert(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  const auto* counts = call.in<std::int32_t>(0);
  std::int32_t row = 0;
  for (std::int64_t g = 0; g < a.groups; ++g) {
    call.out<std::int32_t>(1)[g] = row;
    for (std::int64_t p = 0; p < a.peers; ++p) {
      const std::int32_t* of_peer = counts + p * a.groups;
      const std::int64_t first = p * a.max_rows + std::accumulate(of_peer, of_peer + g, std::int64_t{0});
      for (std::int64_t i = 0; i < of_peer[g]; ++i)
        call.out<std::int32_t>(0)[row++] = static_cast<std::int32_t>(first + i);
    }
  }
  call.out<std::int32_t>(1)[a.groups] = row;
  call.out<std::int32_t>(2)[0] = row;
}

// Slot by slot: how many rows before it go to the same peer.
void run_slab_places(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  const auto *slot_row = call.in<std::int32_t>(0), *offsets = call.in<std::int32_t>(1);
  std::fill_n(call.out<std::int32_t>(1), a.peers * a.groups, 0);
  call.out<std::int32_t>(2)[0] = 0;
  for (std::int64_t slot = 0; slot < a.rows; ++slot) {
    const std::int32_t row = slot_row[slot];
    std::int64_t expert = 0;
    while (offsets[expert + 1] <= row) ++expert;
    const std::int64_t peer = expert / a.groups, in_slab = row - offsets[peer * a.groups];
    const bool fits = in_slab < a.max_rows;
    call.out<std::int32_t>(0)[slot] = fits ? static_cast<std::int32_t>(peer * a.max_rows + in_slab) : -1;
    if (fits)
      ++call.out<std::int32_t>(1)[expert];
    else
      call.out<std::int32_t>(2)[0] = 1;
  }
}

void run_put_into_slabs(const KernelCall& call) {
  const std::int64_t top_k = std::max<std::int64_t>(call.get<ops::SlabRows>().top_k, 1),
                     size = row_size(call.out_shape(0));
  for (std::int64_t s = 0; s < call.in_shape(1)[0]; ++s)
    if (const std::int32_t place = call.in<std::int32_t>(1)[s]; place >= 0)
      std::copy_n(call.in<double>(0) + s / top_k * size, size, call.out<double>(0) + place * size);
}

void run_take_from_slabs(const KernelCall& call) {
  const std::int64_t top_k = std::max<std::int64_t>(call.get<ops::SlabRows>().top_k, 1),
                     size = row_size(call.in_shape(0));
  std::fill_n(call.out<double>(0), call.out_shape(0).num_elements(), 0.0);
  for (std::int64_t s = 0; s < call.in_shape(1)[0]; ++s)
    if (const std::int32_t place = call.in<std::int32_t>(1)[s]; place >= 0)
      for (std::int64_t i = 0; i < size; ++i)
        call.out<double>(0)[s / top_k * size + i] += call.in<double>(0)[place * size + i];
}

void run_gather_rows(const KernelCall& call) {
  const std::int64_t size = row_size(call.in_shape(0));
  for (std::int64_t r = 0; r < call.in_shape(1)[0]; ++r)
    for (std::int64_t i = 0; i < size; ++i)
      call.out<double>(0)[r * size + i] = call.in<double>(0)[call.in<std::int32_t>(1)[r] * size + i];
}

void run_scatter_rows(const KernelCall& call) {
  const std::int64_t size = row_size(call.in_shape(0));
  for (std::int64_t r = 0; r < call.in_shape(1)[0]; ++r)
    for (std::int64_t i = 0; i < size; ++i)
      call.out<double>(0)[call.in<std::int32_t>(1)[r] * size + i] = call.in<double>(0)[r * size + i];
}

}  // namespace

void register_routing(KernelTable& table) {
  add_reference(table, "route", run_route);
  add_reference(table, "balance_loss", run_balance_loss);
  const auto add_integers = [&](std::string_view op, void (*run)(const KernelCall&)) {
    add_reference(table, op, run);
    if (!table.contains(op, DType::i32, DeviceKind::cpu))
      table.add(op, DType::i32, DeviceKind::cpu, {.run = run, .workspace = nullptr});
  };
  add_integers("sort_by_expert", run_sort_by_expert);
  add_integers("order_by_expert", run_order_by_expert);
  add_integers("slab_places", run_slab_places);
  add_reference(table, "put_into_slabs", run_put_into_slabs);
  add_reference(table, "take_from_slabs", run_take_from_slabs);
  add_reference(table, "gather_rows", run_gather_rows);
  add_reference(table, "scatter_rows", run_scatter_rows);
  add_reference(table, "own_experts", run_own_experts);
  add_reference(table, "dispatch_rows", run_dispatch_rows);
  add_reference(table, "combine_rows", run_combine_rows);
  add_reference(table, "permute_values", run_permute_values);
}

}  // namespace farskip::reference
