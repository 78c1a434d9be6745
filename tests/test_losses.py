import pytest
import torch
import torch.nn.functional as F

from ldnq.losses import divergence, objective, relative_error


def test_the_divergence_is_that_of_the_softened_classes():
    ours, theirs = torch.randn(6, 5), torch.randn(6, 5)
    for temperature in (1.0, 3.0):
        p, q = ((logits.double() / temperature).softmax(1) for logits in (theirs, ours))
        expected = temperature**2 * float((p * (p / q).log()).sum(1).mean())
        assert float(divergence(ours, theirs, temperature)) == pytest.approx(expected, rel=1e-4)
    maps = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    flat = [tensor.permute(0, 2, 3, 1).reshape(-1, 5) for tensor in maps]
    assert float(divergence(*maps)) == pytest.approx(float(divergence(*flat)), rel=1e-5)
    assert float(divergence(theirs, theirs)) == pytest.approx(0, abs=1e-6)


def test_outputs_without_classes_are_compared_by_their_values():
    ours, theirs = torch.randn(6, 1), torch.randn(6, 1)
    assert divergence(ours, theirs) == relative_error(ours, theirs)
    assert float(relative_error(ours, theirs)) == pytest.approx(
        float(F.mse_loss(ours, theirs) * 6 / theirs.norm() ** 2)
    )


def test_the_objective_is_torchs_cross_entropy_with_smoothed_labels():
    outputs, labels = torch.randn(6, 5), torch.randint(5, (6,))
    assert torch.equal(objective(outputs, labels), F.cross_entropy(outputs, labels))
    smooth = 0.8 * F.one_hot(labels, 5) + 0.2 / 5
    expected = -(smooth * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective(outputs, labels, label_smoothing=0.2), expected)


def test_a_teacher_takes_its_share_of_the_objective():
    outputs, targets, labels = torch.randn(6, 5), torch.randn(6, 5), torch.randint(5, (6,))
    softened = F.kl_div((outputs / 4).log_softmax(1), (targets / 4).softmax(1), reduction="batchmean") * 16
    expected = 0.3 * F.cross_entropy(outputs, labels) + 0.7 * softened
    torch.testing.assert_close(objective(outputs, labels, 0.0, targets, 0.7, 4.0), expected)
