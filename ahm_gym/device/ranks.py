"""The ranks of a run: processes that torchrun starts, which compute one update together.

Every rank holds the same weights, statistics and generators, draws the random numbers of the whole batch, and computes
what is expensive for its own rows: images rank, rank + size, rank + 2 size, ... The results of the rows are gathered,
so that masks, rewards and agents are computed from the whole batch, and alike in every rank. So a run is a function of
its seed and its batch size: with any number of ranks it is the same up to rounding, and one checkpoint serves all.

Outside of `started`, in one process, and inside of `alone`, there is one rank, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ahm_gym.device.launch import launched, number_of, quiet
from ahm_gym.errors import InputError, RunError, say

TIMEOUT: datetime.timedelta = datetime.timedelta(minutes=5)
"""How long a rank waits for the others in an update, before it takes one of them for lost."""
LOST: str = (
    f"another process of this run died, or gave no answer for {TIMEOUT.seconds} s: torchrun starts all of them again "
    "if it is called with --max-restarts, and `resume` goes on from the last checkpoint."
)
"""What a rank says that lost another."""

Value = TypeVar("Value")


@dataclass
class _Group:
    rank: int
    size: int
    local_rank: int
    """Number of this rank on its machine."""
    store: Any
    """Store of the agent of torchrun, which outlives the ranks."""
    barriers: int = 0


_group: _Group | None = None
_alone: int = 0
_said: Any = None
"""The store, also after the group has ended."""


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Inside, this process is one of the ranks that torchrun started; it does nothing without torchrun.

    The ranks exchange tensors in main memory by gloo, and those on GPUs by NCCL, or by gloo if they share a GPU. Only
    rank 0 prints.

    Raises:
        InputError: if this process already belongs to another group of torch.distributed.
        RunError: if not all ranks come.
    """
    global _group, _said
    if number_of("WORLD_SIZE", 1) == 1 or _group is not None:
        yield
        return
    if dist.is_initialized():
        raise InputError("torch.distributed is in use already: end its process group before this run begins.")
    backend = _choose_gpu()
    with _may_be_lost():
        whole, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = _own_store(whole, rank, size)
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    _group, _said = _Group(rank, size, number_of("LOCAL_RANK"), store), store
    try:
        with quiet():
            yield
    finally:
        _group = None
    dist.destroy_process_group()  # not after an error, which is said first: the others notice the lost connection


def _own_store(store: Any, rank: int, size: int) -> dist.PrefixStore:
    """The part of torchrun's store that belongs to these processes.

    The store outlives a restart, and torch would find the addresses of the ranks before it. The count of restarts is no
    name for the part, because the agents of several machines count differently: rank 0 chooses one, and tells it to
    those who ask now.
    """
    deadline = time.monotonic() + TIMEOUT.total_seconds()

    def wait_for(ready: Callable[[], bool]) -> None:
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError("some ranks have not come")
            time.sleep(0.02)

    if rank > 0:
        question = uuid.uuid4().hex
        store.set(f"asks/{rank}", question)
        wait_for(lambda: store.check([f"answer/{question}"]))
        name = store.get(f"answer/{question}").decode()
        store.set(f"{name}/{rank}", "here")
        return dist.PrefixStore(name, store)

    name = f"start/{store.add('starts', 1)}"

    def all_are_here() -> bool:
        away = [other for other in range(1, size) if not store.check([f"{name}/{other}"])]
        for other in away:  # which may still be a question of the dead
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", name)
        return not away

    wait_for(all_are_here)
    return dist.PrefixStore(name, store)


def _choose_gpu() -> str:
    """Makes the GPU of this rank the current one; returns the name of the backend."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        return "gloo"
    local, together = number_of("LOCAL_RANK"), number_of("LOCAL_WORLD_SIZE", 1)
    torch.cuda.set_device(local % gpus)
    if together <= gpus:
        return "cpu:gloo,cuda:nccl"
    with quiet():
        say(f"note: {together} processes share {gpus} GPUs: --nproc-per-node {gpus} is faster.")
    return "gloo"


def world_size() -> int:
    """Number of ranks that compute an update together."""
    return 1 if _group is None or _alone else _group.size


def rank() -> int:
    """Number of this rank, from 0."""
    return 0 if _group is None else _group.rank


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this rank computes by itself, without the others."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def rows() -> slice:
    """The images of a batch that this rank computes: every `world_size`-th one."""
    return slice(rank(), None, world_size()) if world_size() > 1 else slice(None)


def own(batch: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "b *rest"]:
    """The rows of a batch that this rank computes."""
    return batch[rows()]


def check_batch(batch_size: int) -> None:
    """Raises InputError if the images of a batch cannot be divided among the ranks.

    With unequal parts the update would not be that of one process.
    """
    if batch_size % world_size():
        raise InputError(
            f"`batch_size={batch_size}` cannot be divided among {world_size()} processes: choose a multiple of "
            f"{world_size()}, such as {-(-batch_size // world_size()) * world_size()}."
        )


def check_statistics(model: nn.Module) -> None:
    """Raises InputError if a network has statistics of a batch, which would be those of the rows of one rank."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms and world_size() > 1:
        raise InputError(
            f"this model has {type(norms[0]).__name__}, whose statistics of a batch are not shared by processes: start "
            "the command without torchrun, or choose another `model`."
        )


def check_device(name: str) -> None:
    """Raises InputError if a device such as cuda:0 is named, which would be that of all ranks."""
    if ":" in name and world_size() > 1:
        raise InputError(
            f"`device={name}` names one GPU for {world_size()} processes: choose `device=cuda`, and each gets its own."
        )


class _Gathered(torch.autograd.Function):
    """The rows of all ranks as one batch. A gradient flows to the rows of this rank only, times the number of ranks:
    the mean over the ranks of what they make of it is the gradient of the whole batch."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(world_size())]
        with _may_be_lost():
            dist.all_gather(parts, part)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return own(gradients[0]) * world_size()


def gathered(part: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "B *rest"]:
    """The whole batch, in its order, of which every rank has its rows.

    A loss of the whole batch may be computed from it, alike in every rank: after `average_gradients` its gradient is
    that of one process.
    """
    if world_size() == 1:
        return part
    whole: Any = _Gathered.apply(part)
    return whole


def mapped(function: Callable[..., Tensor], *batches: Tensor) -> Shaped[Tensor, "B *rest"]:
    """What `function` of whole batches returns, of which every rank computes its rows; of any number of images."""
    if world_size() == 1:
        return function(*batches)
    count = len(batches[0])
    missing = -count % world_size()  # so many rows are computed twice, and every rank has equally many
    if missing:
        again = torch.arange(missing) % count
        batches = tuple(torch.cat([batch, batch[again.to(batch.device)]]) for batch in batches)
    return gathered(function(*map(own, batches)))[:count]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks, in one exchange.

    Not by DistributedDataParallel, whose hooks run in its own forward pass only: the updates here call other methods of
    a model, and clip the gradient right after it is averaged.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with _may_be_lost():
        dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def largest(number: int) -> int:
    """The largest of the numbers of all ranks, such as 1 if one of them was asked to stop."""
    if world_size() == 1:
        return number
    shared = torch.tensor(number)
    with _may_be_lost():
        dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def of_first(tensor: Tensor) -> Tensor:
    """The tensor of rank 0: what agents and policies decide there counts, even if a GPU rounded otherwise elsewhere."""
    if world_size() == 1:
        return tensor
    shared = tensor.detach().clone().contiguous()
    with _may_be_lost():
        dist.broadcast(shared, 0)
    return shared


def synchronise(model: nn.Module) -> None:
    """Replaces the weights and buffers by those of rank 0, in place."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(of_first(tensor))


def from_first(function: Callable[[], Value]) -> Value:
    """What `function` returns or raises in rank 0, where alone it is called; the others wait for as long as it takes.

    Raises:
        InputError, RunError: if it does.
    """
    if world_size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            with alone():
                answer[0] = function()
        except (InputError, RunError) as error:
            answer[1] = error
    barrier()
    with _may_be_lost():
        dist.broadcast_object_list(answer, 0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def barrier() -> None:
    """Waits until all ranks are here, for as long as it takes."""
    if world_size() == 1:
        return
    assert _group is not None, "there are several ranks"
    _group.barriers += 1
    name = f"barrier/{_group.barriers}"
    with _may_be_lost():
        _group.store.add(name, 1)
        while _group.store.add(name, 0) < _group.size:
            time.sleep(0.02)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """The first rank of each machine goes through the body first, and then the others: it prepares files for them."""
    goes_first = _group is None or _group.local_rank == 0
    if not goes_first:
        barrier()
    yield
    if goes_first:
        barrier()


def first_to_say(sentence: str) -> bool:
    """Whether no other rank has said this sentence; that another was lost is said only if no rank gave a reason."""
    if not launched() or _said is None:
        return True
    digest = hashlib.sha256(sentence.encode()).hexdigest()
    try:
        count = _said.add("said", 1)
        return count == 1 if sentence == LOST else _said.add(f"said/{digest}", 1) == 1
    except RuntimeError:  # the agent of torchrun is gone
        return True


@contextlib.contextmanager
def _may_be_lost() -> Iterator[None]:
    """Turns the failure of an exchange into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(LOST) from error
