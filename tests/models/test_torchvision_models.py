"""torchvision's classifiers by torchvision's names, as torchvision builds them."""

import pytest
import torch
import torchvision

from ldnq.models import models

SOME = ["alexnet", "densenet121", "efficientnet_b0", "mobilenet_v2", "resnet18", "resnet50",
        "squeezenet1_1", "vgg16_bn", "vit_b_16", "vit_h_14"]  # fmt: skip


def test_every_classifier_of_torchvision_is_known():
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 50
    assert set(names) <= set(models)


@pytest.mark.parametrize("name", SOME)
def test_a_network_has_as_many_parameters_as_its_published_weights(name):
    family = models.get(name)
    published = family.published().entry
    with torch.device("meta"):
        module = family.build(num_classes=1000)
    assert sum(parameter.numel() for parameter in module.parameters()) == published.meta["num_params"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_side_branches_have_them_for_their_published_weights(name):
    family = models.get(name)
    with torch.device("meta"):
        module = family.build(num_classes=1000)
    assert any(key.startswith(("aux1.", "AuxLogits.")) for key in module.state_dict())
    assert module.transform_input


def test_names_of_the_weights_are_torchvisions():
    assert list(models.get("resnet18").build().state_dict()) == list(torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_network_is_built_for_any_number_of_classes(name):
    module = models.get(name).build(num_classes=7).eval()
    with torch.no_grad():
        assert module(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_arguments_reach_torchvision():
    assert models.get("mobilenet_v2").build(width_mult=0.5).features[0][0].out_channels == 16


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "vgg16"])
def test_weights_are_those_of_the_paper(name):
    assert models.get(name).published().entry.name == "IMAGENET1K_V1"


@pytest.mark.parametrize("name", SOME)
def test_a_family_is_for_imagenet(name):
    family = models.get(name)
    assert (family.name, family.default_dataset, family.image_size, family.resize) == (name, "imagenet", 224, 256)
