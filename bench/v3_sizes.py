"""How large the paper's variant 3 is, drawn at random: the histograms of docs/reproduction.md.

    python bench/v3_sizes.py [--networks 2000]

The paper reports 7.1 million parameters for the network that it found, and 37.4 million with 40 filters more a layer.
Both readings of its "block of 3 layers" are counted: handing on the last layer's output, or that of all. The counting
is done here once more from the paper's description, on the raw choices, apart from the code that trains.
"""

import argparse
import random
import statistics
from collections.abc import Sequence

# As in examples/paper/cifar-v3.yaml: 13 predicted layers, each a block of 3.
LAYERS, BLOCK, COLOURS, CLASSES = 13, 3, 3, 10
SIZES, FILTERS = (1, 3, 5, 7), (6, 12, 24, 36)
ROWS = (("v3", 0, 7.1), ("v3 and 40 filters more", 40, 37.4))
# Upper ends of the bars, in millions.
ENDS = {
    0: (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12),
    40: (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80),
}


def parameters(rng: random.Random, extra: int, kept: int) -> int:
    """Return the parameters of one network drawn uniformly.

    Args:
        rng: where it is drawn from.
        extra: filters added to each layer.
        kept: of a block's layers, how many hand their output on: 1 or all.
    """
    given: list[int] = []
    fed: set[int] = set()
    total = 0
    for index in range(LAYERS):
        height, width, filters = rng.choice(SIZES), rng.choice(SIZES), rng.choice(FILTERS) + extra
        inputs = [source for source in range(index) if rng.random() < 0.5]
        fed.update(inputs)
        channels = sum(given[source] for source in inputs) if inputs else COLOURS
        for _ in range(BLOCK):
            total += height * width * channels * filters
            # Batch normalisation: a scale and a shift.
            total += 2 * filters
            channels += filters
        given.append(kept * filters)
    features = sum(each for index, each in enumerate(given) if index not in fed)
    return total + features * CLASSES + CLASSES


def chart(title: str, sizes: Sequence[int], ends: Sequence[float], paper: float) -> str:
    """Return a bar chart in Mermaid's words, the bar with the paper's size marked."""
    begins = (0.0, *ends)
    counts = [sum(low <= size / 1e6 < high for size in sizes) for low, high in zip(begins, ends, strict=False)]
    labels = [f'"{"paper: " if low <= paper < high else ""}{high:g}"' for low, high in zip(begins, ends, strict=False)]
    return "\n".join(
        (
            "```mermaid",
            "xychart-beta",
            f'    title "{title}"',
            f'    x-axis "up to million parameters" [{", ".join(labels)}]',
            '    y-axis "networks"',
            f"    bar [{', '.join(map(str, counts))}]",
            "```",
        )
    )


def main() -> None:
    """Print a table and two charts."""
    parser = argparse.ArgumentParser(description="Sizes of random networks of the paper's variant 3.")
    parser.add_argument("--networks", type=int, default=2000)
    networks = parser.parse_args().networks
    charts = []
    print("| row | blockOutput | 5 % | median | 95 % | largest | as large as the paper's |")
    print("|---|---|---|---|---|---|---|")
    for name, extra, paper in ROWS:
        for output, kept in (("Last", 1), ("All", BLOCK)):
            rng = random.Random(0)
            sizes = sorted(parameters(rng, extra, kept) for _ in range(networks))
            cuts = statistics.quantiles(sizes, n=20)
            share = sum(size / 1e6 >= paper for size in sizes) / networks
            figures = " | ".join(f"{value / 1e6:.1f}M" for value in (cuts[0], cuts[9], cuts[18], sizes[-1]))
            print(f"| {name}, {paper}M | {output} | {figures} | {share:.1%} |")
            if output == "All":
                charts.append(chart(f"{name}, All: {networks:,} random networks", sizes, ENDS[extra], paper))
    print("\n" + "\n\n".join(charts))


if __name__ == "__main__":
    main()
