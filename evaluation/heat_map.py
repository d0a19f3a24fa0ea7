"""A picture of accuracy by the needle's depth and the text's length, for tasks whose questions have both."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


def draw(samples: list[dict[str, Any]], path: Path) -> None:
    """Draw the first accuracy of `samples` (results.py) into a PNG; nothing for a task without depths and lengths."""
    if not samples or not {"depth", "length"} <= samples[0].keys():
        return
    metric = next(iter(samples[0]["scores"]))
    cells = defaultdict(list)
    for sample in samples:
        cells[sample["depth"], sample["length"]].append(sample["scores"][metric])
    depths, lengths = (sorted({cell[at] for cell in cells}) for at in (0, 1))
    shares = np.array([[np.mean(cells.get((depth, length), [np.nan])) for length in lengths] for depth in depths])

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2.2 + 0.9 * len(lengths), 1.6 + 0.5 * len(depths)), layout="constrained")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.0%}", ha="center", va="center")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="tokens of text", ylabel="depth of the needle", title=f"{metric}, {len(samples)} questions")
    figure.colorbar(image, label=metric)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
