"""Several processes: torch.distributed started as torchrun expects, on GPUs (NCCL) or on the CPU (gloo).

Importing this module does not import torch, so mistakes in the flags show at once.
"""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Any

from spinsr.utils.errors import OptionError

if TYPE_CHECKING:
    import torch

# The first process validates alone, and the others wait; torch gives up after 10 minutes. torchrun ends them at once
# when one dies.
_TIMEOUT = datetime.timedelta(hours=12)


def init_process(launcher: str, num_gpu: int | str, **params: Any) -> None:
    """Joins the processes of a launcher; replaces BasicSR's init_dist.

    BasicSR takes NCCL whatever there is, divides by the number of GPUs, and chooses the GPU by the global rank, which
    is another GPU's on the second machine.

    Args:
        launcher: 'pytorch' (torchrun) or 'slurm'.
        num_gpu: The option: 0 takes the CPU where there is a GPU too.
        params: `backend`, `port`, as BasicSR passes them for slurm.

    Raises:
        OptionError: The launcher's variables are not there, or there are fewer GPUs than processes on this machine.
    """
    import torch

    on_gpu = torch.cuda.is_available() and num_gpu != 0
    if launcher == 'slurm':
        from basicsr.utils.dist_util import init_dist

        init_dist(launcher, **params)
        return
    missing = [name for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR') if name not in os.environ]
    if missing:
        raise OptionError(
            f'--launcher pytorch: {missing[0]} is not set; start with: torchrun --nproc_per_node=N -m spinsr.train …'
        )
    if on_gpu:
        local, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local >= count:
            raise OptionError(f'--nproc_per_node must be at most the number of GPUs, {count}, got process {local + 1}')
        torch.cuda.set_device(local)
    # After a restart torchrun's store still has the addresses of the processes that have gone, and torch does not keep
    # the attempts apart (torch 2.15).
    distributed: Any = torch.distributed  # whose annotations hide the two names
    store, rank, size = next(distributed.rendezvous('env://'))
    store = distributed.PrefixStore(f'attempt_{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
    backend = 'nccl' if on_gpu else 'gloo'
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=size)


def require_launcher(launcher: str) -> None:
    """Refuses several processes of torchrun that do not know of each other: all would write the same files.

    Args:
        launcher: The flag.

    Raises:
        OptionError: torchrun started several processes, and the flag says that there is one.
    """
    processes = int(os.environ.get('WORLD_SIZE', 1)) if 'TORCHELASTIC_RUN_ID' in os.environ else 1
    if launcher == 'none' and processes > 1:
        raise OptionError(f'torchrun started {processes} processes: add --launcher pytorch')


def leave() -> None:
    """Ends what `init_process` began, after work that went well; torchrun ends the processes of one that did not."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_lost_peer(error: Exception) -> bool:
    """Whether an error only says that another process of the training has gone."""
    import torch

    return isinstance(error, torch.distributed.DistBackendError) or 'gloo/transport' in str(error)


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or the first of several."""
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def from_main(value: Any) -> Any:
    """The first process's value, in all processes.

    Args:
        value: Anything that can be pickled.
    """
    import torch

    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_true(flag: torch.Tensor) -> bool:
    """Whether a flag is true in all processes.

    Args:
        flag: A bool of shape ().
    """
    import torch

    if torch.distributed.is_initialized():
        flag = flag.to(torch.int32)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def largest(value: int) -> int:
    """The largest of the values that the processes have.

    Args:
        value: That of this process.
    """
    import torch

    if not torch.distributed.is_initialized():
        return value
    device = 'cuda' if 'nccl' in torch.distributed.get_backend() else 'cpu'
    values = torch.tensor(value, device=device)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return int(values)
