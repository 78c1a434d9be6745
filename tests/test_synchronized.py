import pytest
import torch
from torch import nn

from ldnq.synchronized import SynchronizedNorm, average_statistics, synchronized


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (9, 4)), (nn.BatchNorm2d, (6, 4, 3, 2))])
def test_in_one_process_it_is_the_batch_norm_that_it_was(kind, shape, momentum, affine):
    plain, ours = (kind(4, affine=affine, momentum=momentum) for _ in range(2))
    if affine:
        nn.init.normal_(plain.weight)
    ours.load_state_dict(plain.state_dict())
    ours.__class__ = SynchronizedNorm
    for _ in range(2):
        x = 3 * torch.randn(shape) + 5
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        upstream = torch.randn(shape)
        for norm, entry in zip((plain, ours), inputs):
            norm(entry).backward(upstream)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    for theirs, mine in zip(plain.parameters(), ours.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_alone_nothing_is_changed():
    module = nn.Sequential(nn.BatchNorm2d(3))
    with synchronized(module):
        assert type(module[0]) is nn.BatchNorm2d
    before = module[0].running_mean.clone()
    average_statistics(module)
    assert torch.equal(module[0].running_mean, before)
