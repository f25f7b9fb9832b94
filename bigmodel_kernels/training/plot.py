"""The loss curve as a picture."""

from pathlib import Path

from .trainer import OURS, TORCH, Epoch

LABELS = {OURS: "bigmodel_kernels", TORCH: "torch.nn"}


def draw_losses(epochs: list[Epoch], title: str, path: Path) -> None:
    """Writes a PNG: loss by epoch, on a logarithmic axis, one line per contestant."""
    from matplotlib.figure import Figure  # half a second: only who draws pays for it
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    # The wide pale line lies under the thin one: where only one colour shows, the two losses agree.
    styles = {TORCH: {"color": "#f4a261", "linewidth": 6, "alpha": 0.7}, OURS: {"color": "#1d4e89", "linewidth": 1.8}}
    for name, style in styles.items():
        if name in epochs[0].loss:
            numbers = range(1, len(epochs) + 1)
            axes.plot(numbers, [epoch.loss[name] for epoch in epochs], label=LABELS[name], marker="o", ms=3, **style)
    axes.set(title=title, xlabel="epoch", ylabel="training loss (cross-entropy)", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
