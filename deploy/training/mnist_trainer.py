#!/usr/bin/env python3
"""Trains a small network on handwritten digits with torch.distributed, one process per rank.

It takes the arguments of Batch AI's PyTorch recipe unmodified, so that the recipe's job file runs as it is:

    mnist_trainer.py --epochs 10 --world-size 2 --dist-backend gloo --dist-url URL --rank R

The digits are the 1,797 images of 8 by 8 pixels that scikit-learn ships, so nothing is downloaded. Each rank trains on its
own share; the gradients are averaged by DistributedDataParallel, hence every rank ends with the same weights. It ends with
status 0 only if those weights recognise at least --min-accuracy of the digits that no rank has trained on.

Runs on CPU alone with PyTorch 1.13 or newer.
"""

import argparse
import datetime
import os
import sys
import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

TEST_SHARE = 0.2


def parse_args():
    parser = argparse.ArgumentParser(description="Distributed training on handwritten digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="images per step, summed over all ranks")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--world-size", type=int, default=1, help="number of processes of the job")
    parser.add_argument("--rank", type=int, default=0, help="this process, counted from 0")
    parser.add_argument("--dist-backend", default="gloo")
    parser.add_argument("--dist-url", default="env://", help="where the ranks meet: file:///SHARED/FILE, tcp://HOST:PORT or env://")
    parser.add_argument("--dist-timeout", type=float, default=120, help="seconds to wait for the other ranks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--min-accuracy", type=float, default=90, help="percent; fewer end the job with status 1")
    args = parser.parse_args()
    if not 0 <= args.rank < args.world_size:
        parser.error(f"--rank {args.rank} is not below --world-size {args.world_size}")
    return args


def load_data(seed):
    """The same split on every rank: (training images, test images)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = int(len(labels) * TEST_SHARE)
    test, train = order[:held_out], order[held_out:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def build_network():
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


def train_epoch(model, loader, optimizer):
    """Returns (summed loss, images seen) of this rank."""
    total = torch.zeros(2, dtype=torch.float64)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += torch.tensor([loss.item() * len(labels), len(labels)], dtype=torch.float64)
    return total


def test_accuracy(network, test_set):
    network.eval()
    images, labels = test_set.tensors
    with torch.no_grad():
        right = (network(images).argmax(dim=1) == labels).sum().item()
    return 100 * right / len(labels)


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    # The images are tiny: more threads cost more than they give, and nodes on one machine would fight for its cores.
    torch.set_num_threads(1)

    def say(text):
        print(f"[rank {args.rank}] {text}", flush=True)

    say(f"joining {args.world_size} ranks over {args.dist_backend} at {args.dist_url}")
    if args.world_size == 1 and args.dist_url == "env://":
        # One process alone meets nobody: it can be tried out by hand without any set-up.
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
    dist.init_process_group(
        backend=args.dist_backend,
        init_method=args.dist_url,
        world_size=args.world_size,
        rank=args.rank,
        timeout=datetime.timedelta(seconds=args.dist_timeout),
    )
    train_set, test_set = load_data(args.seed)
    sampler = DistributedSampler(train_set, num_replicas=args.world_size, rank=args.rank, seed=args.seed)
    loader = DataLoader(train_set, batch_size=max(1, args.batch_size // args.world_size), sampler=sampler)
    network = build_network()
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    say(f"training on {len(sampler)} of {len(train_set)} images")

    for epoch in range(1, args.epochs + 1):
        started = time.monotonic()
        sampler.set_epoch(epoch)
        total = train_epoch(model, loader, optimizer)
        dist.all_reduce(total)
        loss = (total[0] / total[1]).item()
        say(f"epoch {epoch}/{args.epochs} loss {loss:.4f} in {time.monotonic() - started:.2f} s")

    accuracy = test_accuracy(network, test_set)
    say(f"test accuracy {accuracy:.2f} %")
    # Every rank stays until all have finished: rank 0 may hold the rendezvous that the others still use.
    dist.barrier()
    dist.destroy_process_group()
    if accuracy < args.min_accuracy:
        print(f"[rank {args.rank}] test accuracy {accuracy:.2f} % is below {args.min_accuracy:.2f} %", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
