"""The epochs of a training: as many as total_iter needs, on one device, on several, and after a resume."""

import logging

import pytest
from torch.utils.data import DataLoader

import spinsr.archs  # noqa: F401

# isort: split
from spinsr.training import loader
from spinsr.utils.errors import OptionError


class Images(list):
    """A data set: what BasicSR's build_dataset would return."""

    opt = {'name': 'images'}


@pytest.fixture
def build(monkeypatch):
    """Builds the loaders for a number of images."""

    def make(images, *, batch=2, total=10, num_gpu=0, world_size=1, ratio=None, state=None, **dataset):
        monkeypatch.setattr(loader, 'build_dataset', lambda opt: Images(range(images)))
        train = {
            'name': 'images',
            'phase': 'train',
            'batch_size_per_gpu': batch,
            'num_worker_per_gpu': 0,
            'dataset_enlarge_ratio': ratio,
            **dataset,
        }
        validation = {'name': 'images', 'phase': 'val'}
        opt = {
            'datasets': {'train': train, 'val_1': validation, 'val_2': validation},
            'train': {'total_iter': total},
            'num_gpu': num_gpu,
            'dist': world_size > 1,
            'world_size': world_size,
            'rank': 0,
            'manual_seed': 0,
        }
        return opt, loader.create_train_val_dataloader(opt, logging.getLogger('test'), state)

    return make


def steps(train_loader, last_epoch, start=0):
    """How many iterations BasicSR's loop has from the first epoch to the last."""
    return len(train_loader) * (last_epoch + 1 - start)


@pytest.mark.parametrize(
    'case',
    [
        pytest.param({'images': 5, 'batch': 2, 'total': 21}, id='last-batch-dropped'),
        pytest.param({'images': 3, 'batch': 4, 'total': 250}, id='fewer-images-than-a-batch'),
        pytest.param({'images': 4, 'batch': 2, 'total': 10}, id='whole-epochs'),
        pytest.param({'images': 9, 'batch': 2, 'total': 11, 'num_gpu': 4}, id='data-parallel'),
        pytest.param({'images': 9, 'batch': 2, 'total': 11, 'world_size': 4}, id='distributed'),
        pytest.param({'images': 2, 'batch': 2, 'total': 7, 'world_size': 4}, id='distributed-small'),
        pytest.param({'images': 5, 'batch': 2, 'total': 21, 'ratio': 3}, id='enlarged'),
    ],
)
def test_enough_iterations_and_no_epoch_too_many(build, case):
    _, (train_loader, _, _, last_epoch, total) = build(**case)
    assert total == case['total']
    assert 0 <= steps(train_loader, last_epoch) - total < len(train_loader)


@pytest.mark.parametrize(
    ('state', 'first'),
    [
        pytest.param({'epoch': 24, 'iter': 50}, 2, id='of-basicsr'),
        pytest.param({'epoch': 24, 'iter': 50, 'samples': 0}, 2, id='at-the-start'),
        pytest.param({'epoch': 24, 'iter': 49, 'samples': 2}, 1, id='in-the-middle'),
        pytest.param({'epoch': 24, 'iter': 50, 'samples': 4}, 0, id='at-the-end'),
        pytest.param({'epoch': 0, 'iter': 9, 'samples': 9}, 0, id='batch-was-smaller'),
    ],
)
def test_resume_counts_what_is_left(build, state, first):
    _, (train_loader, sampler, _, last_epoch, total) = build(5, total=101, state=state)
    assert len(list(sampler)) == first * train_loader.batch_size
    done = first + steps(train_loader, last_epoch, state['epoch'] + 1)
    assert 0 <= done - (total - state['iter']) < len(train_loader)


@pytest.mark.parametrize('done', [10, 11], ids=['at-the-end', 'beyond'])
def test_nothing_is_left(build, done):
    _, (_, _, _, last_epoch, _) = build(5, total=10, state={'epoch': 7, 'iter': done})
    assert list(range(7, last_epoch + 1)) == []


@pytest.mark.parametrize(
    ('case', 'ratio'),
    [
        pytest.param({'images': 5}, 1, id='enough'),
        pytest.param({'images': 2}, 1, id='one-batch'),
        pytest.param({'images': 1, 'ratio': 2}, 2, id='asked-for'),
        pytest.param({'images': 1}, 200, id='too-few'),
        pytest.param({'images': 5, 'num_gpu': 4}, 160, id='too-few-for-four-gpus'),
        pytest.param({'images': 4, 'world_size': 4}, 200, id='too-few-for-four-processes'),
    ],
)
def test_enlarged_where_less_than_a_batch(build, caplog, case, ratio):
    caplog.set_level(logging.INFO)
    _, (_, sampler, _, _, _) = build(**case)
    assert sampler.total == ratio * case['images']
    assert caplog.text.count('fewer than a batch') == (ratio > 2)


def test_every_validation_set_gets_a_loader(build):
    _, (_, _, val_loaders, _, _) = build(4)
    assert [len(val_loader) for val_loader in val_loaders] == [4, 4]


def test_an_empty_set_is_an_error(build):
    with pytest.raises(OptionError, match='datasets:train: no image found in hr'):
        build(0, dataroot_gt='hr')


def test_cuda_prefetch_is_dropped_on_the_cpu(build):
    opt, (train_loader, _, _, _, _) = build(4, prefetch_mode='cuda', pin_memory=True)
    assert opt['datasets']['train']['prefetch_mode'] is None
    assert not train_loader.pin_memory


def test_cpu_prefetch_is_dropped_because_it_hides_errors(build):
    opt, (train_loader, _, _, _, _) = build(4, prefetch_mode='cpu')
    assert opt['datasets']['train']['prefetch_mode'] is None
    assert type(train_loader) is DataLoader
