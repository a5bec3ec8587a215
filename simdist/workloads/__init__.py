"""Models, data and losses: one file per workload, registered by name."""

from simdist.workloads.byte_gpt import ByteGPT
from simdist.workloads.decoder import Decoder
from simdist.workloads.digits import Digits
from simdist.workloads.module import ModuleWorkload
from simdist.workloads.teacher import Teacher
from simdist.workloads.workload import ParamSpec, Role, Task, Unit, Workload, workloads

__all__ = [
    "ByteGPT",
    "Decoder",
    "Digits",
    "ModuleWorkload",
    "ParamSpec",
    "Role",
    "Task",
    "Teacher",
    "Unit",
    "Workload",
    "workloads",
]
