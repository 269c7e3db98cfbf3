"""A saved learngene in a network of your own: PyTorch and safetensors, nothing of this project."""

import json

import torch
from safetensors import safe_open
from torch import nn

with safe_open("runs/lecture/learngene.safetensors", "pt") as file:
    about = json.loads(file.metadata()["learngene"])
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)

front = nn.Sequential(nn.Conv2d(3, about["input_width"], 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(8))
blocks, width = nn.Sequential(), about["input_width"]
for name, n_out in zip(about["layers"], about["widths"], strict=True):
    block = nn.ModuleDict({"conv": nn.Conv2d(width, n_out, 3, padding=1), "norm": nn.BatchNorm2d(n_out)})
    block.load_state_dict({key: tensors.get(f"{name}.{key}", torch.tensor(0)) for key in block.state_dict()})
    blocks.extend([*block.values(), nn.ReLU(), *[nn.MaxPool2d(2)] * (name in about["pools"])])
    width = n_out
model = nn.Sequential(front, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

# one step on five classes; real images as float / 255, then (x - about["mean"]) / about["std"] per channel
images, labels = torch.randn(20, 3, about["image_size"], about["image_size"]), torch.arange(20) % 5
optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
loss = nn.functional.cross_entropy(model(images), labels)
loss.backward()
optimiser.step()
print(f"{', '.join(about['layers'])} inherited, loss {loss.item():.2f}")
