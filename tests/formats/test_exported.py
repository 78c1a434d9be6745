"""Every format in the runtime it is made for."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import ldnq
from ldnq import load
from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError, ExportError, NetworkError, UsageError
from ldnq.export import export, folded
from ldnq.formats import Format, formats
from ldnq.quantized import QuantizedModel, QuantizedWeight
from tests.formats.networks import SmallNet, quantize, small_model

FORMATS = {
    "onnx int8": ("onnx", {}),
    "onnx float": ("onnx", {"weight_type": "float"}),
    "safetensors": ("safetensors", {}),
    "safetensors, dequantized": ("safetensors", {"dequantized": True}),
    "torch": ("torch", {}),
    "torch-export": ("torch-export", {}),
}
IMAGES = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(3))


class Flat(nn.Module):
    """Linear layers alone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(243, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.layers(x)


class Depthwise(nn.Module):
    """A depthwise convolution, one with strides and dilation, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 3, stride=2, dilation=2)

    def forward(self, x):
        x = self.wide(x)
        return self.last(x + self.norm(self.deep(x)).relu()).mean((2, 3))


def _all_of(module, kbits, scale):
    """`module` with every convolution and linear layer quantized."""
    layers = [name for name, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return quantize(module, {f"{name}.weight": (kbits, scale) for name in layers})


def _with_zeros():
    model = _all_of(Depthwise(), 3, "channel")
    weight = model.weights["deep.weight"]
    zeros = QuantizedWeight(torch.ones_like(weight.codes), weight.scale, weight.codebook)
    with torch.no_grad():
        model.module.deep.weight.zero_()
    return QuantizedModel(model.module, {**model.weights, "deep.weight": zeros})


def _with_levels(levels):
    """Linear layers on any codebook."""
    module, codebook = Flat(), Codebook(tuple(map(float, levels)))
    weights = {}
    for name in ("layers.1.weight", "layers.3.weight"):
        parameter = module.get_parameter(name)
        codes = torch.randint(len(levels), parameter.shape, dtype=torch.uint8)
        weights[name] = QuantizedWeight(codes, torch.rand(len(parameter)) + 0.1, codebook)
        with torch.no_grad():
            parameter.copy_(weights[name].dequantize())
    return QuantizedModel(module.eval(), weights)


MODELS = {
    "grouped, a quantized bias, several codebooks": small_model,
    "depthwise, 9 levels": lambda: _all_of(Depthwise(), 9, "channel"),
    "linear only, a scale a layer": lambda: _all_of(Flat(), 7, "layer"),
    "linear only, a scale a channel": lambda: _all_of(Flat(), 5, "channel"),
    "skipped layers": lambda: quantize(Depthwise(), {"last.weight": (11, "layer")}),
    "a layer of zeros": _with_zeros,
    "no layer at all": lambda: QuantizedModel(Depthwise().eval(), {}),
    "DoReFa's levels": lambda: _with_levels(range(-255, 256, 2)),
    "binary": lambda: _with_levels([-1, 1]),
}


def _export(model, tmp_path, name="onnx", **options):
    form = formats.get(name)(**options)
    path = tmp_path / f"model{form.suffix}"
    return path, export(model, path, form, IMAGES)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("name", "options"), FORMATS.values(), ids=FORMATS)
def test_a_file_computes_what_the_network_computes(name, options, build, tmp_path):
    model = build()
    form = formats.get(name)(**options)
    path, _ = _export(model, tmp_path, name, **options)
    opened = form.open(path, build())
    for key, weight in model.weights.items():
        assert torch.equal(opened.weights[key], weight.dequantize())
    for images in (IMAGES, IMAGES[:1], torch.randn(17, 3, 9, 9)):
        with torch.no_grad():
            expected = model.module(images)
        torch.testing.assert_close(opened.forward(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_what_ldnq_loads_again_has_the_same_bits(name, build, tmp_path):
    model = build()
    path, _ = _export(model, tmp_path, name)
    loaded = load(path, build().module)
    assert list(loaded.weights) == list(model.weights)
    for key, weight in model.weights.items():
        assert torch.equal(loaded.weights[key].codes, weight.codes)
        assert torch.equal(loaded.weights[key].scale, weight.scale)
        assert loaded.weights[key].codebook == weight.codebook
    state = loaded.module.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES), model.module(IMAGES))


@pytest.mark.parametrize("kbits", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_narrow_integers_hold_the_codebooks_that_fit(kbits, scale, tmp_path):
    model = _all_of(Depthwise(), kbits, scale)
    sizes = {"int8": _export(model, tmp_path)[1].bytes}
    for kind, most in (("int4", 7), ("int2", 3)):
        if kbits <= most:
            path, exported = _export(model, tmp_path, weight_type=kind)
            sizes[kind] = exported.bytes
            assert torch.equal(load(path, Depthwise()).weights["last.weight"].codes, model.weights["last.weight"].codes)
        else:
            with pytest.raises(UsageError, match=f"do not fit {kind}: use --weight-type int8"):
                _export(model, tmp_path, weight_type=kind)
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_layers_may_have_different_codebooks(name, tmp_path):
    model = ldnq.quantize(Flat(), [IMAGES], kbits=3, kbits_for={"layers.3": 7}, preset="paper", training=False)
    path, _ = _export(model, tmp_path, name, **({"weight_type": "int4"} if name == "onnx" else {}))
    found = load(path, Flat())
    assert [weight.codebook.num_levels for weight in found.weights.values()] == [3, 7]
    assert torch.equal(found.module(IMAGES), model.module(IMAGES))
    assert found.bits_per_weight == model.bits_per_weight
    if name == "onnx":
        with pytest.raises(UsageError, match=r"the levels of layers\.3\.weight, up to ±4, do not fit int2"):
            _export(model, tmp_path, weight_type="int2")


def test_metadata_goes_with_the_file(tmp_path):
    for name in ("onnx", "safetensors"):
        model = small_model(class_names=("cat", "猫"), provenance={"kbits": 3, "errors": [1 / 3]})
        path, _ = _export(model, tmp_path, name)
        loaded = load(path, SmallNet())
        assert (loaded.class_names, loaded.provenance) == (model.class_names, model.provenance)


def test_integers_lie_as_raw_bytes_with_one_scale_a_channel(tmp_path):
    path, exported = _export(_all_of(Flat(), 5, "channel"), tmp_path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert initializers["layers.1.weight.codes"].data_type == onnx.TensorProto.INT8
    assert len(initializers["layers.1.weight.codes"].raw_data) == 8 * 243
    assert initializers["layers.1.weight.scale"].dims == [8]
    assert exported.bytes == path.stat().st_size < 8 * 243 + 4 * 8 + 4000
    assert (proto.ir_version, proto.opset_import[0].version) == (9, 20)


@pytest.mark.parametrize(("kind", "opset", "ir"), [("int4", 21, 10), ("int2", 25, 13), ("float", 20, 9)])
def test_a_file_asks_for_no_newer_runtime_than_its_type_needs(kind, opset, ir, tmp_path):
    path, _ = _export(_all_of(Flat(), 3, "layer"), tmp_path, weight_type=kind)
    proto = onnx.load(path)
    assert (proto.ir_version, proto.opset_import[0].version) == (ir, opset)


def test_batch_norms_stay_in_the_graph(tmp_path):
    for kind in ("int8", "float"):
        path, _ = _export(small_model(), tmp_path, weight_type=kind)
        kinds = [node.op_type for node in onnx.load(path).graph.node]
        assert kinds.count("BatchNormalization") == 2
        assert kinds.count("DequantizeLinear") == (4 if kind == "int8" else 0)


def test_a_state_dict_drops_into_the_network_without_ldnq(tmp_path):
    model = small_model()
    path, _ = _export(model, tmp_path, "torch")
    plain, safe = SmallNet().eval(), SmallNet().eval()
    plain.load_state_dict(torch.load(path, weights_only=True))
    path, _ = _export(model, tmp_path, "safetensors", dequantized=True)
    safe.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), model.module(IMAGES))
        assert torch.equal(safe(IMAGES), model.module(IMAGES))


def test_the_smallest_files_are_near_the_information_in_the_codes(tmp_path):
    model = quantize(nn.Linear(1000, 400, bias=False), {"weight": (3, "layer")})
    form = formats.get("safetensors")()
    exported = export(model, tmp_path / "model.safetensors", form, torch.randn(4, 1000))
    assert exported.bits_per_weight < 1.012 * np.log2(3) + 8 * 1500 / 400_000


# Files that part from the network


class Careless(Format):
    """Writes a network whose weights or bias are a little off."""

    suffix = ".pt"

    def __init__(self, name, change):
        self.name, self.change = name, change

    def write(self, model, path, example):
        tensors = dict(model.module.state_dict())
        tensors[self.name] = self.change(tensors[self.name].clone())
        torch.save(tensors, path)

    def open(self, path, model):
        return formats.get("torch")().open(path, model)


def _first_moved(weight):
    weight.view(-1)[0] += 1
    return weight


@pytest.mark.parametrize(
    ("name", "message"),
    [("head.weight", "differs in 1 of 24 weights of head.weight$"), ("features.3.bias", "differs from the network by")],
    ids=["a weight", "a bias"],
)
def test_a_file_that_parts_from_the_network_is_refused_and_not_left(name, message, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"the former one")
    with pytest.raises(ExportError, match=message):
        export(small_model(), path, Careless(name, _first_moved), IMAGES)
    assert path.read_bytes() == b"the former one"
    assert list(tmp_path.iterdir()) == [path]
    export(small_model(), path, Careless(name, _first_moved), IMAGES, verify=False)
    assert path.read_bytes() != b"the former one"


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path):
    class Branching(Flat):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    for name in ("onnx", "torch-export"):
        with pytest.raises(NetworkError, match=r"^torch\.(onnx|export) cannot export the network: [^\n]+$"):
            _export(_all_of(Branching(), 3, "layer"), tmp_path, name)


def test_levels_that_are_no_integers_need_floats(tmp_path):
    model = _with_levels([-1, -0.3, 0.3, 1])
    with pytest.raises(UsageError, match="are no integers: use --weight-type float"):
        _export(model, tmp_path)
    _export(model, tmp_path, weight_type="float")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"expected the package {name}, found none: pip install 'ldnq\[onnx\]'"):
        _export(small_model(), tmp_path)


# Files that are damaged


@pytest.fixture(params=["onnx", "safetensors"])
def saved(request, tmp_path):
    return _export(small_model(), tmp_path, request.param)[0]


def test_a_flipped_byte_is_refused_or_changes_nothing(saved):
    whole, expected = saved.read_bytes(), load(saved, SmallNet()).module.state_dict()
    rng = np.random.default_rng(0)
    refused = 0
    positions = range(0, len(whole), 31)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        saved.write_bytes(damaged)
        try:
            found = load(saved, SmallNet()).module.state_dict()
        except CheckpointError:
            refused += 1
            continue
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert refused > 0.9 * len(positions)


def test_a_file_cut_short_is_refused(saved):
    whole = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(40, len(whole), 613), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load(saved, SmallNet())


@pytest.mark.parametrize("content", [b"", b"text", bytes(999), np.random.default_rng(0).bytes(999)])
def test_other_files_are_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|not written by ldnq"):
        load(saved, SmallNet())


def test_files_of_others_say_what_they_lack(tmp_path):
    path, _ = _export(small_model(), tmp_path, "safetensors", dequantized=True)
    with pytest.raises(CheckpointError, match="is not a quantized checkpoint of ldnq"):
        load(path, SmallNet())
    path, _ = _export(small_model(), tmp_path, "onnx")
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="was not written by ldnq: it runs in onnxruntime"):
        load(path, SmallNet())
    path, _ = _export(small_model(), tmp_path, "onnx", weight_type="float")
    with pytest.raises(CheckpointError, match=r"holds \S+ as floats: export with --weight-type int8 to load"):
        load(path, SmallNet())


def test_metadata_that_lies_is_refused(tmp_path):
    path, _ = _export(small_model(), tmp_path, "onnx")
    whole = onnx.load(path)
    entry = json.loads(whole.metadata_props[0].value)
    for changed in (
        entry | {"format_version": 2},
        entry | {"weights": {"head.weight": [0]}},
        entry | {"weights": []},
        entry | {"tensors": {"head.bias": ["complex64", [4], ""]}},
        entry | {"sha256": "0" * 64},
        entry | {"header": 3},
        {},
        [],
    ):
        whole.metadata_props[0].value = json.dumps(changed)
        onnx.save(whole, path)
        with pytest.raises(CheckpointError, match=r"model\.onnx (is damaged|has format version)"):
            load(path, SmallNet())


def test_external_data_of_an_onnx_file_is_not_read(tmp_path):
    path, _ = _export(small_model(), tmp_path, "onnx")
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.weight.codes")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError):
        load(path, SmallNet())


# Batch norms folded


def test_folded_batch_norms_give_the_same_outputs_with_codes_left_codes(tmp_path):
    model = small_model()
    with torch.no_grad():
        for norm in (model.module.features[1], model.module.features[4]):
            norm.weight[0] = -1.5  # mirrors the channel's codes
            norm.weight[1] = 0.0
    plain = folded(model, IMAGES)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.module.modules())
    assert plain.weights.keys() == model.weights.keys()
    first, before = plain.weights["features.0.weight"], model.weights["features.0.weight"]
    assert torch.equal(first.codes[0], 2 - before.codes[0])
    assert torch.equal(first.codes[2:], before.codes[2:])
    assert first.scale.shape == (6,)
    assert bool((first.scale >= 0).all())
    with torch.no_grad():
        torch.testing.assert_close(plain.module(IMAGES), model.module(IMAGES), rtol=1e-5, atol=1e-5)
        # What was given is left alone.
        assert model.module.features[0].bias is None
    path, _ = _export(plain, tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    with torch.no_grad():
        outputs = session.run(None, {"input": IMAGES.numpy()})[0]
        np.testing.assert_allclose(outputs, model.module(IMAGES).numpy(), rtol=1e-4, atol=1e-5)


def test_float_layers_are_folded_too():
    model = quantize(Depthwise(), {"last.weight": (3, "layer")})
    model.module.norm.running_mean.normal_()
    model.module.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        torch.testing.assert_close(folded(model, IMAGES).module(IMAGES), model.module(IMAGES), rtol=1e-5, atol=1e-5)


class Odd(nn.Module):
    """Batch norms after what is no layer of its own weight."""

    def __init__(self):
        super().__init__()
        self.first, self.twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.twin.weight = self.first.weight
        self.up = nn.ConvTranspose2d(3, 3, 3)
        self.bend = nn.PReLU(3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x):
        for layer, norm in zip((self.first, self.twin, self.up, self.bend), self.norms):
            x = norm(layer(x))
        return x.mean((2, 3))


def test_only_layers_that_own_their_weights_are_folded():
    model = QuantizedModel(Odd(), {})
    with torch.no_grad():
        for _ in range(3):
            model.module(torch.randn(8, 3, 9, 9))
        for norm in model.module.norms:
            norm.weight.uniform_(0.5, 2)
    model.module.eval()
    plain = folded(model, IMAGES)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in plain.module.modules()) == 4
    with torch.no_grad():
        assert torch.equal(plain.module(IMAGES), model.module(IMAGES))


def test_a_batch_norm_along_another_axis_is_not_folded_in_silence():
    class Along(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(9, 9), nn.BatchNorm1d(9)

        def forward(self, x):
            return self.norm(self.layer(x.flatten(2)[..., :9].repeat(1, 3, 1))).mean(2)

    model = QuantizedModel(Along().eval(), {})
    model.module.norm.running_mean.normal_()
    with pytest.raises(NetworkError, match="cannot be folded: its outputs become others"):
        folded(model, IMAGES)


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_a_given_network_keeps_its_batch_norms(name, tmp_path):
    path, _ = _export(folded(small_model(), IMAGES), tmp_path, name)
    module = SmallNet()
    load(path, module)
    assert sum(isinstance(child, nn.BatchNorm2d) for child in module.modules()) == 2


@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_a_single_image_is_enough_to_export(name, tmp_path):
    form = formats.get(name)()
    model, path = small_model(), tmp_path / f"model{form.suffix}"
    assert export(model, path, form, IMAGES[:1]).agreed == 1
    assert len(form.open(path, model).forward(IMAGES)) == 5


def test_a_flipped_bit_in_the_graph_is_refused(tmp_path):
    path, _ = _export(small_model(), tmp_path)
    proto = onnx.load(path)
    node = next(node for node in proto.graph.node if node.op_type == "BatchNormalization")
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 0.5
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="the checksum of its graph does not match"):
        load(path, SmallNet())


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_folded_files_are_loaded_again(name, tmp_path):
    model = folded(small_model(), IMAGES)
    path, _ = _export(model, tmp_path, name)
    loaded = load(path, SmallNet())
    assert loaded.folded
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES), model.module(IMAGES))


def test_safetensors_names_are_those_of_the_parameters(tmp_path):
    path, _ = _export(small_model(), tmp_path, "safetensors")
    with safe_open(path, "np") as file:
        names = set(file.keys())
    assert {"head.weight:codes", "head.weight:scale", "features.1.running_mean"} <= names
