"""Inherit from a network of your own: which blocks of a ResNet-18 are worth inheriting, and what does a criterion choose?"""

from torchvision.models import resnet18

from learngene_core import Config
from learngene_core.analysis.atlas import atlas_tasks
from learngene_core.analysis.own_atlas import OwnAtlas
from learngene_core.analysis.rivals import regret_table
from learngene_core.data.division import divide
from learngene_core.data.images import load_images
from learngene_core.figures.atlas import atlas_map
from learngene_core.training import channel_statistics

cfg = Config.preset("smoke", atlas_tasks=2, atlas_pseudo_tasks=1, atlas_epochs=1, n_way=2)  # no preset: hours, numbers
images = load_images("glyphs")  # or load_images("folder", "path/to/images")
division = divide(images, cfg)
tasks = atlas_tasks(images, division, cfg)  # novel classes measure, open-world classes choose

ancestor = resnet18(weights=None)  # weights="DEFAULT", or load_state_dict of a file of yours; here it knows nothing
own = OwnAtlas(
    ancestor,
    factory=lambda: resnet18(weights=None, num_classes=cfg.n_way),
    blocks={"stem": ("conv1", "bn1"), **{name: name for name in ("layer1", "layer2", "layer3", "layer4")}},
    **dict(zip(("mean", "std"), channel_statistics(images.images), strict=True)),
)
cells = own.cells(images, tasks, cfg, pairs=[(1, 1), (1, 2), (1, 3), (1, 5), (5, 5)])  # no pairs: all that cfg asks for
atlas = own.table(cells)
scores = own.criteria(images, tasks["open_world"], division.base, cfg)
regret = regret_table(cells, atlas, scores, length=1)  # what each criterion's choice costs, beside the longest prefix
print(atlas[["block", "share", "gain", "gain_low", "gain_high"]].round(1).to_string(index=False))
print(regret[["criterion", "scope", "first", "last", "chosen_gain", "regret"]].round(1).to_string(index=False))
figure = atlas_map(atlas).figure
figure.savefig("own_network.png")
