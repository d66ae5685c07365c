"""Train the digit network as PyTorch code that cnnc writes, and save its weights.

    python examples/digits/train.py [--epochs 60] [--out digits.safetensors]

A run looks at the held-out digits once, at the end; README.md says how the number of epochs was chosen.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from dataset import MODEL, WEIGHTS, Digits, digits
from torch import Tensor, nn
from torch.nn import functional as F

import cnnc
from cnnc import weights

EPOCHS = 60
BATCH = 64
SEED = 0


def moved(images: Tensor) -> Tensor:
    """The images, each turned, stretched and shifted a little at random (by up to 10%, and half a pixel)."""
    by = torch.rand(len(images), 2, 3) * 2 - 1
    matrices = torch.eye(2, 3) + by * torch.tensor([0.1, 0.1, 0.125])
    return F.grid_sample(images, F.affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False)


def train(network: nn.Module, data: Digits, epochs: int) -> None:
    """Adam on the cross entropy, its step going to 0 along a cosine; prints the mean loss of every tenth epoch."""
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(images) / BATCH))
    network.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(network(moved(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch:3}  loss {total / len(images):.4f}", flush=True)


def correct(network: nn.Module, data: Digits) -> int:
    """How many digits the network reads right."""
    network.eval()
    with torch.no_grad():
        scores = network(torch.from_numpy(data.images))
    return int((scores.argmax(1).numpy() == data.labels).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="a .safetensors or .npz file")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # more only wait for each other in a network this small
    start = time.perf_counter()
    network = cnnc.compile(cnnc.load(MODEL), target="torch", weights=SEED).module()
    learn, held_out = digits()
    train(network, learn, options.epochs)
    weights.save(options.out, {name: x.numpy() for name, x in network.state_dict().items()})
    right = correct(network, held_out)
    print(f"{right} of {len(held_out.labels)} held-out digits right ({right / len(held_out.labels):.2%})")
    print(f"{time.perf_counter() - start:.0f} s; weights in {options.out}")


if __name__ == "__main__":
    main()
