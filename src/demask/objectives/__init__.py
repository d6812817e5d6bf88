"""The training objectives by name."""

from typing import Any

from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask
from demask.objectives.diffusion import Diffusion
from demask.objectives.meap import Meap
from demask.objectives.reverse import Reverse

OBJECTIVES: dict[str, Any] = {"autoregressive": Autoregressive, "demask": Demask, "diffusion": Diffusion, "meap": Meap, "reverse": Reverse}
