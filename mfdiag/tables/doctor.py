"""The table that `mfdiag doctor` writes: the measurements that its findings rest on."""

from __future__ import annotations

from mfdiag.tables.columns import BINS, CONDITIONAL_VARIANCE, GRADIENT2, LAYER, VARIANCE, gradient_table
from mfdiag.tables.fields import Column, Quantity

__all__ = ["DOCTOR"]

DOCTOR = gradient_table(
    "doctor",
    "doctor",
    "What the doctor measured of a checkpoint. docs/doctor.md says which findings rest on which quantity.",
    (
        Column("weights", "string", "Set of weights (raw, ema); null for the training itself.", True),
        Column("target", "string", "Which derivative the target has, which weight the loss, or which coupling.", True),
        Column("batch_size", "int64", "Batch n, in samples; null where n does not enter.", True),
        LAYER,
        *BINS,
    ),
    Quantity(
        "nonfinite_weights",
        "number of tensors",
        "1",
        "Tensors of weights that hold NaN or infinite values; only where > 0.",
    ),
    Quantity(
        "velocity_error",
        "D_v = E|u(x_t,t,t) - v|^2 / E|v|^2",
        "1",
        "Error of the velocity at r = t; 1 for a network that is zero. Needs a posterior over the data.",
        kind="nonnegative",
    ),
    Quantity(
        "skill",
        "1 - E[q / (1 + q)] / E[q_lin / (1 + q_lin)]",
        "1",
        "How much better the network denoises than the best linear map, which has 0. q is the squared error over its "
        "mean for the linear map.",
    ),
    Quantity(
        "learned_share",
        "(s_0 - s) / (s_0 - s_lin), s = E[q / (1 + q)]; s_0 for the velocity 0",
        "1",
        "How much of the best linear map the network has learned: 0 if it returns 0, 1 for the linear map, more for a "
        "better one.",
    ),
    Quantity(
        "interval_defect",
        "D_s = E|(t-r) u(x_t,r,t) - (t-s) u(x_t,s,t) - (s-r) u(x_s,r,s)|^2 / E|(t-s) u(x_t,s,t) + (s-r) u(x_s,r,s)|^2",
        "1",
        "Whether averages over [r, s] and [s, t] make that over [r, t].",
        kind="nonnegative",
    ),
    Quantity(
        "interval_effect",
        "E|u(x_t,r,t) - u(x_t,t,t)|^2 / E|u(x_t,t,t)|^2",
        "1",
        "How much the output depends on r; 0 for a network that does not use it.",
        kind="nonnegative",
    ),
    Quantity(
        "target_defect",
        "E|u - w + (t-r) D u|^2 / E|w|^2, w = u(x_t,t,t)",
        "1",
        "How far the network is from satisfying the identity of a target whose derivative is D.",
        kind="nonnegative",
    ),
    Quantity(
        "target_defect_ratio",
        "target_defect / that of MeanFlow's own target",
        "1",
        "On the same samples. Far below 1: the network was trained with this derivative, not with MeanFlow's.",
        kind="nonnegative",
    ),
    Quantity(
        "swapped_defect",
        "target_defect of MeanFlow's target, for the network with r and t exchanged",
        "1",
        "Small where the network takes its times in the other order.",
        kind="nonnegative",
    ),
    Quantity(
        "derivative_size",
        "E|(t-r) (du/dx w + du/dt)|^2 / E|w|^2",
        "1",
        "Size of the part of the target that needs a derivative.",
        kind="nonnegative",
    ),
    Quantity(
        "null_label_error",
        "(1 - cos^2(u_null, v_c)) / (1 - cos^2(u_label, v_c)) at r = t",
        "1",
        "Fraction of v_c that the velocity with the null label leaves unexplained, over that with the label. Far above "
        "1 where the null label was never trained.",
        kind="nonnegative",
    ),
    Quantity(
        "label_effect",
        "E|u_label - u_null|^2 / E|v_label - v|^2 at r = t",
        "1",
        "How much the label changes the network's velocity, in units of how much it changes that of the data. Needs a "
        "posterior over the data.",
        kind="nonnegative",
    ),
    Quantity(
        "label_explained",
        "cos^2(u_label, v_c) at r = t",
        "1",
        "Fraction of the conditional velocity that the velocity with the label explains, up to a factor.",
    ),
    Quantity(
        "guidance_scale",
        "E|d|^2 / E<d, v_c - u_null>, d = u_label - u_null at r = t",
        "1",
        "How far the velocity with a label lies from that without, in units of the conditional velocity: 1 without "
        "guidance, omega with it.",
    ),
    Quantity(
        "data_coefficient",
        "a of u(x_t,t,t) = a alpha' E[x_0 given x_t] + b sigma' E[x_1 given x_t]",
        "1",
        "How much of the data's part the network returns; 1 for the velocity. Needs a posterior over the data.",
    ),
    Quantity("noise_coefficient", "b of the same", "1", "How much of the noise's part; 1 for the velocity."),
    Quantity(
        "unexplained_output",
        "E|u - fit|^2 / E|u|^2",
        "1",
        "Fraction of the output at r = t that these two coefficients leave unexplained.",
        kind="nonnegative",
    ),
    Quantity(
        "derivative_coefficient",
        "c of u(x_t,t,t) - v = c (du/dx v + du/dt)",
        "1",
        "How much of its own derivative the network returns beside the velocity at r = t: 0 for the velocity, -1 for a "
        "target without the factor t - r. Needs a posterior over the data.",
    ),
    Quantity(
        "derivative_share",
        "1 - E|u(x_t,t,t) - v - c (du/dx v + du/dt)|^2 / E|u(x_t,t,t) - v|^2",
        "1",
        "Fraction of the velocity's error that this derivative explains.",
    ),
    Quantity(
        "target_coefficient",
        "a, b of u(x_t,t,t) - u(x_t,r,t) = (t-r) (a du/dx w + b du/dt), w = u(x_t,t,t)",
        "1",
        "How much of each part of the derivative the target had, `position` for a and `time` for b: 1 for MeanFlow. A "
        "fit, so less where the network has not learned intervals; below 0 where a part has the wrong sign, or where "
        "the gradient flows through the target.",
    ),
    Quantity(
        "target_preference",
        "E[(d_0 - d) / (d_0 + d)], d and d_0 the squared defects of a target and of MeanFlow's",
        "1",
        "Whether samples satisfy a target's identity better than MeanFlow's: from -1, none, to 1, all.",
    ),
    Quantity(
        "jacobian_size",
        "E|((t-r) du/dx - 1) z|^2 / E|z|^2, z normal",
        "1",
        "Squared size of the factor that noise of the tangent and the target has together.",
        kind="nonnegative",
    ),
    Quantity(
        "data_outlier", "max_i |x_i - E x|^2 / E|x - E x|^2", "1", "Size of the largest data point among the samples."
    ),
    Quantity(
        "weight_distance",
        "|theta_ema - theta_raw| / |theta_raw|",
        "1",
        "Distance of the averaged weights from the current ones. Computed from the file, so it has no error.",
    ),
    Quantity(
        "weight_scale",
        "geometric mean over weight matrices of rms(W) sqrt(inputs)",
        "1",
        "Size of the weights, relative to that which keeps the size of activations; near 0.6 after PyTorch's "
        "initialization. Computed from the file, so it has no error.",
    ),
    Quantity(
        "layer_weight_scale",
        "rms(W) sqrt(inputs) of a layer, over the geometric mean of all layers",
        "1",
        "Whether a layer has larger weights than the others; embeddings, which multiply no activations, do not count.",
        kind="nonnegative",
    ),
    Quantity(
        "average_gain",
        "1 - E|u_ema - v|^2 / E|u_raw - v|^2 at r = t",
        "1",
        "Fraction of the velocity's squared error that averaging the weights removes; negative if it adds some. Needs "
        "a posterior over the data.",
    ),
    Quantity(
        "noise_scale",
        "variance / mean_norm2",
        "samples",
        "Batch size at which noise and signal are equal (simple noise scale, arXiv 1812.06162).",
        kind="nonnegative",
    ),
    Quantity(
        "snr", "mean_norm2 / variance", "1", "Signal-to-noise ratio of one sample's gradient.", kind="nonnegative"
    ),
    VARIANCE,
    CONDITIONAL_VARIANCE,
    Quantity("mean_norm2", "|E G|^2", GRADIENT2, "Squared norm of the mean gradient.", kind="nonnegative"),
    Quantity(
        "variance_share",
        "variance of a layer / of all",
        "1",
        "Fraction of the gradient variance in one layer.",
        kind="nonnegative",
    ),
    Quantity(
        "moment_share",
        "sum of |G_i|^2 over a bin of t / over all samples",
        "1",
        "Fraction of the squared gradient norm that the samples of one bin carry.",
        kind="nonnegative",
    ),
    Quantity(
        "top1_share",
        "sum of the largest 1 % of |G_i|^2 / sum_i |G_i|^2",
        "1",
        "Fraction of the squared gradient norm that the largest 1 % of samples carry; 0.01 if all are equal.",
    ),
    Quantity("tail_index", "Hill's alpha in P(|G|^2 > x) ~ x^-alpha", "1", "Weight of the upper tail of |G|^2."),
    Quantity("loss_variance", "Var(w |e|^2)", "loss²", "Variance of the per-sample loss.", kind="nonnegative"),
    Quantity("conflict_cosine", "cos(E G_TFM, E G_TC)", "1", "As in table variance.", kind="cosine"),
    Quantity(
        "interval_moment",
        "E[|G|^2 given r < t] / E[|G|^2 given r = t]",
        "1",
        "What the derivative in the target, which enters where r < t, does to the squared norm of the gradient.",
        kind="nonnegative",
    ),
    Quantity(
        "tangent_optimum",
        "beta*_n",
        "1",
        "Coefficient of least error of a batch of n for the proxy's velocity as tangent.",
        kind="coefficient",
    ),
    Quantity(
        "critical_batch",
        "n0 = S_bb / M_bb",
        "samples",
        "Batch size at which tangent_optimum has fallen to half its value at n -> 0.",
        kind="nonnegative",
    ),
    Quantity(
        "mse_ratio",
        "MSE_n / MSE_n of MeanFlow",
        "1",
        "Error of a batch of n with the tangent of column estimator, over that of MeanFlow's.",
        kind="nonnegative",
    ),
    Quantity(
        "variance_ratio",
        "variance / variance of MeanFlow",
        "1",
        "Of another estimator, or of MeanFlow under the coupling in column target.",
        kind="nonnegative",
    ),
    Quantity(
        "equal_times_moment",
        "E|G|^2 with half as many pairs r < t / E|G|^2",
        "1",
        "Second moment of the gradient left where half of the pairs with r < t are drawn with r = t instead.",
        kind="nonnegative",
    ),
    Quantity(
        "weight_moment",
        "E[w^2 |G|^2] / E[w]^2 over the same without weight",
        "1",
        "Second moment of the gradient under an adaptive weight (column target: p0.5, p1), over the unweighted one.",
        kind="nonnegative",
    ),
    Quantity(
        "times_moment",
        "(E sqrt(E[|G|^2 given the bin]))^2 / E|G|^2",
        "1",
        "Second moment of the gradient that the best density over ten bins of t would leave, relative to now.",
        kind="nonnegative",
    ),
    Quantity(
        "clipped_moment",
        "E min(|G|^2, q99) / E|G|^2",
        "1",
        "Second moment left where each sample's gradient is clipped at the 99 % quantile of its norm.",
        kind="nonnegative",
    ),
    Quantity(
        "update_coefficient",
        "c of the least |E G_0 + c E(G - G_0)|^2, G_0 and G the gradients of MeanFlow and of another training",
        "1",
        "Of which training the weights are a fixed point: 0 for MeanFlow's, 1 for the other one, which `target` names. "
        "Of the set of weights that has settled better.",
    ),
    Quantity(
        "update_preference",
        "(|E G_0|^2 - |E G|^2) / (|E G_0|^2 + |E G|^2)",
        "1",
        "Which of the two mean gradients is closer to zero: -1 where MeanFlow's vanishes, 1 where the other one does.",
    ),
)
