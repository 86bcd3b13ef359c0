"""A state to a file and back, as a run does it that is stopped and resumed."""

from __future__ import annotations

import io
import json
from typing import Any

import torch


def through_json(value: Any) -> Any:
    """Return what JSON gives back of a plain value."""
    return json.loads(json.dumps(value, allow_nan=False))


def through_a_file(state: Any) -> Any:
    """Return what torch loads, by weights alone, of a state that it saved."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
