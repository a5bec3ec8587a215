"""What a worker may say: requests, axes and the worker handle. Imports nothing else of simdist but errors."""

from simdist.program.mesh import Axis, Label, Mesh, MeshShape
from simdist.program.worker import Gradients, Worker, together

__all__ = ["Axis", "Gradients", "Label", "Mesh", "MeshShape", "Worker", "together"]
