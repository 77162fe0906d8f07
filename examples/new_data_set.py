"""A data set of your own, without a file: tensors that become ImageData, and SGHMC-SA on them.

    python -m examples.new_data_set

Images of 12 x 12 pixels show a horizontal bar, a vertical bar or a square in noise.
"""

import torch
from torch.nn.functional import cross_entropy

from data.augment import Recipe
from data.image_sets import ImageData, MemoryImages
from experiment.classification import scores
from experiment.evaluation import member, predict
from experiment.predictive import CategoricalMixturePredictive
from model.model_zoo_mnist import ConvNet
from sampler import SGHMC, FlatNoise, SSGLPrior
from sampler.noise import stream
from sampler.schedules import RobbinsMonro

CLASSES = ("horizontal", "vertical", "square")


def images(n: int, generator: torch.Generator) -> MemoryImages:
    """n images: x (n, channels, height, width) uint8, y (n) class indices."""
    x = torch.randint(160, (n, 1, 12, 12), dtype=torch.uint8, generator=generator)
    y, place = torch.randint(3, (n,), generator=generator), torch.randint(7, (n, 2), generator=generator)
    for i, (kind, (top, left)) in enumerate(zip(y.tolist(), place.tolist(), strict=True)):
        height, width = ((2, 6), (6, 2), (4, 4))[kind]
        x[i, 0, top : top + height, left : left + width] += 90
    return MemoryImages(x, y)


torch.manual_seed(1)  # initial weights
data = ImageData(CLASSES, images(1000, stream(1, "train")), images(500, stream(1, "test")))
recipe = Recipe(padding=1, mean=(0.4,), sd=(0.25,))  # random crops, then (pixel - mean) / sd
net, N = ConvNet(data.shape, len(data.classes)), len(data.train)

params = dict(net.named_parameters())
sparse = [params[name] for name in net.sparse_layers]
rest = [p for name, p in params.items() if name not in net.sparse_layers]
ssgl = {"v0": 1.0, "v1": 10.0, "a": 1, "b": 1, "nu": 1000, "lamda": 1000, "sigma": 1.0, "kappa0": 1e-4, "kappa1": 1e-4}
prior = SSGLPrior(sparse, **ssgl, omega=RobbinsMonro(1, 100, 0.7), gaussian=rest, precision=5e-4 * N)
sampler = SGHMC(net.parameters(), lr=0.03 / N, invT=1000.0, noise=FlatNoise(stream(1, "noise")))
average, order, augment = CategoricalMixturePredictive(len(data.test), 3), stream(1, "order"), stream(1, "augment")

for epoch in range(1, 9):
    for x, y in data.train.batches(torch.randperm(N, generator=order), 50):
        net.train().zero_grad()
        (N * cross_entropy(net(recipe.augment(x, augment)), y)).backward()  # on the scale of the whole data set
        prior.add_grad()
        sampler.step()
        prior.update()
    if epoch > 4:
        average.update(predict(member(net, recipe), data.test))  # a sample of the posterior average
last = scores(predict(member(net, recipe), data.test).exp(), data.test.y)
print(f"last sample: accuracy {last['accuracy']:.1f}%, NLL {last['nll']:.3f}")
averaged = scores(average.probabilities(), data.test.y)
print(f"average of {average.samples} samples: accuracy {averaged['accuracy']:.1f}%, NLL {averaged['nll']:.3f}")
