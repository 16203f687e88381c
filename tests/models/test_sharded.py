"""Two processes with the network sharded (FSDP2) do what one does with all of it.

Each block is a group of its own, and so is the head. A matrix that embedding and head share must be
in one group with both of them, else FSDP2 refuses it.
"""

import os
import subprocess
import sys

import pytest
import torch

from sddlm.draw import Draw
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import NELBO, SDDLM, SDDLMV1
from sddlm.objectives.negatives import UniformNegatives

V, L, B, PROCESSES = 33, 8, 4, 2
OBJECTIVES = {
    "SDDLM": SDDLM,
    "V1": lambda: SDDLMV1(negatives=UniformNegatives("exact")),
    "NELBO": NELBO,
}


CASES = [
    *((name, False, empty) for name in OBJECTIVES for empty in (False, True)),
    ("SDDLM", True, False),
    ("SDDLM", True, True),
]


def network(tie: bool) -> DiT:
    config = DiTConfig(
        vocab_size=V, length=L, width=16, heads=2, blocks=2, cond_dim=8, gate_init=1.0, tie=tie,
        head_init=0.0 if tie else 0.5,
    )  # fmt: skip
    return DiT(config, seed=1)


def batch(rank: int):
    x0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(rank))
    return x0, Draw(3, 0, rank * B + torch.arange(B), PROCESSES * B)


def counted(rank: int, empty: bool) -> torch.Tensor:
    """The second process has no row that counts, if ``empty``."""
    return torch.full((B, L), not (empty and rank == 1))


def work(rank: int, where: str) -> None:
    """What each process does; its losses and the gathered gradients go to a file."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    store = f"file://{where}/meeting"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    results = {}
    for name, tie, empty in CASES:
        model = network(tie)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard([model.embedding, model.head] if tie else model.head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        x0, draw = batch(rank)
        loss = OBJECTIVES[name]().loss(model, x0, draw, counted(rank, empty))
        loss.total.backward()
        grads = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        results[name, tie, empty] = (loss.total.detach(), grads)
    torch.save(results, f"{where}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    where = tmp_path_factory.mktemp("sharded")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(where)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    return [torch.load(where / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize(("name", "tie", "empty"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_network(name, tie, empty, sharded):
    """``empty``: one process has no row that counts; it must not leave the other waiting."""
    model = network(tie)
    for rank in range(PROCESSES):
        x0, draw = batch(rank)
        loss = OBJECTIVES[name]().loss(model, x0, draw, counted(rank, empty))
        (loss.total / PROCESSES).backward()  # FSDP2 averages over processes
        torch.testing.assert_close(sharded[rank][name, tie, empty][0], loss.total.detach())
    for rank in range(PROCESSES):
        grads = sharded[rank][name, tie, empty][1]
        for parameter, whole in model.named_parameters():
            error = (grads[parameter] - whole.grad).norm()
            assert error <= 1e-5 * whole.grad.norm() + 1e-7, (rank, parameter, error)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
