// SPDX-License-Identifier: Apache-2.0
#include "fold/fold_weights.h"

#include "backend/cpu/parallel.h"
#include "fold/matrices.h"

namespace farskip {

HostTensor fold_input(Device& device, const TensorView& weight, const Eigen::MatrixXd& change,
                      const Communicator& world) {
  const HostTensor now = copy_to_host(device, weight);
  MatrixView w = as_matrix(now.view());
  std::vector<std::int64_t> first;  // row of each rank, and their number
  for (int rank = 0; rank <= world.size(); ++rank) first.push_back(w.rows() * rank / world.size());
  const auto own = static_cast<std::size_t>(world.rank());
  constexpr std::int64_t rows = 256;
  cpu::parallel_ranges(first[own + 1] - first[own], rows, [&](std::int64_t begin, std::int64_t end) {
    auto part = w.middleRows(first[own] + begin, end - begin);
    part += (part.cast<double>() * change.transpose()).cast<float>();
  });
  for (std::int64_t& at : first) at *= w.cols();
  const std::span<float> all(w.data(), static_cast<std::size_t>(w.size()));
  const auto begin = static_cast<std::size_t>(first[own]), end = static_cast<std::size_t>(first[own + 1]);
  world.all_gather(std::span<const float>(all.subspan(begin, end - begin)), first, all);
  device.copy_in(weight.data, now.view().data, now.bytes().size());
  return now;
}

HostTensor fold_output(Device& device, const TensorView& weight,
                       const std::vector<Eigen::MatrixXd>& changes) {
  const HostTensor now = copy_to_host(device, weight);
  MatrixView w = as_matrix(now.view());
  const Eigen::Index height = w.rows() / static_cast<Eigen::Index>(changes.size());
  cpu::parallel_for(static_cast<std::int64_t>(changes.size()), [&](std::int64_t i) {
    w.middleRows(i * height, height) += changes[static_cast<std::size_t>(i)].transpose().cast<float>();
  });
  device.copy_in(weight.data, now.view().data, now.bytes().size());
  return now;
}

}  // namespace farskip
