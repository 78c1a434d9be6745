"""Commands on tar shards: the same images, the same results as from a folder."""

import json
import tarfile

import pytest

pytest.importorskip("webdataset")


@pytest.fixture
def digit_shards(digit_files, tmp_path):
    """The digits of the image folder as shards, in the folder's order, with the names of its classes."""
    folder = tmp_path / "shards"
    folder.mkdir()
    classes = sorted(path.name for path in (digit_files / "train").iterdir())
    (folder / "classes.txt").write_text("\n".join(classes))
    for split in ("train", "test"):
        paths = sorted((digit_files / split).rglob("*.png"))
        for number in range(2):
            with tarfile.open(folder / f"{split}-{number:04}.tar", "w") as archive:
                for path in paths[number * len(paths) // 2 : (number + 1) * len(paths) // 2]:
                    (tmp_path / "label").write_text(str(classes.index(path.parent.name)))
                    key = f"{path.parent.name}-{path.stem}"
                    archive.add(path, f"{key}.png")
                    archive.add(tmp_path / "label", f"{key}.cls")
    return folder


def test_a_run_from_shards_is_that_from_a_folder(ldnq, tiny, workdir, digit_files, digit_shards):
    options = [*tiny[:4], "--dataset", "folder", "--samples", 30, "--preset", "fast", "--image-size", 32]
    found = {}
    for name, root in (("folder", digit_files), ("shards", digit_shards)):
        result = ldnq("quantize", *options, "--data-root", root, "--resample", "--output", name)
        assert result.code == 0, result.err
        metrics = json.loads((workdir / name / "metrics.json").read_text())
        found[name] = [
            metrics[key] for key in ("teacher_top1", "quantized_top1", "calibration_samples", "packed_bytes")
        ]
    assert found["shards"] == found["folder"]
    pattern = f"{digit_shards}/{{train,test}}-{{0000..0001}}.tar"
    said = ldnq("evaluate", "shards/model.h5", "--model", tiny[1], "--data-root", pattern, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["top1"] == found["shards"][1]


def test_shards_are_sampled_from_and_trained_on(ldnq, tiny, workdir, digit_shards):
    result = ldnq("sample", "--dataset", "folder", "--data-root", digit_shards, "--samples", 20, "--stratified")
    assert (result.code, "20 of 200" in result.out) == (0, True), result.err
    words = ["--model", tiny[1], "--dataset", "folder", "--data-root", digit_shards, "--image-size", 32, "--epochs", 1]
    result = ldnq("train", *words, "--output", "out")
    assert result.code == 0, result.err
    assert "top-1" in result.out


def test_shards_that_are_not_there_are_one_line(ldnq, tiny, workdir):
    result = ldnq("quantize", *tiny[:4], "--dataset", "folder", "--data-root", "train-{0000..0002}.tar")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "3 of 3 shards of train-{0000..0002}.tar are not there" in result.err
