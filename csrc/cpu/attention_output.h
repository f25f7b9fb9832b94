// How a panel of attention ends: its weighted sums of values over the softmax's denominator, and the log-sum-exp.
#pragma once

#include "cpu/attention_panel.h"
#include "cpu/online_softmax.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// Writes lse and, having divided `sums` (value_dim x lanes), output. Leaves in normalizer[lane] what a weight of the
// panel has to be multiplied by.
template <class T>
static void end_panel(const TensorView& sinks, const ScoreUnit& unit, const Panel& panel, const SoftmaxState& softmax,
                      float* sums, const TensorView& output, const TensorView& lse_view, float* normalizer) {
  float lse[tile_columns], sink[tile_columns];
  for (int lane = 0; lane < tile_columns; ++lane) {
    sink[lane] = sinks.data ? static_cast<const float*>(sinks.data)[panel.head[lane] * sinks.stride[0]] : -infinity;
  }
  for (std::int64_t column = 0; column < panel.queries; column += lanes) {
    const SoftmaxEnd end =
        end_softmax(load(softmax.maximum + column), load(softmax.sum + column), unit, load(sink + column));
    store(lse + column, end.lse);
    store(normalizer + column, end.normalizer);
  }
  scale_columns(output.size[3], panel.queries, normalizer, sums);
  store_panel<T>(sums, output.size[3], panel, output);
  for (std::int64_t lane = 0; lane < panel.queries; ++lane) {
    static_cast<float*>(lse_view.data)[lane_offset(lse_view, panel, lane)] = lse[lane];
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
