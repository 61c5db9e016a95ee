"""Tables of what is measured of a model's gradients."""

from __future__ import annotations

from mfdiag.tables.columns import BINS, CONDITIONAL_VARIANCE, GRADIENT2, LAYER, VARIANCE, gradient_table
from mfdiag.tables.fields import Column, Quantity
from mfdiag.tables.methods import METHODS

__all__ = ["TABLES"]

_MOMENT = f"{GRADIENT2}; velocity² in space=output"

TABLES = (
    gradient_table(
        "sweep",
        "sweep",
        "Variance, bias and mean squared error at each point of the plane (beta, gamma), and where the error is least.",
        (
            Column(
                "space",
                "string",
                "What is measured: the per-sample gradient, or the residual e in output space.",
                choices=("gradient", "output"),
            ),
            Column("beta", "float64", "Coefficient of the tangent: 0 is v_c, 1 is vhat; null for an optimum.", True),
            Column("gamma", "float64", "Coefficient of the target: 0 is v_c, 1 is vhat; null for an optimum.", True),
            Column("batch_size", "int64", "The n of mse and optima, in samples; 1 for the other quantities."),
            LAYER,
            *BINS,
        ),
        Quantity(
            "variance",
            "(1,c) S (1,c)^T; tr Cov e in space=output",
            _MOMENT,
            "Trace of the covariance of the per-sample gradient (space=gradient) or of the residual e (space=output).",
        ),
        Quantity(
            "conditional_variance",
            "E[tr Cov(G | x_t, r, t)]; E[tr Cov(e | x_t, r, t)] in space=output",
            _MOMENT,
            "The part of variance left once (x_t, r, t) is given; needs a posterior over the data.",
        ),
        Quantity(
            "bias2",
            "c M_cc c^T; E|(beta A - gamma I) b|^2 in space=output",
            _MOMENT,
            "Squared norm of the mean gradient's difference to the unbiased corner (0, 0): an unbiased estimate, "
            "which may be negative (space=gradient); or mean squared bias of the residual (space=output).",
        ),
        Quantity(
            "mse",
            "variance/n + bias2; conditional_variance/n + bias2 in space=output",
            _MOMENT,
            "Mean squared error of a batch of n = batch_size samples against the unbiased mean.",
        ),
        Quantity(
            "optimum_beta",
            "beta of c*_n = argmin_c MSE_n(c) = -(S_cc + n M_cc)^(-1) S_c0",
            "1",
            "Tangent coefficient of least mse, beta and gamma chosen together, for the batch sizes asked for and for "
            "1, 2, 5, 10, ... to a million. In space=gradient, without weights and where some gamma is not 0. "
            "negative_estimate: within its interval, bias2 may be so negative somewhere that mse has no minimum.",
        ),
        Quantity("optimum_gamma", "gamma of c*_n", "1", "Target coefficient of least mse, as optimum_beta."),
    ),
    gradient_table(
        "variance",
        "variance",
        "Gradient statistics of each estimator, and Jacobian statistics of the model.",
        (LAYER, *BINS),
        VARIANCE,
        CONDITIONAL_VARIANCE,
        Quantity(
            "mean_norm2",
            "|E G|^2 = (|sum_i G_i|^2 - sum_i |G_i|^2) / (N (N-1))",
            GRADIENT2,
            "Squared norm of the mean gradient, estimated without bias: may be negative.",
        ),
        Quantity(
            "noise_scale",
            "variance / mean_norm2",
            "samples",
            "Batch size at which noise and signal are equal (simple noise scale, arXiv 1812.06162).",
        ),
        Quantity(
            "snr",
            "mean_norm2 / variance",
            "1",
            "Signal-to-noise ratio, in power, of one sample's gradient: the inverse of noise_scale, finite where "
            "the mean vanishes.",
        ),
        Quantity(
            "top1_share",
            "sum of the largest 1 % of |G_i|^2 / sum_i |G_i|^2",
            "1",
            "Share of the squared gradient norm that one sample in a hundred carries; 0.01 if all were equal.",
        ),
        Quantity(
            "tail_index",
            "Hill's alpha in P(|G|^2 > x) ~ x^-alpha",
            "1",
            "Weight of the upper tail of |G|^2: at 2 or below the variance's own interval is unreliable, at 1 or "
            "below there is no finite variance.",
        ),
        Quantity(
            "conflict_cosine",
            "<E G_TFM, E G_TC> / (|E G_TFM| |E G_TC|)",
            "1",
            "Cosine between the mean gradients of the two parts of MeanFlow's residual (estimator meanflow): "
            "trajectory flow matching u - v_c and trajectory consistency (t-r) (du/dx v_c + du/dt) (alpha-Flow, arXiv "
            "2510.20771, equation 6). Below 0 they pull against each other. From unbiased products; may leave [-1, 1] "
            "by their noise.",
        ),
        Quantity(
            "semi_gradient_gap",
            "|E D|^2, D = 2 w (t-r) d_theta(du/dx v_c + du/dt)^T e",
            GRADIENT2,
            "Squared norm of what the stop-gradient leaves out of the mean gradient of MeanFlow's loss (estimator "
            "meanflow; arXiv 2605.09235, Theorem 3), estimated without bias: may be negative. With "
            "--extra semi_gradient_gap, as all quantities of this name.",
        ),
        Quantity(
            "semi_gradient_gap_field",
            "|E 2 (t-r) d_theta(du/dx v + du/dt)^T rho|^2",
            GRADIENT2,
            "The same for the first of its two terms, from the mean-field residual rho = e at v_c = v; needs a "
            "posterior over the data, and no weight.",
        ),
        Quantity(
            "semi_gradient_gap_noise",
            "|E d_theta tr(J Sigma J^T)|^2",
            GRADIENT2,
            "The same for the second term, by which the full gradient seeks parameters of less conditional noise; "
            "needs a posterior over the data, and no weight.",
        ),
        Quantity(
            "semi_gradient_gap_ratio",
            "|E D|^2 / |E G|^2",
            "1",
            "Size of the gap against MeanFlow's own mean gradient, in power. Grows without bound as training "
            "converges.",
        ),
        Quantity(
            "semi_gradient_gap_cosine",
            "<E D, E G> / (|E D| |E G|)",
            "1",
            "Cosine between gap and MeanFlow's mean gradient: at -1 they cancel. From unbiased products; may leave "
            "[-1, 1] by their noise.",
        ),
        Quantity(
            "semi_gradient_gap_variance",
            "tr Cov(G + D) - tr Cov G",
            GRADIENT2,
            "What the gradient's variance would gain without stop-gradient; below 0 it would fall.",
        ),
        Quantity(
            "guidance_variance_ratio",
            "tr Cov G / tr Cov G without guidance",
            "1",
            "What the objective's guidance (--guidance) does to the gradient's variance, on the same samples and "
            "labels; below 1 it lowers it.",
        ),
        Quantity(
            "guided_variance",
            "tr Cov v_g, v_g = a v_c + q",
            "velocity²",
            "Variance of the guided velocity over x_0, x_1, labels, r and t: the sum of its parts data, network and "
            "cross.",
        ),
        Quantity("guided_variance_data", "tr Cov(a v_c)", "velocity²", "Its part from the conditional velocity."),
        Quantity("guided_variance_network", "tr Cov q", "velocity²", "Its part from the network's own velocities."),
        Quantity("guided_variance_cross", "2 tr Cov(a v_c, q)", "velocity²", "Its part from both together."),
        Quantity(
            "guided_variance_conditional",
            "E[tr Cov(v_g | x_t, t, label)] = E[a^2 tr Sigma]",
            "velocity²",
            "Its part left once the point and the label are given; needs a posterior over the data.",
        ),
        Quantity(
            "guided_variance_between",
            "tr Cov E[v_g | x_t, t, label]",
            "velocity²",
            "Its part between points, which the network can learn.",
        ),
        Quantity("jacobi_fro2", "E|J|_F^2", "1", "Mean squared Frobenius norm of the Jacobi factor J = A - I."),
        Quantity("jacobi_spectral", "E|J|_2", "1", "Mean largest singular value of the Jacobi factor."),
        Quantity("kappa_signed", "E[tr(J)] / d", "1", "Signed kappa: mean diagonal entry of the Jacobi factor."),
        Quantity("kappa_magnitude", "sqrt(E|J|_F^2 / d)", "1", "Magnitude kappa: root mean square gain of J."),
        Quantity(
            "divergence",
            "E[tr D], D = du(x_t, t, t)/dx",
            "1",
            "Mean divergence of the network's velocity field, at r = t; above 16 dimensions with --extra divergence, "
            "from random probes.",
        ),
        Quantity(
            "antisymmetric_share",
            "E|(D - D^T)/2|_F^2 / E|D|_F^2",
            "1",
            "Share of the velocity field's Jacobian that rotates. Where noise is N(0, I), drawn apart from the data, "
            "the true field is a multiple of x plus one of the score and has none. Measured where divergence is.",
        ),
        Quantity("loss_variance", "Var(w |e|^2)", "loss²", "Variance of the per-sample loss."),
        *(
            Quantity(
                f"second_moment_p{p:g}",
                f"E[w^2 |G|^2] / E[w]^2, w = (|e|^2 + eps)^-{p:g}, G without weight",
                GRADIENT2,
                f"Second moment of the gradient {under}, for weights of mean 1, so that the rows of different p can "
                "be compared; eps is that of --weighting, 0.001 without one.",
            )
            for p, under in (
                (0, "without a weight"),
                (0.5, "under the adaptive weight of power 0.5"),
                (1, "under the adaptive weight of power 1"),
            )
        ),
    ),
    gradient_table(
        "coefficient",
        "coefficient",
        "Closed-form optimal coefficients, and what they are made of.",
        (
            Column(
                "form",
                "string",
                "isotropic: kappa/(kappa+1) sigma2d/(sigma2d + bias2); diagonal: the one beta that is best over "
                "all coordinates, each with its own J_ii, Sigma_ii, b_i; "
                "matrix: tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2); plane: beta and gamma together, from "
                "the residual; gradient: from the moments S and M of the gradients.",
                choices=("isotropic", "diagonal", "matrix", "plane", "gradient"),
            ),
            Column(
                "role",
                "string",
                "Which coefficient: beta (tangent) or gamma (target).",
                choices=("tangent", "target"),
            ),
            Column(
                "batch_size",
                "int64",
                "Batch n the optimum is for, in samples; null for n -> 0 or where n does not enter.",
                True,
            ),
            LAYER,
            *BINS,
            Column(
                "kappa_kind",
                "string",
                "Kappa an isotropic row uses: signed, tr(J)/d, or magnitude, |J|_F/sqrt(d); null otherwise.",
                nullable=True,
                choices=("signed", "magnitude"),
            ),
        ),
        Quantity(
            "optimum",
            "argmin_c MSE_n(c); gradient form: -(S_cc + n M_cc)^(-1) S_c0",
            "1",
            "Optimal coefficient, by total gradient variance and bias (gradient form), or by the conditional noise "
            "and bias of the residual (the others); may lie outside [0, 1].",
        ),
        Quantity(
            "conditional_optimum",
            "the same from conditional S",
            "1",
            "Gradient form if only the noise given (x_t, r, t) counts; needs a posterior.",
        ),
        Quantity(
            "critical_batch",
            "n0 = S_bb / M_bb",
            "samples",
            "Batch size at which the optimal coefficient has fallen to half its value at n -> 0.",
        ),
        Quantity(
            "variance_reduction",
            "Var(0,0) / Var(optimum)",
            "1",
            "Factor by which the optimum cuts the gradient variance, on held-out samples; above 1 is better.",
        ),
        Quantity("kappa", "tr(J)/d or |J|_F/sqrt(d)", "1", "Kappa of the isotropic form; kappa_kind says which."),
        Quantity("sigma2d", "tr Sigma", "velocity²", "Conditional variance of the conditional velocity, summed."),
        Quantity("bias2", "|b|^2", "velocity²", "Mean squared norm of the proxy's bias b = vhat - v."),
    ),
    *METHODS,
    gradient_table(
        "samples",
        "variance",
        "Raw per-sample numbers, one row per sample and quantity; std_error and interval are null, but for a "
        "divergence from random probes.",
        (
            Column("index", "int64", "Sample number i, from 0."),
            Column("r", "float64", "Start of the sample's time interval, in [0, 1]."),
            Column("t", "float64", "End of the sample's time interval, in [0, 1]."),
            Column("label", "int64", "Class label of the sample; null without labels.", nullable=True),
        ),
        Quantity("grad_norm2", "|G_i|^2", GRADIENT2, "Squared norm of the per-sample gradient."),
        Quantity("loss", "w_i |e_i|^2", "loss", "Per-sample loss."),
        Quantity(
            "divergence",
            "tr D_i, D = du(x_t, t, t)/dx",
            "1",
            "Divergence of the network's velocity field at the sample; estimator is null. Above 16 dimensions with "
            "--extra divergence, from random probes, whose error alone its interval holds.",
        ),
    ),
)
