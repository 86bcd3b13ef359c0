"""Check once per process that torch's autograd hooks behave as this package requires.

The package uses some functions that are private to torch or not documented: the order of hooks
within a backward call, callbacks at the end of a backward call, the number of the running backward
call, and the graph's nodes. A torch release that changes a private function could make every
measurement wrong without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.autograd.variable import Variable

from largebatch.core.errors import LargeBatchError
from largebatch.core.version import TESTED_TORCH

Finding = str | None
"""Difference between torch's behavior and the required behavior; None if nothing differs."""


@lru_cache(maxsize=1)  # an error is not cached, so that every later call raises it again
def check_hooks() -> None:
    """Check torch's autograd hooks on a tensor of two elements, once in each process.

    The check takes less than 2 ms of CPU time and draws no random number. All tensors of the check
    are on the CPU.

    >>> check_hooks()

    Raises:
        LargeBatchError: torch's autograd hooks do not behave as this package requires.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            finding = next((found for check in CHECKS if (found := check()) is not None), None)
        cause: Exception | None = None
    except Exception as error:
        finding, cause = f"{type(error).__name__}: {error}", error
    if finding is not None:
        raise LargeBatchError(unsupported_torch(torch.__version__, finding)) from cause


def unsupported_torch(version: str, finding: str) -> str:
    """Return the text of the error for a torch version whose hooks behave differently.

    >>> print(unsupported_torch("2.99.0", "a hook did not run")[:49])
    torch 2.99.0 was found, but its autograd hooks do

    Args:
        version: The torch version that is installed.
        finding: Description of the different behavior, as a clause without a full stop.
    """
    oldest, newest = TESTED_TORCH
    major, minor = newest.split(".")
    return (
        f"torch {version} was found, but its autograd hooks do not behave as largebatch requires "
        f"({finding}). largebatch is tested with torch {oldest} to {newest}. Install one of these "
        f"versions: pip install 'torch>={oldest},<{major}.{int(minor) + 1}'."
    )


def _check_order() -> Finding:
    """Run one backward call, and compare the order of its events with the required order."""
    weight = _row(1.0, 1.0).requires_grad_()
    leaf, events = get_gradient_edge(weight).node, list[str]()
    loss = (weight * _row(3.0, 4.0)).sum()
    output = loss.grad_fn
    assert output is not None
    tasks, seen = set[int](), list[Tensor]()

    def queue(callback: Callable[[], None]) -> None:
        Variable._execution_engine.queue_callback(callback)

    def on_output(gradients: tuple[Tensor | None, ...]) -> None:
        events.append("output")
        tasks.add(torch._C._current_graph_task_id())

    def on_leaf(gradients: tuple[Tensor | None, ...]) -> None:
        events.append("parameter" if weight.grad is None else "parameter after .grad")
        tasks.add(torch._C._current_graph_task_id())
        seen.extend(gradient for gradient in gradients if gradient is not None)
        queue(first_callback)

    def first_callback() -> None:
        events.append("callback" if weight.grad is not None else "callback before .grad")
        queue(lambda: events.append("second callback"))

    output.register_prehook(on_output)
    handle = leaf.register_prehook(on_leaf)
    torch.autograd.grad(loss, weight, retain_graph=True)
    if events != ["output"]:
        return f"torch.autograd.grad ran these hooks: {', '.join(events) or 'none'}"
    events.clear()
    tasks.clear()
    loss.backward()
    handle.remove()
    if events != ["output", "parameter", "callback", "second callback"]:
        return f"a backward call ran these hooks in this order: {', '.join(events) or 'none'}"
    if [gradient.tolist() for gradient in seen] != [[3.0, 4.0]]:
        return f"the hook of a parameter received {seen} in place of the gradient [3, 4]"
    if len(tasks) != 1 or -1 in tasks or torch._C._current_graph_task_id() != -1:
        return "the number of the running backward call is wrong"
    return None


def _check_graph() -> Finding:
    """Check a graph's nodes, a parameter's lasting node, and the removal of a hook."""
    weight = _row(1.0, 1.0).requires_grad_()
    leaf, calls = get_gradient_edge(weight).node, list[list[float]]()
    handle = leaf.register_prehook(lambda gradients: calls.append(gradients[0].tolist()))
    spread = weight.expand(2, 2)
    node = spread.grad_fn
    assert node is not None
    if node.name() != "ExpandBackward0" or node.next_functions != ((leaf, 0),):
        return f"the graph of an expanded parameter is {node.name()}, {node.next_functions}"
    if _shape(node) != (2, 2):
        return f"the recorded shape of a 2 x 2 output is {_shape(node)}"
    spread.sum().backward()
    (3.0 * weight).sum().backward()
    handle.remove()
    weight.sum().backward()
    if calls != [[2.0, 2.0], [3.0, 3.0]] or get_gradient_edge(weight).node is not leaf:
        return f"the hook of a parameter received {calls} in place of [[2, 2], [3, 3]]"
    gradient = weight.grad
    if gradient is None or gradient.tolist() != [6.0, 6.0]:
        return f"the sum of three gradients is {gradient} in place of [6, 6]"
    before = gradient._version
    gradient.mul_(2.0)
    return None if gradient._version > before else "an in-place change does not raise _version"


def _check_foreach() -> Finding:
    """Check torch's private operations on lists of tensors."""
    one = [_row(3.0, 4.0)]
    (norm,) = torch._foreach_norm(one, 2, dtype=torch.float64)
    torch._foreach_mul_(one, 2.0)
    torch._foreach_add_(one, [_row(1.0, 1.0)], alpha=0.5)
    copies = [_row(0.0, 0.0)]
    torch._foreach_copy_(copies, one)
    if (norm.item(), norm.dtype, copies[0].tolist()) != (5.0, torch.float64, [6.5, 8.5]):
        return f"operations on lists of tensors gave {norm}, {copies[0]}"
    return None


def _check_attributes() -> Finding:
    """Check the private attributes that show a compiled module and a transform of torch.func."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func seems to run"
    return None if hasattr(nn.Module, "_compiled_call_impl") else "compiled modules are not marked"


CHECKS = (_check_order, _check_graph, _check_foreach, _check_attributes)


def _row(first: float, second: float) -> Tensor:
    return torch.tensor([first, second], dtype=torch.float32, device="cpu")


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node._input_metadata[0].shape)
