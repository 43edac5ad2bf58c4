"""RLFN's contrastive loss: a case by hand, gradients, and that its random weights are nobody else's business."""

import pytest
import torch
import torch.nn.functional as F

import spinsr.archs  # noqa: F401

# isort: split
from spinsr.losses.contrastive_loss import ContrastiveLoss


def images(batch=2, scale=2, side=6, dtype=torch.float32):
    lq = torch.rand(batch, 3, side, side, dtype=dtype)
    pred, target = torch.rand(2, batch, 3, scale * side, scale * side, dtype=dtype)
    return pred, target, lq


def test_a_case_by_hand():
    """One feature that is tanh of the first channel, times 2, plus 5: of flat images everything is known."""
    loss = ContrastiveLoss(loss_weight=3.0, num_feat=1)
    for buffer in loss.buffers():
        buffer.zero_()
    loss.first_weight[0, 0, 1, 1] = 1
    loss.second_weight[0, 0, 1, 1] = 2
    loss.second_bias[0] = 5
    pred, target, lq = (torch.full((1, 3, n, n), value) for n, value in ((4, 0.5), (4, 0.75), (2, 0.25)))
    p, t, n = torch.tensor([0.5, 0.75, 0.25]).tanh().tolist()
    assert loss(pred, target, lq).item() == pytest.approx(3 * (t - p) / (p - n), rel=1e-5)


def test_target_itself_has_no_loss_and_the_bicubic_image_a_finite_one():
    loss, (_, target, lq) = ContrastiveLoss(), images()
    assert loss(target, target, lq) == 0
    blurred = F.interpolate(lq, scale_factor=2, mode='bicubic', antialias=True)
    assert loss(blurred, target, lq).isfinite()
    assert loss(blurred, target, lq) > 1e3


def test_upscaled_image_is_matlab_s_bicubic():
    """Keys' kernel with a = -0.5 is exact for a parabola, the one of torch's default, a = -0.75, is not."""
    rows = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 3, 12, 12)
    lq, fine = (rows / 12) ** 2, (((torch.arange(24.0) - 0.5) / 24) ** 2).view(1, 1, 24, 1).expand(1, 3, 24, 24)
    seen = []
    loss = ContrastiveLoss()
    loss.features = lambda x: seen.append(x) or x
    loss(fine, fine, lq)
    torch.testing.assert_close(seen[1][:, :, 6:18], fine[:, :, 6:18], rtol=0, atol=1e-5)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_gradients(scale):
    loss = ContrastiveLoss(num_feat=3).double()
    pred, target, lq = images(batch=2, scale=scale, side=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, lq), pred.requires_grad_())


def test_gradient_reaches_the_result_alone():
    pred, target, lq = (x.requires_grad_() for x in images())
    ContrastiveLoss()(pred, target, lq).backward()
    assert pred.grad.abs().sum() > 0
    assert target.grad is None and lq.grad is None


def test_loss_of_a_batch_is_the_mean_of_its_images():
    loss, batch = ContrastiveLoss(), images(batch=3)
    singles = torch.stack([loss(*one) for one in zip(*(x.split(1) for x in batch), strict=True)])
    torch.testing.assert_close(loss(*batch), singles.mean())
    assert singles.std() > 1e-4


def test_weights_are_those_of_the_seed_and_leave_the_random_numbers_alone():
    before = torch.get_rng_state()
    one, same, other = ContrastiveLoss(), ContrastiveLoss(), ContrastiveLoss(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    torch.testing.assert_close(dict(ContrastiveLoss().named_buffers()), dict(one.named_buffers()), rtol=0, atol=0)
    assert torch.equal(one.second_weight, same.second_weight)
    assert not torch.equal(one.second_weight, other.second_weight)
    assert list(one.parameters()) == []
    assert one.first_weight[0, 0, 0, 0].item() == pytest.approx((2 * 0.49625658988952637 - 1) / 27**0.5)


def test_weights_fill_the_range_of_a_convolution():
    loss = ContrastiveLoss()
    assert 0.9 / 27**0.5 < loss.first_weight.abs().max() <= 1 / 27**0.5
    assert 0.9 / 576**0.5 < loss.second_weight.abs().max() <= 1 / 576**0.5
    assert loss.first_weight.mean().abs() < 0.02


def test_no_feature_is_refused():
    with pytest.raises(ValueError, match='num_feat=0'):
        ContrastiveLoss(num_feat=0)
