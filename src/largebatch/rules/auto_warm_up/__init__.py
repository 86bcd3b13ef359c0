"""Find the learning rate by a warm-up that ends when the loss rises."""

from largebatch.rules.auto_warm_up.rule import AutoWarmUp as AutoWarmUp
