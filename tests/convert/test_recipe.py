"""A recipe: which changes apply to which option file, and what it refuses."""

import pytest

from spinsr.convert.recipe import Recipe, Start, adam, adamw, cosine, halved_every, l1, mse, multistep

PLAIN = {'about': 'Ours.', 'patch': 48, 'batch': 16, 'optim_g': adam(2e-4), 'scheduler': multistep(5), 'total_iter': 10}


def test_changes_apply_in_the_order_configuration_scale_stage():
    recipe = Recipe(
        **PLAIN,
        by_configuration={'BIG': {'batch': 1, 'total_iter': 1, 'warmup_iter': 1}},
        by_scale={3: {'total_iter': 2, 'warmup_iter': 2}},
        stages={'tune': {'warmup_iter': 3}},
    )
    changed = recipe.at(3, 'BIG', 'tune')
    assert (changed.batch, changed.total_iter, changed.warmup_iter) == (1, 2, 3)
    assert recipe.at(2, 'SMALL') == recipe


def test_a_change_adds_losses_and_comments_and_replaces_the_optimizer():
    stage = {'losses': {'fft_opt': l1(0.1)}, 'comments': {'lr': 'low'}, 'optim_g': adamw(1e-5)}
    recipe = Recipe(**PLAIN, comments={'lr': 'high', 'batch': 'large'}, stages={'tune': stage}).at(2, stage='tune')
    assert recipe.losses == {'pixel_opt': l1(), 'fft_opt': l1(0.1)}
    assert recipe.comments == {'lr': 'low', 'batch': 'large'}
    assert recipe.optim_g == {'type': 'AdamW', 'lr': 1e-5, 'weight_decay': 1e-4, 'betas': (0.9, 0.999)}


def test_one_kind_of_patch_replaces_the_other():
    recipe = Recipe(**PLAIN, by_scale={3: {'hr_patch': 256}})
    assert [recipe.at(scale).gt_size(scale) for scale in (2, 3, 4)] == [96, 255, 192]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'patch': None}, 'exactly one of patch and hr_patch'),
        ({'hr_patch': 96}, 'exactly one of patch and hr_patch'),
        ({'by_scale': {3: {'learning_rate': 1}}}, r"by_scale\[3\] must have .* got \['learning_rate'\]"),
        ({'stages': {'tune': {'stages': {}}}}, r"stages\['tune'\] must have .* got \['stages'\]"),
    ],
    ids=['no-patch', 'two-patches', 'misspelt', 'nested'],
)
def test_a_mistake_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**{**PLAIN, **changes})


def test_an_unknown_scale_or_stage_is_refused():
    recipe = Recipe(**PLAIN, stages={'tune': {'start': Start()}})
    with pytest.raises(ValueError, match='scale must be one of 2, 3, 4, got 8'):
        recipe.at(8)
    with pytest.raises(ValueError, match="stage must be one of tune, got 'tone'"):
        recipe.at(2, stage='tone')


def test_sections_of_schedules_and_losses():
    assert halved_every(200, 1000)['milestones'] == (200, 400, 600, 800)
    assert cosine(6, 4, eta_min=1e-7) == {
        'type': 'CosineAnnealingRestartLR',
        'periods': (6, 4),
        'restart_weights': (1, 1),
        'eta_min': 1e-7,
    }
    assert mse(2.0) == {'type': 'MSELoss', 'loss_weight': 2.0, 'reduction': 'mean'}
