"""Trees of drafts: what they are (`tree`), which leaves grow (`shapes`), a model that grows them
(`grower`) or draws them (`sampler`), and the tree of heads that do not know each other (`product`)."""

from cascade_runtime.decoding.trees.foresight import Foresight
from cascade_runtime.decoding.trees.grower import Grower
from cascade_runtime.decoding.trees.shapes import Duo, Eagle2, OptTree, Product, Shape, Static, Talon, shape_of
from cascade_runtime.decoding.trees.tree import Tree

__all__ = ["Duo", "Eagle2", "Foresight", "Grower", "OptTree", "Product", "Shape", "Static", "Talon", "Tree", "shape_of"]
