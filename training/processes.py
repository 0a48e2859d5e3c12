"""One training in several processes, one a GPU: what they decide together and what they add up.

In one process alone, which is the usual case, each function gives back what it is given and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import check_cuda_p2p_ib_support

from training.errors import UserError
from training.post_mortem import is_out_of_memory

T = TypeVar("T")
_PATIENCE = timedelta(days=30)  # one may prepare data or wait for a full disk, and the others for it
_CPU = torch.device("cpu")


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that torchrun has started, each with a GPU of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not check_cuda_p2p_ib_support():  # some consumer GPUs cannot reach each other, and the library would refuse
            os.environ.setdefault("NCCL_P2P_DISABLE", "1")
            os.environ.setdefault("NCCL_IB_DISABLE", "1")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, when the others may not answer any more


def count() -> int:
    """How many processes train this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """What this process has to do of what all have to do."""
    return items[rank() :: count()]


def from_first(value: T) -> T:
    """The first process's value, in each."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=_CPU)
    return values[0]


def gathered(value: T) -> list[T]:
    """Each process's value, by their numbers."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def together(action: Callable[[], T]) -> T:
    """Do it in each process; what goes wrong in one is raised in all: they must not wait for that one for ever.

    The action itself must not speak with the other processes.
    """
    if count() == 1:
        return action()
    try:
        result, error = action(), None
    except Exception as caught:  # noqa: BLE001 - it is raised below, after the others know
        error = caught
    problems = gathered(_told(error))
    if error is not None:
        raise error
    for problem in filter(None, problems):
        raise problem
    return result


def _told(error: Exception | None) -> Exception | None:
    """An error as the others raise it: of few kinds, since not every one can be sent."""
    if error is None:
        return None
    if isinstance(error, UserError):
        return UserError(str(error))
    return MemoryError(str(error)) if is_out_of_memory(error) else RuntimeError(f"{type(error).__name__}: {error}")


def first_then_others(action: Callable[[], T]) -> T:
    """Do it in the first process and then in the others, which find what it has left on the disk."""
    if is_first():
        done = together(action)
        together(lambda: None)
    else:
        together(lambda: None)
        done = together(action)
    return done


def total(value: float) -> float:
    """The sum over all processes."""
    if count() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return float(tensor)


def add_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give each parameter the sum of its gradients over all processes; none where no process has one."""
    if count() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    flat = torch.cat([there, *(gradient.reshape(-1) for gradient in gradients)])
    dist.all_reduce(flat)
    found = flat[: len(parameters)].tolist()
    parts = flat[len(parameters) :].split([p.numel() for p in parameters])
    for parameter, processes, part in zip(parameters, found, parts, strict=True):
        parameter.grad = part.view_as(parameter) if processes else None


def spread(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give all processes the first one's weights."""
    for parameter in parameters if count() > 1 else ():
        dist.broadcast(parameter.data, src=0)


def own_random_numbers(seed: int) -> None:
    """Random numbers that differ between the processes: else all would drop out the same places."""
    if rank():
        torch.manual_seed(seed + rank())
