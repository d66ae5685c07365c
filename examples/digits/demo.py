"""Compile the digit network for this processor and read handwritten digits with it: `make demo`.

    python examples/digits/demo.py [--target cpu] [--count 4]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from dataset import MODEL, WEIGHTS, Array, digits
from rich.console import Console
from rich.table import Table
from rich.text import Text

import cnnc

SHADES = " ░▒▓█"
BAR = 24


def drawn(image: Array) -> Text:
    """An 8x8 digit of grey values 0..16 in block characters, two to a pixel, which makes it about square."""
    rows = ("".join(SHADES[int(value) // 4] * 2 for value in row) for row in image[0])
    return Text("\n".join(rows), style="bold")


def top_three(scores: Array, label: int) -> Text:
    """The three likeliest digits, each with its probability as a bar: green is right, red wrong."""
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    text = Text("\n")
    for place, digit in enumerate(np.argsort(-chances)[:3]):
        colour = "green" if digit == label else "red" if place == 0 else "bright_black"
        text.append(f"\n{digit} ", style="bold")
        text.append("━" * max(1, round(BAR * chances[digit])), style=colour)
        text.append(f" {chances[digit]:.1%}")
    return text.append(f"\n\nit is {label}", style="italic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="cpu", help="cpu, numpy, torch or onnx [cpu]")
    parser.add_argument("--count", type=int, default=4, help="how many digits to show [4]")
    options = parser.parse_args()
    console = Console(highlight=False)
    graph = cnnc.load(MODEL)
    with console.status(f"compiling {MODEL.name} for {options.target}"):
        start = time.perf_counter()
        program = cnnc.compile(graph, target=options.target, weights=WEIGHTS)
        taken = time.perf_counter() - start
    console.print(f"[bold]{MODEL.name}[/] for {options.target}, compiled in {taken:.1f} s\n")

    _, held_out = digits()
    scores = program(digit=held_out.images)["scores"]
    right = scores.argmax(1) == held_out.labels
    chosen = [*np.flatnonzero(~right)[:1], *np.flatnonzero(right)][: options.count]  # a mistake first, if there is one
    for i in chosen:
        row = Table.grid(padding=(0, 3))
        row.add_row(drawn(held_out.images[i]), top_three(scores[i], held_out.labels[i]))
        console.print(row, "")
    console.print(f"{right.sum()} of {right.size} held-out digits right ([bold]{right.mean():.2%}[/])")


if __name__ == "__main__":
    main()
