"""Training: `python -m spinsr.train -opt FILE`, BasicSR's train_pipeline with some of its functions replaced.

The options are read and checked by spinsr.launch (BasicSR seeds before --force_yml), the newest whole checkpoint is
resumed on any device, the data loaders make training run exactly total_iter iterations and enter an epoch where it was
left, and every iteration seeds the generators by its number. SIGTERM and `train: time_limit` end a run after an
iteration, with a checkpoint. The loop is BasicSR's.
"""

import argparse
import contextlib
import functools
import importlib
import io
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spinsr.training import time_limit
from spinsr.utils import memory

if __name__ == '__main__':
    time_limit.end_at_sigterm('spinsr.train')  # the imports below take seconds
    time_limit.end_at_ctrl_c('spinsr.train')
    try:
        memory.require_for_torch()
    except MemoryError as error:
        sys.exit(f'spinsr.train: error: {error}')

from spinsr import compat
from spinsr.check import targets
from spinsr.launch import launch, locked
from spinsr.training import checkpoints, distributed, progress_bar
from spinsr.utils.errors import OptionError, TrainingError
from spinsr.utils.patching import replaced

# The seeds of samples are mixed of (seed, epoch, position); as a fourth number it keeps those of the network apart.
_OF_NETWORK = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; writes ./experiments and ./tb_logger. Returns the exit status.

    Args:
        argv: The flags; by default those of the process, whose start is then the start of `train: time_limit`.
    """
    time_limit.obey_ctrl_c()
    with time_limit.Stop(program=argv is None) as stop:
        try:
            return launch('spinsr.train', functools.partial(_train, stop), argv, is_train=True)
        except time_limit.Stopped:
            sys.stderr.write(f'spinsr.train: {time_limit.NOTHING}\n')
            return 0


def _train(stop: time_limit.Stop, opt: dict[str, Any], args: argparse.Namespace) -> None:
    # `import basicsr.train` would do, but BasicSR's `from .train import *` fills the package with names.
    train = importlib.import_module('basicsr.train')
    run = _Run(opt, train, stop)
    with (
        locked(opt['path']['experiments_root']),
        progress_bar.headers_to_file(train),
        replaced(
            train,
            parse_options=lambda root_path, is_train: (opt, args),
            load_resume_state=run.load_resume_state,
            make_exp_dirs=_make_exp_dirs,
            mkdir_and_rename=_make_empty,
            copy_opt_file=functools.partial(_copy_opt_file, train.copy_opt_file, args.opt_text),
            create_train_val_dataloader=run.create_train_val_dataloader,
            build_model=run.build_model,
            MessageLogger=run.message_logger,
            CPUPrefetcher=run.cpu_prefetcher,
            CUDAPrefetcher=run.cuda_prefetcher,
        ),
    ):
        try:
            train.train_pipeline(str(Path.cwd()))
            run.finish()
        except time_limit.Stopped:
            run.stop_early()
        finally:
            run.close()


_REPLACED = ('build_model', 'MessageLogger', 'CPUPrefetcher', 'CUDAPrefetcher')


class _Run:
    """One run of BasicSR's loop: the state that the functions that replace BasicSR's share."""

    def __init__(self, opt: dict[str, Any], train: Any, stop: time_limit.Stop) -> None:
        self.opt = opt
        self.stop = stop
        try:
            stop.limit = time_limit.seconds(opt['train'].get('time_limit'))
        except ValueError as error:
            raise OptionError(f'train:time_limit {error}') from error
        self._basicsr = {name: getattr(train, name) for name in _REPLACED}
        self.state: Mapping[str, Any] | None = None
        self.notes: list[str] = []
        self.progress: Any = None
        self.logger: Any = None
        self.tb_logger: Any = None
        # The last iteration of this run and its epoch, and the iteration of the last checkpoint.
        self.reached: tuple[int, int] | None = None
        self.saved: int | None = None
        self.validating = self.cut = False
        # The validations that are done: data set and iteration.
        self.validated: set[tuple[int, int]] = set()

    def load_resume_state(self, opt: dict[str, Any]) -> Mapping[str, Any] | None:
        path, self.notes = distributed.from_main(find_state(opt) if distributed.is_main() else None)
        opt['manual_seed'] = distributed.from_main(opt['manual_seed'])
        if path is None:
            return None
        from basicsr.utils import check_resume

        models = path.parent.parent / 'models'
        self.state = checkpoints.read_state(path, models)
        self.saved = self.state['iter']
        opt['path']['resume_state'] = str(path)
        with contextlib.redirect_stdout(io.StringIO()):  # the log says what is loaded
            check_resume(opt, self.state['iter'])
        # A state of another experiment goes with the networks beside it, not with this experiment's.
        for key, value in opt['path'].items():
            if key.startswith('pretrain_network') and value and Path(value).parent == Path(opt['path']['models']):
                opt['path'][key] = str(models / Path(value).name)
        # The order of the samples is that of the seed with which training began.
        opt['manual_seed'] = self.state.get('seed', opt['manual_seed'])
        if distributed.is_main():
            _make_folders(opt)
        return self.state

    def create_train_val_dataloader(self, opt: dict[str, Any], logger: Any) -> tuple:
        from spinsr.training import loader

        for note in self.notes:
            logger.warning(note)
        result = loader.create_train_val_dataloader(opt, logger, self.state)
        self.sampler, self.val_loaders = result[1:3]
        for val_loader in self.val_loaders:
            targets.require(val_loader.dataset, opt)
        self.logger = logger
        self.stop.end_if_asked()
        return result

    def build_model(self, opt: dict[str, Any]) -> Any:
        self.model = model = self._basicsr['build_model'](opt)
        optimize_parameters = model.optimize_parameters
        if distributed.is_main():
            checkpoints.remove_parts(opt['path']['models'], opt['path']['training_states'])
        epoch, batches = None, 0

        def optimize(current_iter: int) -> None:
            nonlocal epoch, batches
            self.stop.iterating()
            # Whatever a network or a loss draws depends on the iteration alone, so a resumed training draws the same.
            _seed(opt['manual_seed'], opt['rank'], current_iter, _OF_NETWORK)
            optimize_parameters(current_iter)
            batches = batches + 1 if epoch == self.sampler.epoch else 1
            epoch = self.sampler.epoch
            samples = self.sampler.start + batches * self.sampler.batch * self.sampler.num_replicas
            model.place = {'samples': samples}
            self.reached = epoch, current_iter
            self.stop.iterated()
            self.progress.step(model.log_dict, model.get_current_learning_rate()[0])

        model.optimize_parameters = optimize
        self._let_end(model)
        self.stop.expect_checkpoint(model.optimizers)
        self.stop.end_if_asked()
        return model

    def _let_end(self, model: Any) -> None:
        """Lets a validation end in the middle, and notes what has been saved."""
        save, validation, test = model.save, model.validation, getattr(model, 'test', None)
        longest = 0.0

        def save_and_note(epoch: int, current_iter: int) -> None:
            begin = time.monotonic()
            save(epoch, current_iter)
            if current_iter != -1:
                self.stop.writing = time.monotonic() - begin
                self.saved = current_iter

        def validate(dataloader: Any, current_iter: int, *args: Any, **keywords: Any) -> None:
            nonlocal longest
            longest = 0.0
            # BasicSR validates after the last iteration even if that was validated by val_freq.
            done = id(dataloader), min(current_iter, int(self.opt['train']['total_iter']))
            if done in self.validated:
                return
            self.cut = self.cut or self.stop.asked()
            if self.cut:
                return
            self.validating = True
            try:
                validation(dataloader, current_iter, *args, **keywords)
                self.validated.add(done)
            except time_limit.Stopped:
                self.cut = True
            finally:
                self.validating = False

        def test_image(*args: Any, **keywords: Any) -> Any:
            nonlocal longest
            assert test is not None
            if not self.validating:
                return test(*args, **keywords)
            begin = time.monotonic()
            with self.stop.validating(longest):
                result = test(*args, **keywords)
            longest = max(longest, time.monotonic() - begin)
            return result

        model.save, model.validation = save_and_note, validate
        if test is not None:
            model.test = test_image

    def message_logger(self, opt: dict[str, Any], start_iter: int, tb_logger: Any) -> Any:
        from spinsr.training.progress_bar import Progress

        self.tb_logger = tb_logger
        self._validate_missed(start_iter, tb_logger)
        self.stop.end_if_asked()
        shown = None if distributed.is_main() else False
        self.progress = Progress(int(opt['train']['total_iter']), start_iter, opt['name'], shown)
        messages = self._basicsr['MessageLogger'](opt, start_iter, tb_logger)
        # It counts one iteration too few for the eta, which is negative at the end.
        messages.max_iters = int(messages.max_iters) + 1
        return messages

    def cpu_prefetcher(self, loader: Any) -> Any:
        return _Prefetcher(self, self._basicsr['CPUPrefetcher'](time_limit.Unterminated(loader, self.stop)))

    def cuda_prefetcher(self, loader: Any, opt: dict[str, Any]) -> Any:
        return _Prefetcher(self, self._basicsr['CUDAPrefetcher'](time_limit.Unterminated(loader, self.stop), opt))

    def is_complete(self) -> bool:
        """Whether the last iteration is done; its validation may be left."""
        return self.reached is not None and self.reached[1] >= int(self.opt['train']['total_iter'])

    def _validate_missed(self, start_iter: int, tb_logger: Any) -> None:
        """BasicSR validates after it has saved: a training that was killed in between has not validated yet."""
        val = self.opt.get('val')
        if self.state is not None and val is not None and start_iter % val['val_freq'] == 0:
            for val_loader in self.val_loaders:
                self.model.validation(val_loader, start_iter, tb_logger, val['save_img'])

    def finish(self) -> None:
        from spinsr.training.progress_bar import summary

        self.close()
        for line in summary(self.opt, self.model):
            self.logger.info(line)
        if self.cut:
            self._save()
            self.logger.info(f'{self.stop.cause}: the last validation is left out. To do it: {_command()}')

    def stop_early(self) -> None:
        """After a stop within BasicSR's loop: writes a checkpoint, and says how to continue."""
        self.close()
        if self.tb_logger:
            self.tb_logger.close()
        if self.reached is None:
            if self.logger is None:
                raise time_limit.Stopped
            self.logger.info(time_limit.NOTHING)
            return
        self._save()
        iteration, total = self.reached[1], int(self.opt['train']['total_iter'])
        self.logger.info(f'{self.stop.cause}: training stops after iteration {iteration:,d} of {total:,d}.')
        self.logger.info(f'The checkpoint is in {self.opt["path"]["experiments_root"]}. To continue: {_command()}')

    def _save(self) -> None:
        if self.reached is not None and self.saved != self.reached[1]:
            self.model.save(*self.reached)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


class _Prefetcher:
    """A prefetcher of BasicSR, which its loop asks between two iterations."""

    def __init__(self, run: _Run, prefetcher: Any) -> None:
        self.run, self.prefetcher = run, prefetcher

    def next(self) -> Any:
        if self.run.is_complete():
            return None
        self.run.stop.end_if_asked()
        with self.run.stop.waiting():
            try:
                return self.prefetcher.next()
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # A worker that dies after it has announced a batch, before this process has taken over its memory:
                # torch notices only that its socket, a file, refuses, ends or is gone.
                raise TrainingError(
                    'a data loader worker has died; it may have been killed for lack of memory'
                ) from error

    def reset(self) -> None:
        if self.run.is_complete():
            return
        with self.run.stop.uninterrupted():
            self.prefetcher.loader = None  # ends its workers
        self.prefetcher.reset()


def _command() -> str:
    """The command that continues this training; spinsr.launch has put the command of this run into sys.argv."""
    program, *flags = sys.argv
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        program = f'torchrun --nproc_per_node={os.environ["LOCAL_WORLD_SIZE"]} -m spinsr.train'
        if int(os.environ['GROUP_WORLD_SIZE']) > 1:
            program = 'torchrun on each machine as before, -m spinsr.train'
    flags += [] if '--auto_resume' in flags else ['--auto_resume']
    return f'{program} {shlex.join(flags)}'


def find_state(opt: Mapping[str, Any]) -> tuple[Path | None, list[str]]:
    """Finds the training state to resume from, and what the log should say about it.

    Args:
        opt: BasicSR's options: with `auto_resume` the newest usable checkpoint, else `path: resume_state`.

    Raises:
        CheckpointError: `path: resume_state` is damaged.
    """
    if not opt['auto_resume']:
        path = opt['path'].get('resume_state')
        return (Path(path), []) if path else (None, [])
    path, damaged = checkpoints.newest(opt['path']['training_states'], opt['path']['models'])
    notes = [f'{line}; the file is kept, and not used.' for line in damaged]
    if damaged:
        notes.append(f'Resuming from {path}.' if path else 'No checkpoint is usable: training starts from scratch.')
    return path, notes


def _seed(*numbers: int) -> None:
    import numpy as np
    import torch

    from spinsr.training.sampling import mixed_seed

    seed = mixed_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _make_exp_dirs(opt: Mapping[str, Any]) -> None:
    """The folders of a new experiment; an older one of its name is moved aside."""
    if distributed.is_main():
        _make_empty(opt['path']['experiments_root'])
        _make_folders(opt)


def _make_folders(opt: Mapping[str, Any]) -> None:
    for key in ('models', 'training_states', 'visualization'):
        os.makedirs(opt['path'][key], exist_ok=True)


def _make_empty(path: str) -> None:
    """Makes an empty folder; an existing one is renamed first. BasicSR's names clash within a second."""
    from basicsr.utils import get_time_str

    if not distributed.is_main():
        return
    if os.path.exists(path):
        stem = f'{path}_archived_{get_time_str()}'
        number, target = 1, stem
        while os.path.exists(target):
            number += 1
            target = f'{stem}_{number}'
        os.rename(path, target)
    os.makedirs(path)


def _copy_opt_file(copy: Callable[[str, str], None], text: str | None, name: str, folder: str) -> None:
    """BasicSR's copy of the option file into the folder of the experiment; `text` is that of a generated one."""
    if text is None:
        copy(name, folder)
        return
    with tempfile.TemporaryDirectory() as written:
        path = Path(written, name)
        # BasicSR reads it in the encoding of the locale.
        path.write_text(text, encoding='ascii', errors='backslashreplace')
        copy(str(path), folder)


# A worker process that is spawned, not forked, imports this module first and unpickles BasicSR's classes then.
if __name__ == '__mp_main__':
    compat.install()

if __name__ == '__main__':
    sys.exit(main())
