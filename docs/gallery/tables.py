"""Read the tables with pandas.

Every command writes a tidy table: one row per value, with its 95 % interval and a status. `mfdiag.measure` returns the
same frames, and `mfdiag.tables.read_table` reads them from a folder. Select by `quantity`, by `layer` (`all` is the
whole network) and by bins of t (null means all times), and keep the rows whose status is `ok`.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt

import mfdiag
from mfdiag.tables import read_table, write_table

folder = Path(tempfile.mkdtemp())
checkpoint = mfdiag.load_model(files("mfdiag") / "data" / "eight_gaussians.safetensors")
ema = checkpoint.with_weights("ema")
request = {"tables": ["variance"], "samples": 4096, "bins": (5, 5), "proxy": "ema", "proxy_model": ema}
frames = mfdiag.measure(checkpoint.module, "eight_gaussians", **request)
write_table("variance", frames["variance"], folder)

table = read_table("variance", folder)
variance = table[(table["quantity"] == "variance") & (table["status"] == "ok")]
whole = variance.query("layer == 'all' and t_low.isna()")
print(whole[["estimator", "value", "ci_low", "ci_high"]].to_string(index=False))

by_time = variance.query("layer == 'all' and t_low.notna() and r_low.isna()")
by_layer = variance.query("layer != 'all' and t_low.isna()").pivot(index="layer", columns="estimator", values="value")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for estimator, rows in by_time.groupby("estimator"):
    center = (rows["t_low"] + rows["t_high"]) / 2
    left.plot(center, rows["value"], marker="o", label=estimator)
    left.fill_between(center, rows["ci_low"], rows["ci_high"], alpha=0.2)
left.set(xlabel="t", ylabel="gradient variance")
left.legend()
by_layer.plot.barh(ax=right, xlabel="gradient variance", ylabel="", legend=False)
figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
