// Every op schema on adjacent lines, nothing else. Which device has which op stands in registration.cpp;
// fakes and autograd formulas are attached by name from bigmodel_kernels/ops. An output that was not asked for, or that
// does not exist for the given options, comes back with zero elements.
#include "namespace.h"

BIGMODEL_LIBRARY(BIGMODEL_NAMESPACE, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, Tensor? alibi_slopes=None, "
      "Tensor? sinks=None, Tensor? dropout_seed=None, *, str causal='none', float? scale=None, int window_left=-1, "
      "int window_right=-1, float softcap=0.0, float dropout_p=0.0) -> (Tensor output, Tensor lse)");
  library.def(
      "attention_backward(Tensor? grad_output, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor output, Tensor lse, Tensor? mask=None, Tensor? alibi_slopes=None, Tensor? sinks=None, "
      "Tensor? dropout_seed=None, *, str causal='none', float? scale=None, int window_left=-1, int window_right=-1, "
      "float softcap=0.0, float dropout_p=0.0, bool[5] output_mask=[True, True, True, False, False]) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask, Tensor grad_sinks)");
  library.def(
      "attention_weights(Tensor query, Tensor key, Tensor lse, Tensor? mask=None, Tensor? alibi_slopes=None, "
      "Tensor? dropout_seed=None, *, str causal='none', float? scale=None, int window_left=-1, int window_right=-1, "
      "float softcap=0.0, float dropout_p=0.0, bool average_heads=False) -> Tensor");
  library.def(
      "attention_weights_backward(Tensor grad_weights, Tensor query, Tensor key, Tensor lse, Tensor? mask=None, "
      "Tensor? alibi_slopes=None, Tensor? dropout_seed=None, *, str causal='none', float? scale=None, "
      "int window_left=-1, int window_right=-1, float softcap=0.0, float dropout_p=0.0, bool average_heads=False, "
      "bool[4] output_mask=[True, True, True, False]) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_lse, Tensor grad_mask)");
  library.def(
      "attention_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "Tensor? mask=None, Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? dropout_seed=None, *, "
      "str causal='none', float? scale=None, int window_left=-1, int window_right=-1, float softcap=0.0, "
      "float dropout_p=0.0) -> (Tensor output, Tensor lse)");
  library.def(
      "attention_varlen_backward(Tensor? grad_output, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor output, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? mask=None, "
      "Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? dropout_seed=None, *, str causal='none', "
      "float? scale=None, int window_left=-1, int window_right=-1, float softcap=0.0, float dropout_p=0.0, "
      "bool[5] output_mask=[True, True, True, False, False]) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask, Tensor grad_sinks)");
  library.def(
      "attention_decode(Tensor query, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor cache_lengths, "
      "Tensor? block_table=None, Tensor? new_key=None, Tensor? new_value=None, Tensor(c!)? key_scales=None, "
      "Tensor(d!)? value_scales=None, Tensor? sinks=None, *, float? scale=None, int window_left=-1, "
      "float softcap=0.0) -> (Tensor output, Tensor lse)");
  library.def(
      "linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? residual=None, Tensor? packed_weight=None, *, "
      "str activation='none', bool save_preactivation=False) -> (Tensor output, Tensor preactivation)");
  library.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias=None, "
      "Tensor? preactivation=None, *, str activation='none', bool[3] output_mask=[True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  library.def("linear_pack(Tensor weight) -> Tensor");
  library.def(
      "feed_forward(Tensor input, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? w_gate=None, "
      "Tensor? b_gate=None, Tensor? residual=None, Tensor? packed_w1=None, Tensor? packed_w2=None, "
      "Tensor? packed_w_gate=None, Tensor? dropout_seed=None, *, str activation='relu', str gate='none', "
      "float dropout_p=0.0, bool save_preactivation=False) "
      "-> (Tensor output, Tensor preactivation, Tensor gate_preactivation)");
  library.def(
      "feed_forward_backward(Tensor grad_output, Tensor input, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, "
      "Tensor? w_gate=None, Tensor? b_gate=None, Tensor? preactivation=None, Tensor? gate_preactivation=None, "
      "Tensor? dropout_seed=None, *, str activation='relu', str gate='none', float dropout_p=0.0, "
      "bool[7] output_mask=[True, True, True, True, True, True, True]) -> (Tensor grad_input, Tensor grad_w1, "
      "Tensor grad_b1, Tensor grad_w2, Tensor grad_b2, Tensor grad_w_gate, Tensor grad_b_gate)");
  library.def(
      "add_norm(Tensor input, Tensor? residual=None, Tensor? weight=None, Tensor? bias=None, *, str kind='layer', "
      "float eps=1e-05) -> (Tensor sum, Tensor normed, Tensor mean, Tensor rstd)");
  library.def(
      "add_norm_backward(Tensor grad_normed, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor mean, Tensor rstd, "
      "*, str kind='layer', bool[3] output_mask=[True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  library.def(
      "rotary(Tensor query, Tensor? key, Tensor cos, Tensor sin, Tensor? positions=None, *, bool interleaved=False, "
      "bool inverse=False) -> (Tensor turned_query, Tensor turned_key)");
  library.def(
      "rotary_(Tensor(a!) query, Tensor(b!)? key, Tensor cos, Tensor sin, Tensor? positions=None, *, "
      "bool interleaved=False, bool inverse=False) -> ()");
  library.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, Tensor? bias=None, *, int ignore_index=-100, "
      "float label_smoothing=0.0, float z_loss=0.0, float softcap=0.0) -> (Tensor loss, Tensor lse)");
  library.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor target, Tensor lse, "
      "Tensor? bias=None, *, int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0, float softcap=0.0, "
      "bool[3] output_mask=[True, True, True]) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
}
