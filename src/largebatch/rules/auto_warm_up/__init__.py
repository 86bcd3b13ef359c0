"""A warm-up that ends when the loss rises, and the learning rate that it finds."""

from largebatch.rules.auto_warm_up.rule import AutoWarmUp as AutoWarmUp
