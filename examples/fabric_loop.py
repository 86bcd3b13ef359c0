"""Train scikit-learn's digits in a plain loop of Lightning Fabric with a growing batch size.

    python examples/fabric_loop.py
    python examples/fabric_loop.py 2             # Fabric starts 2 processes

Fabric starts the processes, moves the model to its device and wraps the model in
DistributedDataParallel. `lb.Controller` loads the batches, measures the gradient noise, takes the
optimizer steps, and changes the batch size and the learning rate between the steps.
"""

import sys

import torch
from lightning.fabric import Fabric
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

import largebatch as lb


def digits() -> tuple[torch.Tensor, ...]:
    """Return 1437 training images of 8 x 8 pixels and 360 test images, with their labels."""
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

    # Do not call fabric.setup_dataloaders: this loader gives each process its share of every batch.
    batches = lb.BatchLoader((x, y), batch_size=32, max_micro_batch_size=128, seed=0)
    rule = lb.AdaScale()  # multiplies the learning rate by the measured gain
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=32)

    for batch in control.steps(base_steps=900):
        for micro_batch in batch:
            images, labels = fabric.to_device(micro_batch)
            control.backward(cross_entropy(model(images), labels))  # replaces fabric.backward
        control.step(clip_norm=5.0)  # replaces optimizer.step and optimizer.zero_grad
        if control.every(base_steps=300):
            control.resize(2 * control.batch_size)  # a rule could also change the batch size
            fabric.print(
                f"base step {control.base_steps:.0f}: {control.optimizer_steps} steps, "
                f"{control.samples} samples, learning rate multiplied by "
                f"{control.lr_multiplier:.2f}, next batch size {control.batch_size}"
            )

    with torch.no_grad():
        right = (net(fabric.to_device(test_x)).argmax(1) == fabric.to_device(test_y)).sum()
    fabric.print(f"{int(right)} of {len(test_y)} test images are classified correctly")


if __name__ == "__main__":
    main()
