"""ImageNet (ILSVRC 2012) and Imagenette, as folders of classes named by WordNet id."""

from ldnq.datasets.folder import load_splits
from ldnq.datasets.registry import DatasetFamily, datasets

# Positions of Imagenette's ten classes, in the order of their WordNet ids, among ImageNet's thousand.
IMAGENETTE_CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)

datasets.add(
    "imagenet",
    DatasetFamily(
        "imagenet", load_splits, "ILSVRC 2012: train/<wnid>/ and val/<wnid>/", 1000, 224, paper="arXiv 1409.0575"
    ),
)
datasets.add(
    "imagenette",
    DatasetFamily(
        "imagenette",
        load_splits,
        "ten classes of ImageNet: train/<wnid>/ and val/<wnid>/",
        10,
        224,
        class_subset=IMAGENETTE_CLASSES,
        paper="arXiv 1409.0575",
    ),
)
