// SPDX-License-Identifier: Apache-2.0
#include "fold/folded_file.h"

namespace farskip {

void FoldedFile::add(const std::string& parameter, const HostTensor& weights) {
  const bool is_new = offsets_.emplace(parameter, file_.size()).second;
  FARSKIP_CHECK(is_new, "{} was folded twice", parameter);
  constexpr std::int64_t elements = 1 << 22;
  const std::int64_t rows = std::max<std::int64_t>(elements / row_size(weights.shape()), 1),
                     all = row_count(weights.shape());
  for (std::int64_t row = 0; row < all; row += rows)
    file_.append(
        stored_values(rows_view(weights.view(), row, std::min(rows, all - row)), parameter, dtype_).bytes());
}

RowReader FoldedFile::over(const RowReader& rows) const {
  return [this, &rows](const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    const auto offset = offsets_.find(p.spec.name);
    if (offset == offsets_.end()) return rows(p, first_row, to);
    HostTensor stored(dtype_, Shape{to.num_elements()});
    file_.read_at(
        offset->second + static_cast<std::uint64_t>(first_row * row_size(to.shape)) * dtype_size(dtype_),
        stored.bytes());
    convert_values(stored.view(), to);
  };
}

}  // namespace farskip
