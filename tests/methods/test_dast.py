"""DAST: who teaches which decoder, the queue, and the loss in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from tests_toys import toy_batch, toy_network

from maskmend import networks
from maskmend.errors import UsageError
from maskmend.methods import dast
from maskmend.methods.dast import Dast


def half_trusted() -> dict:
    batch = toy_batch()
    batch["trusted"][:2] = True
    batch["label"][3] = (batch["label"][3] + 1) % 3
    batch["image"][2:] += 0.3 * torch.randn(
        batch["image"][2:].shape, generator=torch.Generator().manual_seed(1)
    )
    return batch


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_ce_dice(logits, target, weight):
    p = softmax(logits)
    ce = (-(target * np.log(p)).sum(1) * weight).sum() / max(weight.sum(), 1e-5)
    dice = [
        (2 * (p[:, c] * target[:, c] * weight).sum() + 1e-5) / (((p + target)[:, c] * weight).sum() + 1e-5)
        for c in (1, 2)
    ]
    return ce + 1 - np.mean(dice)


def test_the_loss_with_one_worst_and_one_best_image():
    torch.manual_seed(0)
    method, batch = Dast(toy_network, consistency=2.0, refined_weight=0.5, queue=4), half_trusted()
    method.eval()
    with torch.no_grad():
        one, two = method.student(batch["image"]), method.noisy_branch(batch["image"])
        scores = dast.divergence(one, two, batch["valid"])
        middle = scores[2:].mean()
        method.recent[:] = middle
        output = method.training_step(batch, 1.0)
    worst, best = scores[2:].argmax().item() + 2, scores[2:].argmin().item() + 2
    assert output.logs["worst"] == output.logs["best"] == 0.25
    a, b = one.double().numpy(), two.double().numpy()
    given = np.moveaxis(np.eye(3)[batch["label"].numpy()], -1, 1)
    valid = batch["valid"].numpy()
    expected = numpy_ce_dice(a[:2], given[:2], valid[:2])
    expected += numpy_ce_dice(b[[best]], given[[best]], valid[[best]])
    gap = ((softmax(a) - softmax(b)) ** 2).mean(1)[worst]
    expected += 2.0 * gap[valid[worst]].mean()
    mixed = (given + (softmax(a) + softmax(b)) / 2) / 2
    expected += 0.5 * numpy_ce_dice(a[[best]], mixed[[best]], valid[[best]])
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_divergence_is_scipys():
    torch.manual_seed(0)
    one, two = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    valid = torch.rand(2, 4, 5) < 0.6
    apart = jensenshannon(softmax(one.double().numpy()), softmax(two.double().numpy()), axis=1) ** 2
    expected = [apart[i][valid[i].numpy()].mean() for i in (0, 1)]
    np.testing.assert_allclose(dast.divergence(one, two, valid), expected, rtol=1e-4)


@pytest.mark.parametrize("trusted", [False, True])
def test_labels_reach_only_their_own_decoder(trusted):
    torch.manual_seed(0)
    method, batch = Dast(toy_network), toy_batch()
    batch["trusted"][:] = trusted
    method.training_step(batch, 0.0).loss.backward()
    own = dict(method.student.named_parameters())
    ours = sum(own[name].grad.abs().sum() for name in method.decoder)
    theirs = sum(p.grad.abs().sum() for p in method.noisy_decoder)
    encoder = sum(p.grad.abs().sum() for name, p in own.items() if name not in method.decoder)
    assert (ours > 0, theirs > 0, encoder > 0) == (trusted, not trusted, True)


def test_the_queue_holds_the_last_untrusted_images():
    torch.manual_seed(0)
    method, batch = Dast(toy_network, queue=5), half_trusted()
    expected = [dast.EMPTY] * 5
    for _ in range(4):
        method.training_step(batch, 0.0)
        expected = [*expected, *method.fresh.tolist()][-5:]
        assert len(method.fresh) == 2
        method.after_step(0.0)
        assert method.recent.tolist() == pytest.approx(expected)
    assert (method.recent >= 0).all()


def test_nothing_is_selected_before_the_queue_is_full():
    method, batch = Dast(toy_network, queue=5), half_trusted()
    method.recent[1:] = 0.0
    logs = method.training_step(batch, 1.0).logs
    assert logs["worst"] == logs["best"] == 0
    method.recent[0] = 0.0
    assert method.training_step(batch, 1.0).logs["worst"] == 0.5  # all above 0, trusted ones left out


@pytest.mark.parametrize("name", ["unet", "basic_unet", "dynunet", "segresnet"])
def test_the_decoder_is_what_comes_last_and_no_more_than_the_upper_half(name):
    net = networks.build(name, ndim=2, in_channels=1, classes=2, patch=(32, 32), depth=3)
    names = [n for n, _ in net.named_parameters()]
    decoder = dast.decoder_names(net)
    assert decoder == names[-len(decoder) :]
    assert 0.2 * len(names) < len(decoder) < 0.8 * len(names)


def test_a_network_without_decoder_is_refused():
    with pytest.raises(UsageError, match="no decoder"):
        Dast(lambda: torch.nn.Conv2d(1, 3, 3, padding=1))
