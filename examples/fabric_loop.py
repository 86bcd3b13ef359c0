"""Lightning Fabric's plain loop with a batch that grows: scikit-learn's digits, on one process or
several.

    python examples/fabric_loop.py
    python examples/fabric_loop.py 2             # processes, which Fabric starts

Fabric starts the processes, places the model and wraps the model in DistributedDataParallel;
`lb.Controller` loads, measures, takes the steps, and changes batch and rate between them.
"""

import sys

import torch
from lightning.fabric import Fabric
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

import largebatch as lb


def digits() -> tuple[torch.Tensor, ...]:
    """1437 images of 8 x 8 pixels to train on and 360 to test on, each with its digit."""
    bunch = datasets.load_digits()
    x, y = torch.from_numpy(bunch.data).float() / 16.0, torch.from_numpy(bunch.target)
    test = torch.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def main() -> None:
    fabric = Fabric(devices=int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    x, y, test_x, test_y = digits()

    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))

    # No fabric.setup_dataloaders: the loader gives each process its share of every batch.
    batches = lb.BatchLoader((x, y), batch_size=32, max_micro_batch_size=128, seed=0)
    rule = lb.AdaScale()  # the learning rate follows the batch, by the measured gain
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=32)

    for batch in control.steps(base_steps=900):
        for micro_batch in batch:
            images, labels = fabric.to_device(micro_batch)
            control.backward(cross_entropy(model(images), labels))  # for fabric.backward
        control.step(clip_norm=5.0)  # for optimizer.step and zero_grad
        if control.every(base_steps=300):
            control.resize(2 * control.batch_size)  # by hand here; a rule may do it, too
            fabric.print(
                f"base step {control.base_steps:.0f}: {control.optimizer_steps} steps, "
                f"{control.samples} samples, rate x {control.lr_multiplier:.2f}, "
                f"next batch {control.batch_size}"
            )

    with torch.no_grad():
        right = (net(fabric.to_device(test_x)).argmax(1) == fabric.to_device(test_y)).sum()
    fabric.print(f"{int(right)} of {len(test_y)} test images are told")


if __name__ == "__main__":
    main()
