"""What each of several processes does, under torchrun: `worker.py CHECK FOLDER`; each leaves FOLDER/RANK.pt."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from ranks.programs import ASKED, EXAMPLES, Model, loss_of, model, part

import gradtrace
from gradtrace.api import Tape
from gradtrace.monitor import Monitor

logging.basicConfig(level=logging.ERROR)
warnings.simplefilter("ignore")


def ddp(**options: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model(), **options)


def fsdp(reshard: bool) -> Any:
    from torch.distributed.fsdp import fully_shard

    whole = model()
    for block in whole.blocks:
        fully_shard(block, reshard_after_forward=reshard)
    return fully_shard(whole, reshard_after_forward=reshard)


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "ddp": lambda: ddp(find_unused_parameters=True),
    "ddp, static": lambda: ddp(static_graph=True),
    "fsdp": lambda: fsdp(True),
    "fsdp, not resharded": lambda: fsdp(False),
}


def ask(tape: gradtrace.Tape, loss: Tensor) -> list[Any]:
    """Ask for tables and flows."""
    trace = tape.trace(loss)
    found = [trace.influence(ASKED, of=of, kind=kind) for of in ("*", "words*") for kind in ("best", "greedy")]
    return [*found, *(trace.flow(kind="best", per_example=True, weighted=weighted) for weighted in (False, True))]


def tables(rank: int, ranks: int) -> dict[str, Any]:
    """Add up tables and flows, and see that gradients are those of a training that is not traced."""
    out, wrapped = {}, model()
    x, y = part(rank, ranks)
    for name, wrap in WRAPPED.items():
        grads = []
        for traced in (False, True):
            wrapped = wrap()
            with gradtrace.record(wrapped, examples=x) as tape:
                loss = loss_of(wrapped, x, y)
            if traced:
                out[name] = gradtrace.reduced(lambda: ask(tape, loss) if len(x) else None)  # noqa: B023
                out[f"{name}: unused"] = tape.trace(loss).unused() if len(x) else None
            loss.backward()
            held: list[Any] = [p.grad for p in wrapped.parameters() if p.grad is not None]
            grads.append([g.to_local() if hasattr(g, "to_local") else g for g in held])
        out[f"{name}: same gradients"] = all(map(torch.equal, *grads)) and len(grads[0]) > 0
    with gradtrace.record(wrapped, examples=x) as tape:  # of a mean, each example alike
        loss = loss_of(wrapped, x, y) / max(1, len(x))
    out["mean"] = gradtrace.reduced(lambda: ask(tape, loss) if len(x) else None, scale=len(x))
    loss.backward()
    return out


def train(wrapped: nn.Module, monitor: Monitor, rank: int, ranks: int, failing: int = 2) -> None:
    """Train as one process would with all examples: the average over ranks is the sum over examples, over 7."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for number in range(6):
        x, y = part(rank, ranks, number)
        with monitor.step(examples=x):
            loss = loss_of(wrapped, x, y) * ranks / EXAMPLES
            other = torch.zeros(1, requires_grad=True) * 2 if number == failing and rank == ranks - 1 else None
        del other
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def monitors(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Train with monitors, of which the last rank's cannot tell the loss at step 2."""
    out = {}
    for name, wrap in WRAPPED.items():
        options = {
            "every": 2,
            "of": "blocks*",
            "components": ASKED,
            "kinds": ["best", "greedy"],
            "folder": folder / name,
        }
        monitor = Monitor(wrapped := wrap(), **options)
        train(wrapped, monitor, rank, ranks)
        monitor.close()
        history = monitor.history()
        out[name] = {"traces": history.traces, "failures": history.failures, "said": dict(monitor.failures)}
    return out


def budget(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Train with a budget that clocks decide about, and of which the second half goes on from a checkpoint."""
    steps = []
    for resumed in (False, True):
        monitor = Monitor(
            small := model(), every=1, at_most=0.5, semirings=(), paths=0, folder=folder / "budget", resume=resumed
        )
        if resumed:
            monitor.go_to(60)
        for number in range(60 + 60 * resumed)[60 * resumed :]:
            time.sleep(0.01 * (rank + 1))  # a clock of its own
            x, y = part(rank, ranks, number)
            with monitor.step(examples=x) as step:
                step.loss = loss_of(small, x, y)
                steps += [number] * monitor.wants(number)
        monitor.close()
    return {"steps": steps, "failures": monitor.failures}


class Gather(torch.autograd.Function):
    """The gather of many contrastive losses: its backward pass adds up what all ranks have to say."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        out = [torch.zeros_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(out, x.contiguous())
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        together = torch.stack(grads)
        distributed.all_reduce(together)
        return together[distributed.get_rank()]


def in_own_place(z: Tensor) -> Tensor:
    out = [torch.zeros_like(z) for _ in range(distributed.get_world_size())]
    distributed.all_gather(out, z.detach())
    out[distributed.get_rank()] = z
    return torch.cat(out)


def gathers() -> dict[str, Callable[[Tensor], Tensor]]:
    from torch.distributed import _functional_collectives as functional
    from torch.distributed.nn import functional as old

    group: Any = distributed.group.WORLD
    return {
        "own place": in_own_place,
        "all_gather": lambda z: torch.cat(old.all_gather(z)),
        "custom": lambda z: torch.cat(Gather.apply(z)),  # type: ignore[arg-type]
        "asynchronous": lambda z: functional.all_gather_tensor_autograd(z, 0, group),
        "reduce_scatter": lambda z: functional.reduce_scatter_tensor_autograd(z.repeat(2, 1), "sum", 0, group),
        "all_to_all": lambda z: functional.all_to_all_single_autograd(z, None, None, group),
        "all_reduce": lambda z: functional.all_reduce(z, "sum", group),
        "old all_reduce": old.all_reduce,
        "waited for": waited_for,
        "sync batch norm": sync_batch_norm,
    }


KERNELS = torch.library.Library("aten", "IMPL")


def kernels_of_sync_batch_norm() -> None:
    """Give PyTorch's own SyncBatchNorm the kernels on the CPU that it has on GPUs only, by their definitions."""

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x.mean(0), (x.var(0, correction=0) + eps).rsqrt()

    def gather(x: Any, mean: Tensor, invstd: Tensor, a: Any, b: Any, c: Any, eps: float, n: Tensor) -> Any:
        n = n.unsqueeze(1) / n.sum()
        whole = (mean * n).sum(0)
        return whole, ((invstd**-2 - eps + (mean - whole) ** 2) * n).sum(0).add(eps).rsqrt()

    def elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
        return (x - mean) * invstd * weight + bias

    def reduce(g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *asked: bool) -> tuple[Tensor, ...]:
        along = (g * (x - mean)).sum(0)
        return g.sum(0), along, along * invstd, g.sum(0)

    def backward(g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Any, s: Any, sx: Any, n: Any) -> Tensor:
        return (g - s / n.sum() - (x - mean) * invstd**2 * sx / n.sum()) * invstd * weight

    names = ["stats", "gather_stats_with_counts", "elemt", "backward_reduce", "backward_elemt"]
    for name, kernel in zip(names, (stats, gather, elemt, reduce, backward), strict=True):
        KERNELS.impl(f"batch_norm_{name}", kernel, "CPU")


def sync_batch_norm(z: Tensor) -> Tensor:
    from torch.nn.modules._functions import SyncBatchNorm

    ranks, group = distributed.get_world_size(), distributed.group.WORLD
    one, zero = torch.ones(z.shape[1]).to(z), torch.zeros(z.shape[1]).to(z)
    found: Any = SyncBatchNorm.apply(z, one, zero, None, None, 1e-5, 0.1, group, ranks)
    return found


def waited_for(z: Tensor) -> Tensor:
    work = distributed.all_reduce(total := z.detach().clone(), async_op=True)
    kept = z * 2
    assert work is not None
    work.wait()
    return kept - total


def contrastive(net: nn.Module, x: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    z = net(x)
    return (z @ gather(z).tanh().T).logsumexp(1).sum()


def collectives(rank: int, ranks: int) -> dict[str, Any]:
    """Trace losses that are computed from what other ranks have, too; what comes from there is a constant here."""
    kernels_of_sync_batch_norm()
    torch.manual_seed(2)
    every = torch.randn(2 * ranks, 6, dtype=torch.float64)
    x, out = every[2 * rank : 2 * rank + 2], {}
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for name, gather in gathers().items():
        with gradtrace.record(net, examples=x) as tape:
            loss = contrastive(net, x, gather)
        trace = tape.trace(loss)
        table = trace.influence(["0", "1"], of="0.*")
        found = tape.grad(loss, [n for n, _ in net.named_parameters()])
        out[name] = {"connected": table.connected, "grads": [g.clone() for g in found], "share": table.rows[1].share}
        out[name]["expected"] = expected(net, every, rank, ranks, name)
        distributed.barrier()
    with gradtrace.record(net, examples=x) as tape:
        loss = net(x).square().sum()
        distributed.all_reduce(loss.detach().clone())  # for a log
    out["a log"] = tape.trace(loss).influence(["1"]).connected
    return out


def expected(net: nn.Module, every: Tensor, rank: int, ranks: int, name: str) -> list[Tensor]:
    """Differentiate the same loss in one process, where the other ranks' rows are detached."""
    own = slice(2 * rank, 2 * rank + 2)
    z = torch.cat([net(x) if r == rank else net(x).detach() for r, x in enumerate(every.split(2))])
    if name in ("own place", "all_gather", "custom", "asynchronous"):
        other = z
    elif name == "sync batch norm":
        other = nn.functional.batch_norm(z, None, None, training=True)[own]
    elif name == "reduce_scatter":
        other = torch.stack([part.repeat(2, 1).chunk(ranks)[rank] for part in z.split(2)]).sum(0)
    elif name == "all_to_all":
        other = torch.cat([part.chunk(ranks)[rank] for part in z.split(2)])
    else:
        other = torch.stack(z.split(2)).sum(0)
        other = z[own] * 2 - other.detach() if name == "waited for" else other
    loss = (z[own] @ other.tanh().T).logsumexp(1).sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


def tensor_parallel() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def refused(rank: int, ranks: int) -> dict[str, Any]:
    """Try what is split over ranks in other ways: each is refused in a sentence, and a monitor lets it train."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    out: dict[str, Any] = {}
    x = torch.ones(4, 4)
    net = tensor_parallel()
    try:
        with gradtrace.record(net, examples=x):
            net(x).sum()
    except gradtrace.GradtraceError as error:
        out["tensor parallel, recorded"] = str(error)
    grads = []
    for watched in (False, True):
        net = tensor_parallel()
        monitor = Monitor(net, every=1 if watched else 1000, folder=None)
        monitor._due = 0 if watched else 1000
        with monitor.step(examples=x):
            loss = net(x).square().sum()
        loss.backward()
        grads.append([p.grad.to_local().clone() for p in net.parameters()])  # type: ignore[union-attr]
    out["tensor parallel"] = list(monitor.failures)
    out["same gradients"] = all(map(torch.equal, *grads))
    torch.manual_seed(0)
    stages = [nn.Linear(4, 4), nn.Linear(4, 2)]
    stage = PipelineStage(stages[rank], rank, ranks, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=nn.functional.mse_loss)
    monitor = Monitor(stages[rank], every=1, folder=None)
    with monitor.step():
        schedule.step(x) if rank == 0 else schedule.step(target=torch.zeros(4, 2), losses=[])
    out["pipeline"] = list(monitor.failures)
    out["pipeline trained"] = all(p.grad is not None for p in stages[rank].parameters())
    with gradtrace.record(net := nn.Linear(4, 2)) as tape:
        loss = net(x).sum()
        if rank == 0:
            distributed.send(loss.detach(), 1)
        else:
            distributed.recv(torch.zeros(()), 0)
    out["sent"] = told(lambda: tape.trace(loss))
    from torch.distributed.fsdp import FullyShardedDataParallel

    flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # its own __init__ asks for a GPU
    nn.Module.__init__(flat)
    flat._fsdp_wrapped_module, flat.training_state = nn.Linear(4, 2), None  # type: ignore[assignment]
    out["flat"] = told(lambda: Tape(flat, (), {}))
    proved = WRAPPED["fsdp"]()
    words, targets = part(rank, ranks)
    with gradtrace.record(proved, examples=words) as tape:
        loss = loss_of(proved, words, targets)
    out["check"] = told(lambda: tape.trace(loss, check=True))
    out["failed"] = told(lambda: gradtrace.reduced(fails if rank == 1 else lambda: None))
    out["unlike"] = told(lambda: gradtrace.reduced(3 if rank else [1]))  # type: ignore[arg-type]
    return out


def fails() -> None:
    raise ValueError("no more memory")


def told(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def lost(rank: int, who: int, by: signal.Signals, timeout: float, late: int | None = None) -> dict[str, Any]:
    """Train alone beside others, of whom one is sent a signal in the middle of its second trace, and one is late."""
    net = model()
    monitor = Monitor(net, every=2, folder=None, timeout=timeout, paths=0, semirings=())
    find = monitor._trace

    def stop(*given: Any) -> Any:
        if monitor.traces and rank == who:
            os.kill(os.getpid(), by)
        if monitor.traces and rank == late:
            time.sleep(4)
        return find(*given)

    monitor._trace = stop  # type: ignore[method-assign]
    seconds, meet = [], monitor._ranks.gather

    def timed(*given: Any) -> Any:
        began = time.monotonic()
        try:
            return meet(*given)
        finally:
            seconds.append(time.monotonic() - began)

    monitor._ranks.gather = timed  # type: ignore[method-assign]
    for number in range(6):
        x, y = part(0, 1, number)
        with monitor.step(examples=x):
            loss = loss_of(net, x, y)
        loss.backward()
    out: dict[str, Any] = {"steps": number + 1, "seconds": max(seconds), "said": list(monitor.failures)}
    out["traces"] = [t["step"] for t in monitor.history().traces]
    began = time.monotonic()
    out["again"] = told(lambda: gradtrace.reduced(lambda: None, timeout=timeout))
    out["reduced"] = told(lambda: gradtrace.reduced(lambda: None, timeout=3)) if by is signal.SIGKILL else ""
    return out | {"seconds of reduced": time.monotonic() - began}


LOST: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "killed": lambda rank, ranks: lost(rank, ranks - 1, signal.SIGKILL, 20),
    "killed, another late": lambda rank, ranks: lost(rank, ranks - 1, signal.SIGKILL, 20, late=1),
    "stopped": lambda rank, ranks: lost(rank, ranks - 1, signal.SIGSTOP, 20),
    "the first stopped": lambda rank, ranks: lost(rank, 0, signal.SIGSTOP, 20),
}


def left(rank: int, ranks: int) -> dict[str, Any]:
    """Leave a step by an error that the program itself catches, on one rank."""
    net = model()
    monitor = Monitor(net, every=2, folder=None, paths=0, semirings=())
    for number in range(4):
        x, y = part(0, 1, number)
        try:
            with monitor.step(examples=x):
                loss = loss_of(net, x, y)
                if number == 0 and rank == 1:
                    raise ValueError("a bad example")
        except ValueError:
            continue
        loss.backward()
    return {"said": list(monitor.failures), "traces": [t["step"] for t in monitor.history().traces]}


def host(module: Any, name: str, rank: int, folder: Path, **given: Any) -> dict[str, Any]:
    """Train as a test of a trainer's callback does, with and without it."""
    plain, _ = module.trained(folder / f"{name} {rank}", None, max_steps=9, **given)
    watched, made = module.trained(folder / name, 4, max_steps=9, **given)
    called = made.callbacks if name == "lightning" else made.callback_handler.callbacks
    monitor = next(c for c in called if isinstance(c, module.TraceCallback)).monitor
    same = len(plain) == len(watched) and all(map(torch.equal, plain, watched))
    log = [] if name == "lightning" else made.state.log_history
    return {"same": same, "failures": monitor.failures, "traces": monitor.history().traces, "log": log}


def trainer(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    from monitor import test_trainer

    return host(test_trainer, "trainer", rank, folder, ddp_backend="gloo")


def lightning(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    from monitor import test_lightning

    return host(test_lightning, "lightning", rank, folder, devices=ranks, strategy="ddp")


CHECKS: dict[str, Callable[[int, int, Path], Any]] = {
    "tables": lambda rank, ranks, folder: tables(rank, ranks),
    "monitors": monitors,
    "budget": budget,
    "collectives": lambda rank, ranks, folder: collectives(rank, ranks),
    "refused": lambda rank, ranks, folder: refused(rank, ranks),
    "left": lambda rank, ranks, folder: left(rank, ranks),
    "trainer": trainer,
    "lightning": lightning,
    **{name: lambda rank, ranks, folder, what=what: what(rank, ranks) for name, what in LOST.items()},
}


def main() -> None:
    *names, folder = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    found = {name: CHECKS[name](rank, ranks, Path(folder)) for name in names}
    torch.save(found, Path(folder) / f"{rank}.pt")
    if LOST.keys() & {*names}:
        until = time.monotonic() + 20
        while rank == 0 and not (Path(folder) / "1.pt").exists() and time.monotonic() < until:
            time.sleep(0.1)  # it has the store
        os._exit(0)  # nobody is left to say goodbye to
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    assert issubclass(Model, nn.Module)
    main()
