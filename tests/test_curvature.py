import pytest
import torch
from torch import nn

from ldnq.curvature import channel_curvature, output_gradients, sensitivities
from ldnq.graph import find_layers


def _generator():
    return torch.Generator().manual_seed(0)


def _fisher(network, x):
    """E over classes of the gradients' outer products at the output of layer "0", by hand: (4, 4)."""
    hidden = network[0](x).detach()
    jacobian = network[2].weight.detach()[None] * (hidden > 0)[:, None]
    p = network[2](hidden.relu()).softmax(1).detach()
    gradients = jacobian - (p[:, :, None] * jacobian).sum(1, keepdim=True)
    return torch.einsum("nc,nci,ncj->ij", p, gradients, gradients)


@pytest.mark.parametrize("inplace", [False, True], ids=["new values", "in place"])
def test_the_sensitivity_is_the_fisher_information_of_the_outputs(inplace):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace), nn.Linear(4, 3)).eval().requires_grad_(False)
    x = torch.randn(3000, 5)
    layers, _ = find_layers(network, x[:2])
    expected = _fisher(network, x)
    found = sensitivities(network, layers, x.split(1000), 2, _generator())
    assert found["0"].shape == (1, 4, 4)
    assert found["2"].shape == (1, 3, 3)
    expected = expected / expected.diagonal().mean()
    torch.testing.assert_close(found["0"][0], expected.double(), rtol=0, atol=0.05)
    diagonal = channel_curvature(network, "0", [x], _generator())
    torch.testing.assert_close(diagonal.flatten(), expected.diagonal(), rtol=0, atol=0.1)


def test_every_group_of_a_convolution_has_a_sensitivity_of_its_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(54, 5)).eval()
    x = torch.randn(40, 4, 5, 5)
    layers, _ = find_layers(network, x[:2])
    ((gradient,),) = (g["0"] for g in output_gradients(network, ["0"], x, 1, _generator()))
    expected = torch.stack(
        [torch.einsum("nrhw,nshw->rs", part.double(), part.double()) for part in gradient.split(3, dim=1)]
    )
    found = sensitivities(network, layers, [x], 1, _generator())["0"]
    torch.testing.assert_close(found, expected / expected.diagonal(dim1=1, dim2=2).mean(), rtol=1e-4, atol=1e-5)


def test_gradients_have_the_second_moments_of_the_log_likelihood_of_a_class():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randn(1, 3, 2, 2)
    p = network(x).softmax(1)[0].detach()
    found = output_gradients(network, ["1"], x.expand(1000, -1, -1, -1), 3, _generator())
    gradient = torch.cat([gradients["1"][0] for gradients in found])
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3000), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient.T @ gradient / 3000, p.diag() - p.outer(p), rtol=0, atol=0.01)


def test_a_network_without_classes_is_felt_through_projections_of_its_outputs():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1, bias=False)).eval()
    x = torch.randn(2000, 3, 3, 3)
    layers, _ = find_layers(network, x[:2])
    found = sensitivities(network, layers, [x], 1, _generator())["0"][0]
    matrix = network[1].weight.detach().flatten(1).double()
    expected = matrix.T @ matrix
    torch.testing.assert_close(found, expected / expected.diagonal().mean(), rtol=0, atol=0.1)


def test_a_layer_that_the_outputs_do_not_depend_on_is_left_out():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    network = Network().eval()
    x = torch.randn(8, 4)
    layers, _ = find_layers(network, x)
    assert set(sensitivities(network, layers, [x], 1, _generator())) == {"used"}
    assert channel_curvature(network, "idle", [x], _generator()).tolist() == 1.0


def test_a_layer_called_twice_is_felt_at_both_places():
    layer = nn.Linear(4, 4)
    network = nn.Sequential(layer, nn.ReLU(), layer).eval()
    x = torch.randn(30, 4)
    layers, _ = find_layers(network, x)
    (gradients,) = output_gradients(network, ["0"], x, 1, _generator())
    assert len(gradients["0"]) == 2
    expected = sum(g.double().T @ g.double() for g in gradients["0"])
    found = sensitivities(network, layers, [x], 1, _generator())["0"][0]
    torch.testing.assert_close(found, expected / expected.diagonal().mean(), rtol=1e-4, atol=1e-5)
