// SPDX-License-Identifier: Apache-2.0
// Reference kernels of norm, rotary embedding and activation.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "farskip/ops/ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

void run_rms_norm(const KernelCall& call) {
  const std::int64_t size = call.in_shape(1).num_elements();
  for (std::int64_t g = 0; g < call.in_shape(0).num_elements() / size; ++g) {
    const double* x = call.in<double>(0) + g * size;
    double mean_square = 0.0;
    for (std::int64_t i = 0; i < size; ++i) mean_square += x[i] * x[i] / static_cast<double>(size);
    const double rstd = 1.0 / std::sqrt(mean_square + call.get<ops::RmsNorm>().eps);
    for (std::int64_t i = 0; i < size; ++i)
      call.out<double>(0)[g * size + i] = x[i] * rstd * table_value(call.inputs[1], i);
    call.out<double>(1)[g] = rstd;
  }
}

/// Dimension (counted in pairs) whose wave turns `rotations` times over the original context: YaRN,
/// section 3.2, solved for the dimension.
double correction_dim(const ops::RopeTable& a, double rotations) {
  const auto original = static_cast<double>(a.original_positions);
  return static_cast<double>(a.dim) * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(a.theta));
}

double rope_frequency(const ops::RopeTable& a, std::int64_t pair) {
  const double original = std::pow(a.theta, -2.0 * static_cast<double>(pair) / static_cast<double>(a.dim));
  if (a.scaling == ops::RopeScaling::none) return original;
  if (a.scaling == ops::RopeScaling::linear) return original / a.factor;
  if (a.scaling == ops::RopeScaling::llama3) {  // as Llama's own code has it, by wavelengths
    const double wavelength = 2.0 * std::numbers::pi / original;
    const auto positions = static_cast<double>(a.original_positions);
    if (wavelength < positions / a.beta_fast) return original;
    if (wavelength > positions / a.beta_slow) return original / a.factor;
    const double smooth = (positions / wavelength - a.beta_slow) / (a.beta_fast - a.beta_slow);
    return (1.0 - smooth) * original / a.factor + smooth * original;
  }
  const double low = std::max(0.0, std::floor(correction_dim(a, a.beta_fast)));
  const double high = std::min(static_cast<double>(a.dim - 1), std::ceil(correction_dim(a, a.beta_slow)));
  const double width = low == high ? 0.001 : high - low;
  const double interpolated_share = std::clamp((static_cast<double>(pair) - low) / width, 0.0, 1.0);
  return interpolated_share * original / a.factor + (1.0 - interpolated_share) * original;
}

void run_rope_table(const KernelCall& call) {
  const auto& a = call.get<ops::RopeTable>();
  for (std::int64_t r = 0; r < a.positions; ++r)
    for (std::int64_t pair = 0; pair < a.dim / 2; ++pair) {
      const double position = call.has(0) ? call.in<std::int32_t>(0)[r] : static_cast<double>(r);
      const double angle = position * rope_frequency(a, pair);
      double* row = call.out<double>(0) + r * a.dim;
      row[pair] = std::cos(angle) * a.attention_factor;
      row[a.dim / 2 + pair] = std::sin(angle) * a.attention_factor;
    }
}

void run_attention_temperature(const KernelCall& call) {
  const auto& a = call.get<ops::AttentionTemperature>();
  for (std::int64_t t = 0; t < a.tokens; ++t) {
    const std::int64_t position = call.has(0) ? call.in<std::int32_t>(0)[t] : t % a.sequence_length;
    const double steps = std::floor((static_cast<double>(position) + 1.0) / static_cast<double>(a.floor));
    call.out<double>(0)[t] = 1.0 + a.scale * std::log(1.0 + steps);
  }
}

void run_rope(const KernelCall& call) {
  const auto& a = call.get<ops::Rope>();
  const std::int64_t width = call.in_shape(0).back(), positions = call.in_shape(1)[0];
  for (std::int64_t i = 0; i < call.in_shape(0).num_elements(); ++i)
    call.out<double>(0)[i] = call.in<double>(0)[i];
  for (std::int64_t t = 0; t < call.in_shape(0).num_rows(); ++t)
    for (std::int64_t head = 0; head < width / a.head_dim; ++head)
      for (std::int64_t pair = 0; pair < a.dim / 2; ++pair) {
        const std::int64_t angles = (t % positions) * a.dim;
        const double cosine = table_value(call.inputs[1], angles + pair);
        const double sine = (a.inverse ? -1.0 : 1.0) * table_value(call.inputs[1], angles + a.dim / 2 + pair);
        const std::int64_t base = t * width + head * a.head_dim + a.offset;
        const std::int64_t first = base + (a.interleaved ? 2 * pair : pair);
        const std::int64_t second = base + (a.interleaved ? 2 * pair + 1 : pair + a.dim / 2);
        const double x = call.out<double>(0)[first], y = call.out<double>(0)[second];
        call.out<double>(0)[first] = x * cosine - y * sine;
        call.out<double>(0)[second] = x * sine + y * cosine;
      }
}

void run_swiglu(const KernelCall& call) {
  const std::int64_t width = call.out_shape(0).back();
  for (std::int64_t t = 0; t < call.out_shape(0).num_rows(); ++t)
    for (std::int64_t i = 0; i < width; ++i) {
      const double gate = call.in<double>(0)[t * 2 * width + i];
      const double up = call.in<double>(0)[t * 2 * width + width + i];
      const double weight = call.has(1) ? call.in<double>(1)[t] : 1.0;
      call.out<double>(0)[t * width + i] = gate / (1.0 + std::exp(-gate)) * up * weight;
    }
}

}  // namespace

void register_rowwise(KernelTable& table) {
  add_reference(table, "rms_norm", run_rms_norm);
  add_reference(table, "rope_table", run_rope_table);
  add_reference(table, "attention_temperature", run_attention_temperature);
  add_reference(table, "rope", run_rope);
  add_reference(table, "swiglu", run_swiglu);
}

}  // namespace farskip::reference
