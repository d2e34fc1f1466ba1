// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensors in host memory as matrices of Eigen.

#include <Eigen/Core>

#include "farskip/tensor/tensor.h"

namespace farskip {

using MatrixView = Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

/// f32, all dims but the last taken together.
inline MatrixView as_matrix(const TensorView& tensor) {
  return {tensor.as<float>(), row_count(tensor.shape), row_size(tensor.shape)};
}

}  // namespace farskip
