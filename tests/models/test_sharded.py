"""Two processes with the network sharded (FSDP2) do what one does with all of it.

Each block is a group of its own, and so is the head. A matrix that embedding and head share must be
in one group with both of them, else FSDP2 refuses it.
"""

import pytest
import torch

from processes import together
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.padding import PaddingMasked
from sddlm.objectives import NELBO, SDDLM, SDDLMV1
from sddlm.objectives.negatives import UniformNegatives
from sddlm.rng import Draw

V, L, B, PROCESSES = 33, 8, 4, 2
OBJECTIVES = {
    "SDDLM": SDDLM,
    "V1": lambda: SDDLMV1(negatives=UniformNegatives("exact")),
    "NELBO": NELBO,
}


#: what is unusual of the network, beside: objective, whether a process has no row that counts
CASES = [
    *((name, "", empty) for name in OBJECTIVES for empty in (False, True)),
    ("SDDLM", "tie_embeddings", False),
    ("SDDLM", "tie_embeddings", True),
    ("SDDLM", "llama", False),
    ("SDDLM", "padding", False),
]
ATTEND = torch.arange(L) < torch.tensor([L, 3, 5, 1])[:, None]


def network(kind: str) -> DiT:
    config = DiTConfig(
        vocab_size=V, length=L, width=16, heads=2, blocks=2,
        tie_embeddings=kind == "tie_embeddings", gate_init=0.0 if kind == "llama" else 1.0,
        head_init=0.0 if kind == "tie_embeddings" else 0.5,
        architecture="llama" if kind == "llama" else "dit",
    )  # fmt: skip
    return DiT(config, seed=1)


def loss_of(name: str, kind: str, empty: bool, model: DiT, rank: int) -> torch.Tensor:
    """The second process has no row that counts, if ``empty``."""
    x0, draw = batch(rank)
    counted = torch.full((B, L), not (empty and rank == 1))
    if kind == "padding":
        return OBJECTIVES[name]().loss(PaddingMasked(model, ATTEND), x0, draw, ATTEND).total
    return OBJECTIVES[name]().loss(model, x0, draw, counted).total


def batch(rank: int):
    x0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(rank))
    return x0, Draw(3, 0, rank * B + torch.arange(B), PROCESSES * B)


def work(rank: int, where: str) -> None:
    """What each process does; its losses and the gathered gradients go to a file."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    store = f"file://{where}/meeting"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    results = {}
    for name, kind, empty in CASES:
        model = network(kind)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(
            [model.embedding, model.head] if kind == "tie_embeddings" else model.head, mesh=mesh
        )
        fully_shard(model, mesh=mesh)
        loss = loss_of(name, kind, empty, model, rank)
        loss.backward()
        grads = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        results[name, kind, empty] = (loss.detach(), grads)
    torch.save(results, f"{where}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    where = tmp_path_factory.mktemp("sharded")
    together(work, *((rank, str(where)) for rank in range(PROCESSES)))
    return [torch.load(where / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "empty"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_network(name, kind, empty, sharded):
    """``empty``: one process has no row that counts; it must not leave the other waiting."""
    model = network(kind)
    for rank in range(PROCESSES):
        loss = loss_of(name, kind, empty, model, rank)
        (loss / PROCESSES).backward()  # FSDP2 averages over processes
        torch.testing.assert_close(sharded[rank][name, kind, empty][0], loss.detach())
    for rank in range(PROCESSES):
        grads = sharded[rank][name, kind, empty][1]
        for parameter, whole in model.named_parameters():
            error = (grads[parameter] - whole.grad).norm()
            assert error <= 1e-5 * whole.grad.norm() + 1e-7, (rank, parameter, error)
